"""The processes that share a training: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from .._base.errors import require


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def shared_training(device: str | None = None) -> Iterator[str]:
    """Where this process computes; torch.distributed is initialised meanwhile beside others.

    Args:
        device: cpu, cuda, cuda:1, ...; None: cuda where there is one. Beside other processes cpu or
            cuda: each takes the GPU of its LOCAL_RANK.
    Raises:
        ArgumentError: one device named for several processes.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if process_count() == 1:
        yield device
        return
    require(device in ("cpu", "cuda"), "train", "--device", "cpu or cuda beside others", device)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        # Gloo's thread takes the GIL to let go of the last tensors, and holds a lock that the end
        # of the group wants: let it finish first, or both wait for ever.
        time.sleep(1)
        dist.destroy_process_group()
