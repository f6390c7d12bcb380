"""kill -9 at any moment: what is there is whole, and a run that goes on gives the same bits.

Half of a campaign's kills fall after a random delay, the others inside a write: half of the
temporary is there, or it has just taken its file's place. A run goes on in its folder, killed again
and again, until it ends; then its folder is compared with that of a run which nobody stopped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import flowinv_fast as ff
from flowinv_fast.generators.nets import GeneratorConfig
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer
from flowinv_fast.training.generator import GeneratorTrainConfig, GeneratorTrainer

from .engine import Campaign, Report, Wrong

Content = dict[str, object]


@dataclass(frozen=True)
class Job:
    """A run that can be killed.

    Args:
        run: the work, in a folder where it may have been begun before.
        content: what a folder holds, by file, times left out; fails on a file that is not whole.
        steady: whether what a killed run has left is part of what a whole run leaves.
        prepare: once, before the forks.
    """

    run: Callable[[Path], None]
    content: Callable[[Path], Content]
    steady: bool = False
    prepare: Callable[[], None] = lambda: None


def start(job: Job, folder: Path, at_write: int = 0, half: bool = False) -> int:
    """A child that does the job; one that kills itself at its n-th write, if told to."""
    folder.mkdir(parents=True, exist_ok=True)  # here: a kill may fall before the child's first line
    from kill_runs import forked

    return forked(lambda: job.run(folder), folder, at_write, half)


def ended(pid: int) -> bool:
    """Whether the child came to its end; one that failed is wrong."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise Wrong(f"a run that goes on failed: {status}")
    return True


def attack(job: Job, report: Report, seed: int, kills: int, work: Path) -> None:
    """Kill a job so many times."""
    torch.set_num_threads(1)
    job.prepare()
    draw, base = random.Random(seed), work / "kills"
    shutil.rmtree(base, ignore_errors=True)
    (base / "warm").mkdir(parents=True)
    job.run(base / "warm")  # here, so that no fork has to import or read what this has
    began = time.perf_counter()
    ended(start(job, base / "reference"))
    seconds = time.perf_counter() - began
    reference, writes = job.content(base / "reference"), int((base / "writes").read_text())
    done = pending = number = 0
    while done < kills:
        folder = base / f"run-{number}"
        try:
            finished = _killed_once(job, folder, draw, seconds, writes)
            found = job.content(folder)
            if finished:
                _compare(reference, found, folder, base / "reference")
                report.count("right", pending)
                pending, number = 0, number + 1
                shutil.rmtree(folder)
                continue
            pending, done = pending + 1, done + 1
            if job.steady and any(reference.get(k, v) != v for k, v in found.items()):
                raise Wrong("another answer in a killed run")
        except Exception as error:
            kind = str(error).split(":")[0] if isinstance(error, Wrong) else "not whole"
            report.tell(kind, traceback.format_exc())
            report.count("right", max(0, pending - 1))
            pending, number, done = 0, number + 1, max(1, done)
    if pending:
        try:
            ended(start(job, folder))
            _compare(reference, job.content(folder), folder, base / "reference")
            report.count("right", pending)
        except Exception:
            report.tell("another result", traceback.format_exc())


def _killed_once(job: Job, folder: Path, draw: random.Random, seconds: float, writes: int) -> bool:
    """Start the job and kill it; whether it had ended before."""
    if draw.random() < 0.5:
        pid = start(job, folder)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    else:
        pid = start(job, folder, draw.randint(1, writes), draw.random() < 0.5)
    return ended(pid)


def _compare(reference: Content, found: Content, folder: Path, whole: Path) -> None:
    """Raise Wrong where two runs' folders differ."""
    if found.keys() != reference.keys():
        raise Wrong(f"other files: {found.keys() ^ reference.keys()}")
    for name, content in reference.items():
        if found[name] != content:
            raise Wrong(f"another result: {name}")
    names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (folder, whole)]
    if names[0] != names[1]:
        raise Wrong(f"something left behind: {names[0] ^ names[1]}")


# --- the jobs -------------------------------------------------------------------------------------


def timeless(value: object) -> object:
    """JSON without times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return list(map(timeless, value)) if isinstance(value, list) else value


def tensors(path: Path) -> object:
    """What a safetensors file holds: its header without times, and the bytes of its tensors."""
    with safe_open(path, framework="np") as file:
        header = {k: timeless(json.loads(v)) for k, v in (file.metadata() or {}).items()}
        return header, {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def trained(folder: Path) -> Content:
    """Files of a training; of the log, what stands there in words of JSON."""
    found: Content = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" and ".tmp" not in path.name:
            found[path.name] = tensors(path)
        elif path.name == "log.jsonl":
            lines = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
            found[path.name] = sorted({json.dumps(line) for line in lines})
        elif path.suffix == ".png" and ".tmp" not in path.name:
            found[path.name] = path.read_bytes()
    return found


def images(count: int) -> torch.Tensor:
    """uint8 images that are the same in every process."""
    random_ = np.random.default_rng(0)
    return torch.from_numpy(random_.integers(0, 256, (count, 1, 8, 8), np.uint8))


def train_flow(folder: Path) -> None:
    config = ff.RealNVPConfig((1, 8, 8), scales=2, hidden=4, blocks=0)
    how = FlowTrainConfig(epochs=3, batch=8, warmup=2)
    trainer = FlowTrainer(config, how, images(32), images(8), folder, progress=False)
    trainer.run(save_minutes=0.0)


def train_generator(folder: Path) -> None:
    config = GeneratorConfig((1, 8, 8), "vae", 2, 4)
    how = GeneratorTrainConfig(epochs=3, batch=8)
    trainer = GeneratorTrainer(config, how, images(32), None, folder, progress=False)
    trainer.run(save_minutes=0.0)


def save_flows(folder: Path) -> None:
    """Two flows by turns under one name; the second stays."""
    for turn in range(8):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(turn % 2)
            flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1))
        ff.save_flow(flow, folder / "flow.safetensors", {"turn": turn % 2})


def save_results(folder: Path) -> None:
    """The same with results."""
    flow = ff.realnvp(ff.RealNVPConfig((1, 4, 4), scales=1, hidden=2, blocks=0))
    given = (torch.full((2, 1, 4, 4), 0.5), ff.operators.Identity(), flow, ff.noise.Gaussian(0.1))
    options = {"steps": 2, "progress": False, "strategy": "adam"}
    found = [ff.reconstruct(*given, seed=s, start="draw", **options) for s in (0, 1)]
    for turn in range(20):
        found[turn % 2].save(folder / "found.safetensors")


def saved(folder: Path) -> Content:
    """Every file under its own name, which is read through."""
    names = ("flow.safetensors", "found.safetensors")
    return {n: tensors(folder / n) for n in names if (folder / n).exists()}


def _reproduction() -> Job:
    """kill_runs.py of the tests, whose configuration is small."""
    import kill_runs

    return Job(
        lambda folder: kill_runs.runner.reproduce(kill_runs.CONFIG, folder, False),
        kill_runs.whole,
        True,
        kill_runs.make_cheap,
    )


JOBS: dict[str, tuple[str, float, Callable[[], Job]]] = {
    "kill-train": ("kills of a flow's training", 1.5, lambda: Job(train_flow, trained)),
    "kill-generator": ("kills of a generator's", 2.0, lambda: Job(train_generator, trained)),
    "kill-reproduce": ("kills of `reproduce`", 1.0, _reproduction),
    "kill-save-flow": ("kills of `save_flow`", 4.0, lambda: Job(save_flows, saved)),
    "kill-save": ("kills of `Reconstruction.save`", 4.0, lambda: Job(save_results, saved)),
}


def campaign(name: str) -> Campaign:
    """The campaign of a job."""
    title, rate, make = JOBS[name]
    run = lambda report, seed, size, work: attack(make(), report, seed, size, work)
    return Campaign(name, title, 200, 2, rate, run, batch=40, limit=240)


CAMPAIGNS = [campaign(name) for name in JOBS]
