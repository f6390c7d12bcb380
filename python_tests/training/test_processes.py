"""Where a process computes, alone and beside those that torchrun started."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import assert_names

from flowinv_fast.training import processes
from flowinv_fast.training.processes import process_count, shared_training


def test_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process_count() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with shared_training() as device:
        assert device == "cpu" and not dist.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with shared_training() as device:
        assert device == "cuda"
    with shared_training("cuda:3") as device:
        assert device == "cuda:3"


@pytest.fixture
def calls(monkeypatch) -> list:
    """What is called of torch.distributed and torch.cuda, which do nothing, in one of two."""
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(dist, "init_process_group", lambda kind: seen.append(kind))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: seen.append("destroyed"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(device))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: seen.append("waits"))
    return seen


def test_beside_others(calls):
    assert process_count() == 2
    with shared_training("cuda") as device:
        assert device == "cuda:1" and calls == ["cuda:1", "nccl"]
    assert calls == ["cuda:1", "nccl", "waits", "destroyed"]


def test_an_error_ends_the_group(calls):
    with pytest.raises(ZeroDivisionError), shared_training("cpu") as device:
        assert device == "cpu"
        raise ZeroDivisionError
    assert calls == ["gloo", "waits", "destroyed"]


def test_one_gpu_for_several_processes_is_refused(calls):
    assert_names("--device", lambda: shared_training("cuda:1").__enter__())
    assert calls == []
