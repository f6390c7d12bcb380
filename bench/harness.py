"""Timing contenders side by side, and writing what was measured with its conditions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

import flowinv_fast

RESULTS = Path(__file__).parent / "results"


def time_together(
    contenders: dict[str, Callable[[], object]], device: str, rounds: int, seconds: float = 0.02
) -> dict[str, dict[str, float]]:
    """Median time of a call of each contender, in seconds, and its spread.

    The contenders take turns in every round, so that a busy moment of the machine hits all of
    them. A round repeats a call for about ``seconds``. The first call (compilation, allocation) is
    timed apart.

    Returns:
        name to {"first", "median", "low", "high"}: the quartiles bound the spread.
    """
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    first, repeats, times = {}, {}, {name: [] for name in contenders}
    for name, call in contenders.items():
        started = time.perf_counter()
        call()
        finish()
        first[name] = time.perf_counter() - started
        for _ in range(3):
            call()
        finish()
        started = time.perf_counter()
        call()
        finish()
        repeats[name] = max(1, int(seconds / max(1e-7, time.perf_counter() - started)))
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(0.01)  # the last one's OpenMP threads stop spinning
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            finish()
            times[name].append((time.perf_counter() - started) / repeats[name])
    quartiles = lambda v: statistics.quantiles(v, n=4) if len(v) > 1 else [v[0]] * 3
    return {
        name: {
            "first": first[name],
            "median": statistics.median(v),
            "low": quartiles(v)[0],
            "high": quartiles(v)[2],
        }
        for name, v in times.items()
    }


def copy_bandwidth(device: str, megabytes: int = 256) -> float:
    """Bytes per second of a plain tensor copy (read and write counted), median of 20."""
    source = torch.empty(megabytes << 18, device=device)
    target = torch.empty_like(source)
    found = time_together({"copy": lambda: target.copy_(source)}, device, 20)
    return 2 * source.numel() * 4 / found["copy"]["median"]


def conditions(device: str, **more) -> dict:
    """The machine, versions and commit a measurement stands on."""
    git = lambda *a: subprocess.run(
        ["git", *a], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "build": {k: flowinv_fast.build_info()[k] for k in ("compiler", "cpu_kernels", "cuda")},
        "commit": git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        **more,
    }


def processor() -> str:
    """Model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(
    name: str,
    result: dict,
    folder: str | os.PathLike | None = None,
    same_row: tuple[str, ...] = (),
) -> Path:
    """Write a result as FOLDER/NAME-MACHINE-COMMIT.json, whole or not at all.

    With ``same_row``, rows of such a file of the same conditions (but the date) stay where none of
    the new ones has the same values there.
    """
    folder = Path(folder or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    where = result["conditions"]
    machine = "".join(c if c.isalnum() else "-" for c in where["machine"].lower()).strip("-")
    path = folder / f"{name}-{machine}-{where['commit']}.json"
    if same_row and path.exists():
        before = json.loads(path.read_text())
        # As JSON has them: tuples are lists.
        if {**before["conditions"], "date": where["date"]} == json.loads(json.dumps(where)):
            key = lambda row: [row[k] for k in same_row]
            new = [key(row) for row in result["rows"]]
            kept = [row for row in before["rows"] if key(row) not in new]
            result = {**result, "rows": kept + result["rows"]}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)
    return path
