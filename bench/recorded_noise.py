"""Noise learnt from recordings, and removed from images that were not seen: the example of
docs/noise.md at full size.

    python bench/recorded_noise.py [--frames 500] [--images 32] [--folder FOLDER]

Frames have stripes (every row its own offset), readout noise, and glitches: runs of 3 to 11 pixels
in a row that are too bright or too dark. A law is learnt from them by ``train_noise``, the call
behind ``flowinv-fast train --kind noise``; then y = x + a fresh frame is solved by ``reconstruct``
without options, for test images of Fashion-MNIST, beside BM3D, a Wiener filter that has the
measured spectrum of the noise and the covariance of training images, and MAP under the closed
forms. What is a baseline's to choose is chosen on other images. Writes bench/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from harness import conditions, write
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast.data import load_images
from flowinv_fast.training.noise import train_noise

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "fashion-mnist"
SHAPE = (1, 28, 28)
STRIPES, READOUT = 0.08, 0.02
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # times the noise level, for BM3D
TUNING, REPORT = 200, 300  # first images of the test set; neither are among the shipped ones


def record(count: int, generator: torch.Generator) -> Tensor:
    """Frames (count, 1, 28, 28) of noise."""
    height, width = SHAPE[1:]
    rows = STRIPES * torch.randn(count, 1, height, 1, generator=generator)
    frames = rows + READOUT * torch.randn(count, *SHAPE, generator=generator)
    uniform = lambda low, high, size: torch.randint(low, high, size, generator=generator)
    for frame, glitches in zip(frames[:, 0], uniform(3, 9, (count,)).tolist()):
        for row, length in zip(uniform(0, height, (glitches,)), uniform(3, 12, (glitches,))):
            start = int(uniform(0, width - int(length) + 1, (1,)))
            size, sign = 0.3 + 0.5 * torch.rand(2, generator=generator)
            frame[row, start : start + int(length)] += size if sign < 0.55 else -size
    return frames


def wiener(y: Tensor, law: ff.noise.StationaryGaussian, images: Tensor) -> Tensor:
    """The linear estimate of least mean squared error: mean + C_x (C_x + C_n)^-1 (y - mean)."""
    flat = images.flatten(1).double()
    mean, covariance = flat.mean(0), flat.T.cov()
    unit = torch.eye(flat.shape[1], dtype=torch.float64).view(-1, *SHAPE)
    noise_mean = law.colour(torch.zeros(1, *SHAPE, dtype=torch.float64))
    root = (law.colour(unit) - noise_mean).flatten(1)
    gain = torch.linalg.solve(covariance + root.T @ root, covariance)
    delta = (y.double() - noise_mean).flatten(1) - mean
    return (mean + delta @ gain).view(y.shape).float()


def solved(y: Tensor, flow: str, law: object) -> Tensor:
    """A call without options."""
    prior = ff.load_flow(flow)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        return ff.reconstruct(y, ff.operators.Identity(), prior, law, progress=False).x


if not hasattr(np, "trapz"):  # which bm3d 4.0.3 calls, and numpy 2.4 no longer has
    np.trapz = np.trapezoid


def filtered(y: Tensor, level: float | np.ndarray) -> Tensor:
    """BM3D under white noise of a standard deviation, or under noise of a spectrum."""
    from bm3d import bm3d

    return torch.stack([torch.from_numpy(bm3d(image[0].numpy(), level))[None] for image in y])


def levels(found: ff.noise.NoiseFit) -> dict[str, float | np.ndarray]:
    """What BM3D is told: a number, or the variance of every coefficient of the plain transform."""
    power = found.models["stationary-gaussian"].power[0].double().numpy()
    return {
        "BM3D": float(found.models["gaussian"].std),
        "BM3D, measured spectrum": power * power.size,
    }


def tuned(y: Tensor, x: Tensor, level: float | np.ndarray) -> float:
    """The factor on the noise level that is best on tuning images."""
    scaled = lambda f: level * (f if isinstance(level, float) else f**2)
    score = lambda f: ff.metrics.psnr(filtered(y, scaled(f)).float().clamp(0, 1), x).mean()
    return max(FACTORS, key=score)


def ways(found: ff.noise.NoiseFit, y: Tensor, factors: dict[str, float]) -> dict[str, Tensor]:
    """Every estimate (B, C, H, W) by its name."""
    told = levels(found)
    white, coloured = told["BM3D"], told["BM3D, measured spectrum"]
    closed = next(s.name for s in found.table if s.name != "flow")
    training = load_images(DATA / "train-images-idx3-ubyte.gz")[:5000].float() / 255
    return {
        "ours: learnt law": solved(y, "fashion-28", found.models["flow"]),
        "ours: learnt law, TarFlow": solved(y, "fashion-28-tarflow", found.models["flow"]),
        f"MAP, {closed}": solved(y, "fashion-28", found.models[closed]),
        "MAP, Gaussian": solved(y, "fashion-28", found.models["gaussian"]),
        "BM3D": filtered(y, factors["BM3D"] * white),
        "BM3D, measured spectrum": filtered(y, factors["BM3D, measured spectrum"] ** 2 * coloured),
        "Wiener, measured spectrum": wiener(y, found.models["stationary-gaussian"], training),
        "measurement": y,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="bench/partial/recorded-noise")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(given.seed)
    frames = record(given.frames, random)
    started = time.perf_counter()
    found, check = train_noise(frames, given.folder, seed=given.seed, progress=False)
    seconds = time.perf_counter() - started
    print(found, check, sep="\n")
    test = load_images(DATA / "t10k-images-idx3-ubyte.gz").float() / 255
    tuning, x = test[TUNING : TUNING + 8], test[REPORT : REPORT + given.images]
    noisy = tuning + record(len(tuning), random)
    factors = {name: tuned(noisy, tuning, level) for name, level in levels(found).items()}
    y = x + record(len(x), random)
    psnr = {
        name: ff.metrics.psnr(estimate.float().clamp(0, 1), x).tolist()
        for name, estimate in ways(found, y, factors).items()
    }
    facts = {"frames": given.frames, "seed": given.seed, "training seconds": round(seconds)}
    facts |= {"images": len(x), "factors": factors, "check": check.message}
    table = json.loads((Path(given.folder) / "noise.json").read_text())["table"]
    result = {"conditions": conditions("cpu", **facts), "laws": table, "psnr": psnr}
    print(*(f"{name:<28} {sum(v) / len(v):.2f}" for name, v in psnr.items()), sep="\n")
    print(write("recorded_noise", result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
