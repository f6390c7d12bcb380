"""A photograph of 512 x 512 pixels under a prior of patches, beside total variation and BM3D.

    python bench/any_size.py --flow photo-patch-16-tarflow [--size 512] [--problem rows mask]

One colour photograph that no prior has seen, y = x + noise whose standard deviation is exp(sin) of
height 0.2 along the rows, and half of the pixels masked under noise of 0.02. Solved by one call,
at the weights of the prior that are told (1 is the default); total variation has the weight that is
best for this very picture, BM3D the level of this very noise. Time is that of each way (of total
variation with the choice of its weight), and memory the most that the process has had so far.
Writes bench/results/.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import conditions, write
from PIL import Image
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.reconstruction.objectives import Terms, log_noise_of
from flowinv_fast.reconstruction.solvers import minimise

PHOTOGRAPHS = Path(__file__).parent.parent.parent / "shared" / "data" / "photos" / "test"
WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of total variation


def photograph(name: str, size: int) -> Tensor:
    """The centre of a picture, (1, 3, size, size)."""
    (path,) = PHOTOGRAPHS.glob(f"{name}.*")
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
    top, left = ((n - size) // 2 for n in pixels.shape[1:])
    return pixels[None, :, top : top + size, left : left + size].contiguous()


def problems(x: Tensor) -> dict[str, tuple]:
    """Operator and law by name."""
    random = torch.Generator().manual_seed(0)
    kept = torch.rand(1, *x.shape[2:], generator=random) < 0.5
    return {
        "rows": (operators.Identity(), noise.Sinusoidal(0.2, form="exp")),
        "mask": (operators.Inpaint(kept.float()), noise.Gaussian(0.02)),
    }


def roughness(x: Tensor) -> Tensor:
    """Isotropic total variation over all channels, rounded a little at zero, (B,)."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    across = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    return (down.square() + across.square()).sum(1).add(1e-6).sqrt().flatten(1).sum(1)


def total_variation(y: Tensor, operator: Callable, law: object, start: Tensor, weight: float):
    """argmin of -log p_noise(y - f(x)) + weight TV(x)."""

    def evaluate(x: Tensor) -> Terms:
        fit, rough = log_noise_of(law, y, operator(x)), roughness(x)
        return Terms(weight * rough - fit, fit, -rough)

    return minimise(evaluate, start, steps=300, lr=0.05).best


def bm3d(y: Tensor, x: Tensor) -> Tensor:
    """BM3D by its authors at the true level, for colour."""
    from bm3d import bm3d_rgb

    level = float((y - x).std())
    pixels = y[0].permute(1, 2, 0).double().numpy()
    return torch.from_numpy(np.asarray(bm3d_rgb(pixels, level))).permute(2, 0, 1)[None].float()


def ways(
    betas: list[float],
    prior: ff.PatchPrior,
    y: Tensor,
    x: Tensor,
    operator: Callable,
    law: object,
) -> dict[str, Callable[[], Tensor]]:
    """What gives an estimate, by name."""
    start, denoising = operator.guess(y), isinstance(operator, operators.Identity)
    score = lambda w: ff.metrics.psnr(total_variation(y, operator, law, start, w), x).item()

    def ours(beta: float) -> Tensor:
        goal = ff.MAP(beta)
        return ff.reconstruct(y, operator, prior, law, objective=goal, progress=False).x

    found = {
        **{f"ours, beta = {beta:g}": partial(ours, beta) for beta in betas},
        "total variation": lambda: total_variation(
            y, operator, law, start, max(WEIGHTS, key=score)
        ),
    }
    return {**found, "BM3D": lambda: bm3d(y, x)} if denoising else found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", required=True, help="of patches, a name or a file")
    parser.add_argument("--picture", default="squirrel_cls")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--problem", nargs="+", default=["rows", "mask"])
    parser.add_argument("--beta", nargs="+", type=float, default=[1.0, 0.5])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    flow, x = ff.load_flow(given.flow), photograph(given.picture, given.size)
    prior, rows = ff.PatchPrior(flow), []
    warnings.simplefilter("ignore", ff.ResultWarning)
    for name in given.problem:
        operator, law = problems(x)[name]
        y = ff.measure(x, operator, law, torch.Generator().manual_seed(1))
        for way, call in ways(given.beta, prior, y, x, operator, law).items():
            started = time.perf_counter()
            psnr = ff.metrics.psnr(call().clamp(0, 1), x).item()
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            row = {"problem": name, "way": way, "psnr": round(psnr, 3)}
            rows.append({**row, "seconds": round(seconds, 1), "peak_gb_so_far": round(peak, 2)})
            print(rows[-1], flush=True)
    facts = {"flow": given.flow, "info": flow.info, "picture": given.picture, "size": given.size}
    print(write("any_size", {"conditions": conditions("cpu", seed=0, **facts), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
