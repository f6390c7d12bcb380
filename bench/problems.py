"""Everyday inverse problems: the call of ``reconstruct`` without options against its settings.

    python bench/problems.py --data FOLDER [--kinds grey colour] [--only PROBLEM ...]
                             [--ways WAY ...] [--images N] [--steps N] [--tuning] [--quick]

FOLDER holds fashion-mnist/ and mnist/ (IDX files) and photos/test/. Every problem is solved by the
call without options, by named settings, and by others' methods: total variation under the same law
of the noise, BM3D, Wiener, and MAP that believes the noise to be Gaussian of its true mean and
standard deviation. The weight of total variation is chosen on other images; ``--tuning`` runs all
of it on those, which defaults are chosen on. ``--quick`` is two images and 20 steps. Every cell is
kept in bench/partial/, by commit, so that a run that was cut goes on; the JSON is written anew
after every problem.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from harness import conditions, write
from problem_set import FIRST, FLOWS, PHOTOGRAPHS, SHAPES, Problem, images, problems
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast import baselines, metrics
from flowinv_fast.data import load_images
from flowinv_fast.reconstruction.objectives import OBJECTIVES, Terms, log_noise_of
from flowinv_fast.reconstruction.result import plain
from flowinv_fast.reconstruction.solvers import minimise
from flowinv_fast.reconstruction.strategies import STRATEGIES

PARTIAL = Path(__file__).parent / "partial"
SEED = 0
# Options of ``reconstruct`` by name. Those of NAMED are settings that have a name; a smaller beta
# is a weight, and another model: shown beside them.
_named = lambda objective, strategy: {"objective": objective, "strategy": strategy}
NAMED: dict[str, dict] = {
    "map-image": _named("map-image", "adam"),
    "map-image, tempered": _named("map-image", "tempered"),
    "map-image, annealed": _named("map-image", "annealed"),
    "map-image, lbfgs": _named("map-image", "lbfgs"),
    "map-image, latent-first": _named("map-image", "latent-first"),
    "map": _named("map", "adam"),
}
WEIGHTED: dict[str, dict] = {
    f"beta {beta:g}": {"objective": ff.MAP(beta, "image")} for beta in (0.5, 0.25)
}
WAYS = {"default": {}, **NAMED, **WEIGHTED}
TV_WEIGHTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
GAUSSIAN, TV, BM3D, WIENER = "Gaussian MAP", "TV, same law", "BM3D", "Wiener"
OTHERS = (GAUSSIAN, TV, BM3D, WIENER)
# The call without options under another prior.
OTHER_PRIOR, OTHER_FLOWS = "default, other prior", {"grey": "fashion-28-tarflow"}


@dataclass
class Case:
    """A problem with measurements of true images (B, C, H, W)."""

    kind: str
    problem: Problem
    truth: Tensor

    @cached_property
    def y(self) -> Tensor:
        return self.problem.measure(self.truth, SEED)

    @cached_property
    def law(self):
        """The law of the noise, its flow frozen."""
        law = self.problem.law
        return law.freeze() if hasattr(law, "freeze") else law

    @cached_property
    def picture(self) -> Tensor | None:
        return None if self.problem.picture is None else self.problem.picture(self.y)

    @cached_property
    def level(self) -> tuple[float, float]:
        """True mean and standard deviation of the noise in these measurements."""
        residual = self.y - self.problem.operator(self.truth)
        return residual.mean().item(), residual.std().item()

    def psnr(self, x: Tensor) -> list[float]:
        return [round(value, 4) for value in metrics.psnr(x, self.truth).tolist()]


# --- others' methods: images, or in words why there are none --------------------------------------


def roughness(x: Tensor) -> Tensor:
    """Isotropic total variation over all channels, rounded a little at zero, (B,)."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    across = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    return (down.square() + across.square()).sum(1).add(1e-6).sqrt().flatten(1).sum(1)


def total_variation(case: Case, weight: float, steps: int = 200) -> Tensor:
    """argmin of -log p_noise(y - f(x)) + weight TV(x), by Adam from the picture, or from grey."""
    start = torch.full_like(case.truth, 0.5) if case.picture is None else case.picture.clamp(0, 1)

    def evaluate(x: Tensor) -> Terms:
        fit = log_noise_of(case.law, case.y, case.problem.operator(x))
        rough = roughness(x)
        return Terms(weight * rough - fit, fit, -rough)

    return minimise(evaluate, start, steps=steps, lr=0.05).best


def block_matching(case: Case) -> Tensor | str:
    """BM3D by its authors, on the picture less the mean of the noise."""
    if not case.problem.denoising or case.picture is None:
        return "a denoiser"
    try:
        from bm3d import bm3d, bm3d_rgb
    except ImportError:
        return "not installed: pip install bm3d"
    mean, std = case.level
    scale = float(case.problem.picture(torch.ones(1, 1, 1, 1)).mean())
    denoise, found = bm3d_rgb if case.kind == "colour" else bm3d, []
    for picture in case.picture - scale * mean:
        pixels = picture.permute(1, 2, 0).double().numpy()
        result = np.asarray(denoise(pixels, scale * std)).reshape(pixels.shape)
        found.append(torch.from_numpy(result).permute(2, 0, 1).float())
    return torch.stack(found)


def wiener(case: Case, data: Path) -> Tensor | str:
    """With the mean and the covariance of 2,000 training images."""
    if not case.problem.linear:
        return "needs a linear operator"
    if case.kind == "colour":
        return "a covariance of 12,288 pixels"
    path = data / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    some = load_images(path, SHAPES["grey"])[:2000].float() / 255
    mean, std = case.level
    known = torch.tensor(std) if case.problem.std is None else case.problem.std
    return baselines.wiener(case.y, case.problem.operator, some, known, mean)


# --- cells ----------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The cells of a run, each computed once and kept in a file."""

    folder: Path
    data: Path
    count: int
    steps: int | None
    chosen: str

    def kept(self, key: str, compute: Callable[[], dict]) -> dict:
        """A cell, from its file if it is there."""
        path = self.folder / ("-".join(key.replace(",", "").split()) + ".json")
        if path.exists():
            return json.loads(path.read_text())
        started = time.perf_counter()
        found = {**compute(), "seconds": round(time.perf_counter() - started, 1)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, path)
        said = f"{np.mean(found['psnr']):.2f} dB" if "psnr" in found else found["absent"]
        print(f"{key:<48} {said:>10} {found['seconds']:7.1f} s", flush=True)
        return found

    def cases(self, kind: str, chosen: str) -> dict[str, Case]:
        truth, digits = images(kind, chosen, self.count, self.data)
        return {name: Case(kind, p, truth) for name, p in problems(kind, digits).items()}

    def solved(self, case: Case, options: dict, law=None, prior: str = "") -> dict:
        """A call of ``reconstruct``."""
        steps = {"steps": self.steps} if self.steps else {}
        law = case.problem.law if law is None else law
        flow = ff.load_flow(prior or FLOWS[case.kind])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ff.reconstruct(
                case.y, case.problem.operator, flow, law, progress=False, **steps, **options
            )
        loss = [round(value, 2) for value in found.loss.tolist()]
        return {"psnr": case.psnr(found.x), "loss": loss, "config": found.config}

    def other(self, name: str, case: Case, tuning: Case) -> dict:
        """Another's method, or another prior."""
        if name == OTHER_PRIOR:
            absent = {"absent": "none is shipped"}
            prior = OTHER_FLOWS.get(case.kind)
            return self.solved(case, {}, prior=prior) if prior else absent
        if name == GAUSSIAN:
            if isinstance(case.problem.law, ff.noise.Gaussian) and case.problem.std is None:
                return {"absent": "the noise is Gaussian"}
            mean, std = case.level
            return self.solved(case, {}, ff.noise.Gaussian(std, mean))
        if name == TV:
            weights = (4.0, 16.0) if hasattr(case.problem.law, "freeze") else TV_WEIGHTS
            score = lambda weight: float(np.mean(tuning.psnr(total_variation(tuning, weight))))
            best = max(weights, key=score)
            return {"psnr": case.psnr(total_variation(case, best)), "weight": best}
        found = block_matching(case) if name == BM3D else wiener(case, self.data)
        return {"absent": found} if isinstance(found, str) else {"psnr": case.psnr(found)}

    def cell(self, way: str, kind: str, name: str, case: Case, tuning: Case) -> dict:
        """A problem solved in one way."""
        solve = lambda: self.solved(case, WAYS[way])
        compare = lambda: self.other(way, case, tuning)
        key = f"{self.chosen} {self.count} {self.steps or 'own'} {kind} {name} {way}"
        return self.kept(key, solve if way in WAYS else compare)

    def row(self, kind: str, name: str, ways: list[str], case: Case, tuning: Case) -> dict:
        """All cells of a problem that are wanted."""
        cells: dict[str, dict] = {}
        for way in ways:
            if way in NAMED and "default" in cells and is_default(way, cells["default"]):
                cells[way] = {**cells["default"], "same_as": "default"}
            else:
                cells[way] = self.cell(way, kind, name, case, tuning)
        row = {"kind": kind, "problem": name, "title": case.problem.title, "cells": cells}
        if case.picture is not None:
            row["input"] = case.psnr(case.picture)
        with torch.no_grad():
            prior, operator = ff.load_flow(FLOWS[kind]), case.problem.operator
            terms = ff.MAP().evaluate(case.y, operator, prior, case.law, case.truth)
        return {**row, "loss_of_truth": [round(value, 2) for value in terms.loss.tolist()]}


def is_default(way: str, cell: dict) -> bool:
    """Whether a named setting is what the call without options did."""
    goal, strategy = OBJECTIVES[NAMED[way]["objective"]], STRATEGIES[NAMED[way]["strategy"]]
    config = cell["config"]
    named = config["objective"] == {"name": goal.name, **plain(goal)}
    return named and config["strategy"] == plain(strategy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["default", *NAMED, *WEIGHTED, OTHER_PRIOR, *OTHERS]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=list(FLOWS), default=list(FLOWS))
    parser.add_argument("--only", nargs="+", metavar="PROBLEM")
    parser.add_argument("--ways", nargs="+", choices=names, default=names, metavar="WAY")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of every solve; default: the call's own")
    parser.add_argument("--tuning", action="store_true", help="on the images to choose on")
    parser.add_argument("--quick", action="store_true", help="two images, 20 steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", help="folder of the JSON; default: bench/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, steps = (2, 20) if arguments.quick else (arguments.images, arguments.steps)
    chosen = "tuning" if arguments.tuning else "report"
    where = conditions(
        "cpu", dtype="float32", images=count, steps=steps, seed=SEED, set=chosen,
        first_test_image=FIRST[chosen], photographs=PHOTOGRAPHS[chosen], libraries=libraries(),
    )  # fmt: skip
    folder = PARTIAL / where["commit"]
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, arguments.data, count, steps, chosen)
    rows = []
    for kind in arguments.kinds:
        cases, tuning = bench.cases(kind, chosen), bench.cases(kind, "tuning")
        for name in arguments.only or cases:
            rows.append(bench.row(kind, name, arguments.ways, cases[name], tuning[name]))
            kind_of_file = "problems" if chosen == "report" else "problems_tuning"
            result = {"conditions": where, "rows": rows}
            path = write(kind_of_file, result, arguments.out, same_row=("kind", "problem"))
    print("wrote", path)


def libraries() -> dict[str, str]:
    """Versions of what others' methods come from."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"bm3d": version("bm3d")}
    except PackageNotFoundError:
        return {}


if __name__ == "__main__":
    main()
