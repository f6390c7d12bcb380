"""A program: runs of one reproduction, killed with SIGKILL over and over, checked after each kill.

    kill_runs.py FOLDER DELAYED WRITES SEED

DELAYED kills fall after a random delay, WRITES kills at a random write: half of the temporary is
there, or it has just taken its file's place. A run goes on in its folder until it ends; then it is
compared with one that nobody stopped, and a new folder begins. The last line tells how it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flowinv_fast.experiments import runner, uncertainty
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.methods import METHODS

CONFIG = ReproduceConfig(
    ("denoise-radial",), images=2, tuning_images=1, steps=1, restarts=1, chunk=1, quick=True
)
with contextlib.suppress(ImportError):  # here once, not in every child
    import torchmetrics.functional.image  # noqa: F401
USED = ("noisy", "map", "csgm-gan", "asim-norm")


def make_cheap() -> None:
    """Before the forks: few methods, no uncertainty."""
    draws = {"samples": 1, "warm_up": 2, "z": 1.0, "acceptance": 1.0, "top": 1.0}
    pictures = dict.fromkeys(("truth", "y", "mean", "std"), np.zeros((2, 1, 28, 28), np.float32))
    uncertainty.posterior = lambda *a: (draws, pictures)
    uncertainty.bound = lambda *a: {"std": 0.2, "images": []}
    runner.chosen_methods = lambda setting: [METHODS[name] for name in USED]


def start(folder: Path, at_write: int = 0, half: bool = False) -> int:
    """A child that runs the configuration; one that kills itself at its n-th write, if told to."""
    return forked(lambda: runner.reproduce(CONFIG, folder, False), folder, at_write, half)


def forked(work: Callable[[], object], folder: Path, at_write: int = 0, half: bool = False) -> int:
    """A child that does the work, and kills itself at its n-th write if told to: half of the
    temporary is there, or it has just taken its file's place. One that is not told to leaves their
    number in the file "writes" beside the folder."""
    pid = os.fork()
    if pid:
        return pid
    status, writes, place = 1, 0, os.replace

    def replace(source, target, **how):
        nonlocal writes
        writes += 1
        if at_write == writes and half:
            os.truncate(source, os.path.getsize(source) // 2)
        else:
            place(source, target, **how)
        if at_write == writes:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.replace = replace
        work()
        if not at_write:
            (folder.parent / "writes").write_text(str(writes))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> bool:
    """Whether the child came to its end; one that fails ends this program."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert status == 0, f"a run failed: {status}"
    return True


def refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return list(map(timeless, value)) if isinstance(value, list) else value


def whole(folder: Path) -> dict[str, object]:
    """What every file in a folder holds, seconds left out; fails on one that is half written."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix == ".lock" or any(p.endswith(".tmp") for p in path.parts):
            continue
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text(), parse_constant=refuse))
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {key: array.tolist() for key, array in arrays.items()}
        elif path.suffix == ".toml":
            assert ReproduceConfig.load(path) == CONFIG
        else:
            if path.suffix == ".png":
                Image.open(path).load()
            found[name] = path.read_bytes()
    if "report.html" in found:
        assert found["report.html"].endswith(b"</html>\n")
    return found


def main(base: Path, delayed: int, in_writes: int, seed: int) -> None:
    torch.set_num_threads(1)
    random.seed(seed)
    make_cheap()
    for name in ("warm", "reference"):  # the first one reads files that the others find in memory
        started = time.perf_counter()
        assert wait(start(base / name))
        seconds = time.perf_counter() - started
    reference, writes = whole(base / "reference"), int((base / "writes").read_text())
    print(f"{writes} writes, {len(reference)} files, {seconds:.2f} s", flush=True)
    modes = ["delay"] * delayed + ["half", "after"] * (in_writes // 2)
    random.shuffle(modes)
    folder, finished, runs, reached = base / "run-0", 0, 0, []

    def compare() -> None:
        found = whole(folder)
        assert found.keys() == reference.keys(), found.keys() ^ reference.keys()
        assert all(found[name] == reference[name] for name in found)
        assert not list(folder.rglob("*.tmp*")), "leftover temporaries"

    while modes:
        runs += 1
        if modes[-1] == "delay":
            pid = start(folder)
            time.sleep(random.uniform(0, 0.8 * seconds))
            os.kill(pid, signal.SIGKILL)
        else:
            pid = start(folder, random.randint(1, writes), modes[-1] == "half")
        if wait(pid):
            compare()
            finished += 1
            folder = base / f"run-{finished}"
            continue
        modes.pop()
        found = whole(folder)
        assert all(reference[name] == content for name, content in found.items()), "another answer"
        reached.append(round(len(found) / len(reference), 2))
    assert wait(start(folder))
    compare()
    counts = {"delayed": delayed, "in writes": in_writes, "finished": finished + 1, "runs": runs}
    print(json.dumps({**counts, "reached": sorted(reached)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
