"""Available memory: the least of what the machine and all control groups have left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowinv_fast._base.memory import available_memory
from flowinv_fast.reconstruction import memory

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def machine(root: Path, groups: str, free: int | None = 10_000) -> Path:
    (root / "proc/self").mkdir(parents=True)
    if free is not None:
        text = f"MemTotal: 99999999 kB\nMemAvailable: {free} kB\nSwapFree: 88888888 kB\n"
        (root / "proc/meminfo").write_text(text)
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(folder: Path, names: tuple, limit: int | str, used: int, cache: int | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    if cache is not None:
        other = "inactive_file 77777777" if names == V1 else "total_inactive_file 77777777"
        (folder / "memory.stat").write_text(f"anon 400\n{other}\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", ["v1", "v2", "hybrid"])
@pytest.mark.parametrize("tightest", range(3))
def test_the_tightest_of_nested_groups(tmp_path, version, tightest):
    """Of version 1, of version 2, and of version 1 beside an empty version 2."""
    lines = "9:name=systemd:/\n4:cpu,memory:/pod/job\n0::/x\n"
    root = machine(tmp_path, {"v1": lines, "hybrid": lines, "v2": "0::/pod/job\n"}[version])
    top = root / "sys/fs/cgroup" / ("" if version == "v2" else "memory")
    names = V2 if version == "v2" else V1
    for depth, folder in enumerate((top, top / "pod", top / "pod/job")):
        limit = 3000 if depth == tightest else 900_000
        group(folder, names, limit, 2900, 2000)
    if version == "hybrid":
        (root / "sys/fs/cgroup/unified/x").mkdir(parents=True)
    assert available_memory(root) == 3000 - 2900 + 2000


def test_groups_without_a_limit(tmp_path):
    root = machine(tmp_path, "0::/job\n")
    group(root / "sys/fs/cgroup/job", V2, "max", 5, 1)
    assert available_memory(root) == 10_000 * 1024
    (root / "sys/fs/cgroup/job/memory.high").write_text("3000\n")
    assert available_memory(root) == 3000 - 5 + 1
    v1 = machine(tmp_path / "v1", "4:memory:/job\n")
    group(v1 / "sys/fs/cgroup/memory/job", V1, 2**63 - 4096, 5, 1)
    assert available_memory(v1) == 10_000 * 1024


def test_a_container_that_is_told_a_path_outside(tmp_path):
    root = machine(tmp_path, "4:memory:/docker/0123\n0::/../../other\n")
    group(root / "sys/fs/cgroup/memory", V1, 3000, 2000, 500)
    assert available_memory(root) == 1500


def test_files_that_are_missing_or_odd(tmp_path):
    assert available_memory(tmp_path / "none") is None
    root = machine(tmp_path / "no-meminfo", "0::/job\n", None)
    assert available_memory(root) is None
    group(root / "sys/fs/cgroup/job", V2, 3000, 2000, None)
    assert available_memory(root) == 1000
    (root / "sys/fs/cgroup/job/memory.current").write_text("4000\n")
    assert available_memory(root) == 0, "never below"
    (root / "sys/fs/cgroup/job/memory.max").write_text("plenty\n")
    assert available_memory(root) is None


def test_the_plan_of_a_full_machine_is_one_image_at_a_time(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 0)
    assert memory.images_at_once(100, 8, torch.device("cpu")) == 1
