"""The ways to minimise the MAP loss, at equal numbers of flow evaluations, on real images.

    python bench/optimisation.py [--images FILE] [--digits FILE] [--tasks digits cs sinusoidal]

An evaluation is the loss and its gradient at one variable; restarts share them. For every task and
way: mean PSNR, the median gap between the loss found and that of the true image, and how many
solutions have a prior term that no held-out image comes near. Images and digits are drawn from the
given files (IDX or .npy, such as the training sets: not the test images of any table); without
them the shipped ones are taken. ``levels`` fine-tunes the prior at two larger smoothing levels
first and follows its posteriors from the smoothest to the sharpest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from harness import conditions, write
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast import strategies
from flowinv_fast.data import load_images, sample_images
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.datasets import GREY as SHAPE
from flowinv_fast.experiments.task import Inputs, Setting
from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.flows import Flow, build_flow
from flowinv_fast.reconstruction.diagnosis import beside_held_out
from flowinv_fast.reconstruction.solvers import minimise
from flowinv_fast.reconstruction.strategies import STRATEGIES

NAMES = {
    "digits": "digits",
    "cs": "cs-sinusoidal",
    "sinusoidal": "denoise-sinusoidal",
    "radial": "denoise-radial",
}


def preconditioned(y: Tensor, setting: Setting, flow, steps: int) -> Tensor:
    """Image-space MAP over u, x = x0 + P u, P the square root of a Gaussian posterior's covariance.

    P P^T = (A^T S^-1 A + I / t^2)^-1 with the noise's covariance S and pixels of spread t: the
    data term has condition one in u.
    """
    forward, adjoint = setting.linear
    spread, size = 0.3, math.prod(SHAPE)
    columns = forward(torch.eye(size).view(size, *SHAPE)).flatten(1).double()  # A^T
    whitened = columns / setting.std.double().expand(y[:1].shape).flatten()
    precision = whitened @ whitened.T + torch.eye(size, dtype=torch.float64) / spread**2
    values, vectors = torch.linalg.eigh(precision)
    root = (vectors * values.rsqrt() @ vectors.T / spread).float()
    start = adjoint(y).view(-1, *SHAPE).clamp(0, 1)
    image = lambda u: start + (u @ root).view(-1, *SHAPE)
    inner = partial(ff.MAP(1.0, "image").evaluate, y, setting.operator, flow, setting.noise)
    found = minimise(lambda u: inner(image(u)), torch.zeros(len(y), size), steps=steps, lr=0.1)
    return image(found.best)


def tuned(name: str, smoothing: float, images: Tensor, steps: int) -> Flow:
    """The shipped flow trained on at a larger smoothing level."""
    shipped = ff.load_flow(name)
    flow = build_flow(replace(shipped.config, smoothing=smoothing))
    flow.load_state_dict(shipped.state_dict())
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-4)
    order = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(images), (64,), generator=order)
        x = flow.dequantise(images[chosen].float() / 255, 0, step * 64 * math.prod(SHAPE))
        with torch.autocast("cpu", torch.bfloat16):
            loss = -flow.log_prob(x).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        optimiser.step()
    return flow.requires_grad_(False)


def ways(levels: list[Flow], steps: int) -> dict[str, Callable]:
    """Name to (y, setting, flow) -> images."""

    def solve(goal: str, **options) -> Callable:
        settings = {"strategy": "adam", "progress": False, "throw": False, **options}
        if goal == "map":
            settings["lr"] = 0.1

        def run(y: Tensor, setting: Setting, flow) -> Tensor:
            options = {"objective": goal, "steps": steps, **settings}
            return ff.reconstruct(y, setting.operator, flow, setting.noise, **options).x

        return run

    def follow(y: Tensor, setting: Setting, flow) -> Tensor:
        x: str | Tensor = "measurement"
        run = {"steps": steps // (len(levels) + 1), "progress": False, "throw": False}
        for prior in (*levels, flow):
            lr = 0.1 if isinstance(x, str) else 0.05
            options = {"objective": "map-image", "strategy": "adam", "start": x, "lr": lr, **run}
            x = ff.reconstruct(y, setting.operator, prior, setting.noise, **options).x
        return x

    image = lambda **options: solve("map-image", **options)
    halves = {"restarts": 2, "steps": steps // 2}
    found = {
        "latent, from zeros": solve("map", start="zeros"),
        "latent, from the measurement": solve("map"),
        "latent, four restarts": solve("map", restarts=4, steps=steps // 4),
        **{f"latent, {n}": solve("map", strategy=n) for n in ("lbfgs", "annealed")},
        "image, from zeros": image(start="zeros"),
        "image, from the measurement": image(),
        "image, four restarts": image(restarts=4, steps=steps // 4),
        **{f"image, {n}": image(strategy=n) for n in STRATEGIES if n != "adam"},
        "image, annealed, tempering 0.03": image(strategy=strategies.annealed(tempering=0.03)),
        "image, annealed, smoothing 0.2": image(strategy=strategies.annealed(0.2)),
        "image, annealed, lr 0.1": image(strategy="annealed", lr=0.1),
        "image, annealed, two restarts": image(strategy="annealed", **halves),
        "image, preconditioned": lambda y, setting, flow: preconditioned(y, setting, flow, steps),
    }
    if levels:
        found["image, smoothing levels 0.32, 0.16, 0.08"] = follow
    return found


def some(path: str | None, name: str, count: int, draw: torch.Generator) -> Tensor:
    """Images of a file, drawn; shipped ones without a file."""
    if path is None:
        return sample_images(name, count)
    pool = load_images(path, SHAPE)
    return pool[torch.randperm(len(pool), generator=draw)[:count]].float() / 255


def compared(setting: Setting, truth: Tensor, ways: dict[str, Callable]) -> Iterator[dict]:
    """A row for every way to solve a setting."""
    flow = ff.load_flow("fashion-28").freeze()
    y = setting.measurements(truth, list(range(len(truth))))
    objective = ff.MAP(1.0, "image")
    evaluate = partial(objective.evaluate, y, setting.operator, flow, setting.noise)
    least = setting.loss_of_truth(truth, y, flow)
    for way, run in ways.items():
        x = run(y, setting, flow)
        with torch.no_grad():
            terms = evaluate(x)
        psnr = ff.metrics.psnr(x, truth)
        over = beside_held_out(flow, terms.log_prior)[0]
        yield {
            "task": setting.title,
            "way": way,
            "psnr": psnr.mean().item(),
            "deviation": psnr.std().item(),
            "gap": (terms.loss - least).median().item(),
            "not_above": (terms.loss <= least).float().mean().item(),
            "overshoot": over.float().mean().item(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", help="IDX or .npy file of images; default: shipped ones")
    parser.add_argument("--digits", help="the same for digits")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200, help="evaluations")
    parser.add_argument("--level-steps", type=int, default=500, help="training steps of a level")
    parser.add_argument("--tasks", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    draw = torch.Generator().manual_seed(1)
    truth = some(arguments.images, "fashion-28", arguments.count, draw)
    digits = some(arguments.digits, "mnist-28", arguments.count, draw)
    levels = []
    if arguments.images and arguments.level_steps:
        pool = load_images(arguments.images, SHAPE)
        levels = [tuned("fashion-28", s, pool, arguments.level_steps) for s in (0.32, 0.16)]
    where = conditions(
        "cpu",
        images=arguments.count,
        evaluations=arguments.steps,
        seed=0,
        source="training images" if arguments.images else "shipped test images",
        level_steps=arguments.level_steps if levels else 0,
    )
    inputs = Inputs(DATASETS["fashion-28"], 0, digits)
    for name in arguments.tasks:
        setting = next(s for s in TASKS[NAMES[name]].build(inputs) if s.representative)
        for row in compared(setting, truth, ways(levels, arguments.steps)):
            print(*(f"{v:.2f}" if isinstance(v, float) else v for v in row.values()), flush=True)
            result = {"conditions": where, "rows": [row]}
            path = write("optimisation", result, same_row=("task", "way"))
    print("wrote", path)


if __name__ == "__main__":
    main()
