"""Every allocation of a call fails in turn: an exception, no crash, and the next call right.

Two kinds are made to fail by csrc/tests/failing_allocator.cpp, which is preloaded: those that the
compiled module makes itself, and those of torch's tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import flowinv_fast as ff
from flowinv_fast import ops

from .engine import Campaign, Refused, Report, Wrong
from .problems import SHAPES, flow_of

MOST = 200  # allocations of a call that are made to fail
_SOURCE = Path(__file__).parents[2] / "csrc" / "tests" / "failing_allocator.cpp"
_PRELOADED = "FLOWINV_FAILING_ALLOCATOR"
Call = Callable[[], list[torch.Tensor]]


def preloaded() -> bool:
    """Whether this process has the library."""
    return _PRELOADED in os.environ


def preload(arguments: list[str]) -> int:
    """Run a command of Python's with the library preloaded; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "failing_allocator.so")
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ldl"]
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, str(_SOURCE), *flags, "-o", library], check=True)
        environment = {**os.environ, "LD_PRELOAD": library, _PRELOADED: "1"}
        return subprocess.run([sys.executable, *arguments], env=environment).returncode


def module_range() -> tuple[int, int]:
    """Addresses of the compiled module's code."""
    found: list[int] = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/_C" in line and "flowinv_fast" in line and " r-xp " in line:
            found += [int(word, 16) for word in line.split()[0].split("-")]
    return min(found), max(found)


@contextlib.contextmanager
def failing(k: int, tensors: bool) -> Iterator[Callable[[], int]]:
    """The k-th allocation of the block fails; gives a function that counts them."""
    library = ctypes.CDLL(None)
    library.failing_allocator_arm.argtypes = [ctypes.c_long, ctypes.c_size_t, ctypes.c_size_t]
    library.failing_allocator_seen.restype = ctypes.c_long
    first, last = (0, 0) if tensors else module_range()
    try:
        library.failing_allocator_arm(k, first, last)
        yield library.failing_allocator_seen
    finally:
        library.failing_allocator_arm(0, 1, 1)


def calls() -> dict[str, Call]:
    """Calls that give tensors, the same every time."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=random)
    shape, flow = SHAPES[0], flow_of(SHAPES[0], torch.float32)
    x, z, y = draw(5, *shape), draw(5, 16), draw(5, *shape)
    raw, gain, logdet = draw(5, 2, 4, 4), draw(1), draw(5)
    frozen = flow.freeze()

    def gradient() -> list[torch.Tensor]:
        leaf = z.clone().requires_grad_()
        image, log = frozen.decode(leaf)
        return [image.detach(), *torch.autograd.grad(image.sum() + log.sum(), leaf)]

    def solve(noise: object, **options: object) -> list[torch.Tensor]:
        same = ff.operators.Identity()
        found = ff.reconstruct(y, same, flow, noise, steps=2, progress=False, **options)
        return [found.x, found.loss]

    mask = "checkerboard_even"
    return {
        "coupling": lambda: list(ops.affine_coupling_encode(x, raw, gain, logdet, mask)),
        "density": lambda: [ops.gaussian_log_prob(x, y, torch.zeros(()), torch.ones(()))],
        "noise": lambda: [ops.gaussian_noise(0.0, torch.ones(()), (5, 1, 4, 4), 3)],
        "layout": lambda: [ops.squeeze(x), ops.random_bits(40, 1)],
        "freeze": lambda: list(flow.freeze().encode(x)),
        "encode": lambda: list(frozen.encode(x)),
        "gradient": gradient,
        "solve": lambda: solve(ff.noise.Gaussian(0.2)),
        "annealed": lambda: solve(ff.noise.FlowNoise(flow, 0.5)),
        "lbfgs": lambda: solve(ff.noise.Radial(0.5), strategy="lbfgs"),
    }


def cases(known: dict[str, Call]) -> Iterator[tuple[str, int, bool, int]]:
    """(call, k, whether of tensors, threads) for every allocation of every call."""
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for name, call in known.items():
            for tensors in (False, True):
                call()
                with failing(0, tensors) as seen:
                    call()
                    count = seen()
                yield from ((name, k, tensors, threads) for k in range(1, min(count, MOST) + 1))


def run(report: Report, seed: int, size: int, work: Path) -> None:
    """The first ``size`` cases: all of them in a full run."""
    warnings.simplefilter("ignore")
    known = calls()
    every = list(cases(known))
    step = max(1, len(every) // size)
    for name, k, tensors, threads in every[seed % step :: step]:
        torch.set_num_threads(threads)
        call = known[name]
        wanted = call()
        about = (
            f"{name}, allocation {k} of {'tensors' if tensors else 'the module'}, {threads} threads"
        )
        with report.case(lambda about=about: about):
            _fail(call, wanted, k, tensors)


def _fail(call: Call, wanted: list[torch.Tensor], k: int, tensors: bool) -> None:
    refused = False
    with failing(k, tensors):
        try:
            found = call()
        except (MemoryError, RuntimeError, ff.ArgumentError) as error:
            words = str(error).lower()
            if (
                not isinstance(error, MemoryError)
                and "alloc" not in words
                and "memory" not in words
            ):
                raise
            refused = True
    if not refused:
        _require_same(found, wanted, "another result where an allocation failed")
    _require_same(call(), wanted, "another result after an allocation failed")
    if refused:
        raise Refused


def _require_same(found: list[torch.Tensor], wanted: list[torch.Tensor], what: str) -> None:
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted)):
        raise Wrong(what)


CAMPAIGNS = [
    Campaign(
        "allocations", "failing allocations", 3_000, 40, 30.0, run, batch=3_000, limit=60, once=True
    )
]
