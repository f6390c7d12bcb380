"""Threads that share everything, a long soak, and the sanitizers."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import flowinv_fast as ff

from .engine import Campaign, Report, Wrong
from .problems import SHAPES, flow_of

THREADS, EACH = 8, 50
_GROWTH = 24  # megabytes that a soak may gain after its first part
_CHECK = 200  # solves between looks at memory and files


def problems() -> list[Callable[[], ff.Reconstruction]]:
    """Solves that share flows, operators, noise models and measurements."""
    random_ = torch.Generator().manual_seed(0)
    uniform = lambda *shape: torch.rand(shape, generator=random_)
    shape, flow = SHAPES[0], flow_of(SHAPES[0], torch.float32)
    flow.eval().requires_grad_(True)
    y, six = uniform(3, *shape), torch.sign(uniform(3, 6) - 0.5)
    one_bit = ff.operators.SignSensing(6, shape)
    by_image = ff.operators.Scale(0.5 + uniform(3, 1, 1, 1))
    waves, law = ff.noise.Sinusoidal(0.3), ff.noise.FlowNoise(flow, 0.5)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((y, by_image, flow, ff.noise.Gaussian(0.1 + uniform(3, 1, 1, 1))), {}),
        ((six, one_bit, flow, ff.noise.Gaussian(0.3)), {"strategy": "annealed"}),
        ((y, ff.operators.Identity(), flow.freeze(), waves), {"objective": "map-image"}),
        ((y, ff.operators.Blur(torch.full((3, 3), 1 / 9)), flow, law), {}),
        ((y[:2], ff.operators.Inpaint((uniform(2, *shape) > 0.3).float()), flow, waves), {}),
        ((y, ff.operators.Identity(), flow, ff.noise.Radial(0.2)), {"strategy": "lbfgs"}),
    ]
    options = {"steps": 6, "progress": False}
    return [lambda g=g, o=o: ff.reconstruct(*g, **options, **o) for g, o in given]


def alike(found: ff.Reconstruction, wanted: ff.Reconstruction) -> bool:
    """Whether two results are the same bits."""
    return torch.equal(found.x, wanted.x) and torch.equal(found.loss, wanted.loss)


def threads(report: Report, seed: int, size: int, work: Path) -> None:
    """Eight threads on shared objects; every solve equals that of one thread alone."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)  # the pool of our kernels is shared, too
    solves = problems()
    wanted = [solve() for solve in solves]
    count, lock = max(1, size // THREADS), threading.Lock()

    def worker(number: int) -> None:
        draw = random.Random(seed + number)
        for _ in range(count):
            which = draw.randrange(len(solves))
            wrong = ""
            try:
                if not alike(solves[which](), wanted[which]):
                    wrong = f"another result in a thread\nproblem {which}"
            except BaseException:
                wrong = f"an exception in a thread\n{traceback.format_exc()}"
            with lock:
                if wrong:
                    report.tell(wrong.split("\n")[0], wrong)
                else:
                    report.count("right")

    running = [threading.Thread(target=worker, args=(i,)) for i in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def soak(report: Report, seed: int, size: int, work: Path) -> None:
    """The same solves over and over: numbers, memory and open files stay as they were."""
    warnings.simplefilter("ignore")
    solves = problems()
    wanted = [solve() for solve in solves]
    first: tuple[float, int] | None = None
    for number in range(size):
        with report.case():
            which = number % len(solves)
            if not alike(solves[which](), wanted[which]):
                raise Wrong(f"another result: problem {which} after {number} solves")
            if number % _CHECK == _CHECK - 1:
                gc.collect()
                now = resident(), len(os.listdir("/proc/self/fd"))
                first = first or now
                if now[0] - first[0] > _GROWTH:
                    raise Wrong(f"memory grows: {first[0]:.0f} to {now[0]:.0f} MB, {number} solves")
                if now[1] > first[1]:
                    raise Wrong(f"files stay open: {first[1]} to {now[1]}")


def sanitize(report: Report, seed: int, size: int, work: Path) -> None:
    """``make sanitize``: a case is a test."""
    script = Path(__file__).parent.parent / "sanitize.py"
    quick = ["python_tests/ops/test_ops.py", "-k", "twin"] if size == 1 else []
    done = subprocess.run([sys.executable, str(script), *quick], capture_output=True, text=True)
    try:
        counts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        report.tell("no sanitized build", done.stdout[-700:] + done.stderr[-700:])
        return
    report.count("right", counts["passed"])
    for _ in range(counts["failed"]):
        report.tell("found by a sanitizer", done.stdout)


CAMPAIGNS = [
    Campaign("threads", "threads, 8 x 50 solves", 400, 8, 10.0, threads, 400, 300),
    Campaign("soak", "soak, the same solves for 30 minutes", 10**6, 12, 10**6 / 1800, soak, 10**6),
    Campaign("sanitize", "tests under sanitizers", 2, 0, 0.002, sanitize, 2, 3600, once=True),
]
