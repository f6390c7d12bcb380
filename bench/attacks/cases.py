"""Random calls of ``reconstruct``, valid and not, as a strategy of hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from helpers import strided
from hypothesis import strategies as st
from torch import Tensor, nn

import flowinv_fast as ff

from .problems import (
    BAD_NOISES,
    BAD_OPERATORS,
    BAD_PRIORS,
    FLOW_ONLY,
    NOISES,
    OPERATORS,
    PRIORS,
    SHAPES,
    Draws,
    Generator,
    Part,
    generator,
    raises,
)

_RANK = {"solve": 0, "either": 1, "refuse": 2}

# --- objectives and options -----------------------------------------------------------------------


OBJECTIVES: dict[str, Callable[[Draws], tuple[Any, Any]]] = {
    "map": lambda d: ("map", 1.0),
    "map-image": lambda d: ("map-image", 1.0),
    "mle": lambda d: ("mle", 0.0),
    "csgm": lambda d: ("csgm", 0.1),
    "asim-likelihood": lambda d: (ff.AsimLikelihood(0.3), 0.3),
    "asim-proxy": lambda d: (ff.AsimProxy(0.3), 0.3),
}
WEIGHTED: dict[str, Callable[[Tensor], Any]] = {
    "map": lambda w: ff.MAP(w),
    "map-image": lambda w: ff.MAP(w, space="image"),
    "csgm": lambda w: ff.CSGM(w),
    "asim-likelihood": lambda w: ff.AsimLikelihood(w),
    "asim-proxy": lambda w: ff.AsimProxy(w),
}
BAD_OPTIONS: dict[str, tuple[Any, ...]] = {
    "objective": ("MAP", "none", ff.MAP, 3, [ff.MAP()]),
    "strategy": ("sgd", ff.Strategy, 3, [ff.Stage()], ff.Stage()),
    "start": ("noise", 3, [1.0], torch.zeros(1), np.zeros((1, 16)), "zeros "),
    "steps": (0, -1, 2.5, "3", math.nan, True, [3], 1 + 2j),
    "lr": (0, -0.1, math.nan, math.inf, "0.1", [0.1], 1j),
    "restarts": (0, -1, 1.5, "2", True, None),
    "precision": ("fp8", 16, "FP32", torch.float32),
    "seed": (-1, 2**63, 1.5, "0", None, math.nan),
    "callback": (3, "print", [print]),
}


@dataclass
class Case:
    """A call of ``reconstruct`` and what it means."""

    y: Any
    operator: Part
    prior: Part
    noise: Part
    objective: str
    weight: Any
    options: dict[str, Any]
    draws: Draws
    expect: str = "solve"
    labels: list[str] = field(default_factory=list)
    mode: str = "plain"
    bad_rows: tuple[int, ...] = ()
    demand: str = ""  # the part that has to be refused

    def add(self, label: str, expect: str) -> None:
        """Another part, whose demand counts if it is stronger."""
        self.labels.append(label)
        if _RANK[expect] > _RANK[self.expect]:
            self.expect, self.demand = expect, label


MODES = ("inference", "no_grad", "autocast", "float64 by default", "threads")


class Sub(Tensor):
    """A subclass of a tensor."""


def _forms(y: Tensor) -> dict[str, tuple[Any, str]]:
    """Ways to hand over these measurements, each with what has to happen."""
    with torch.inference_mode():
        inference = y.clone()
    return {
        "strided": (strided(y), "solve"),
        "transposed": (y.transpose(0, -1).contiguous().transpose(0, -1), "solve"),
        "with gradients": (y.clone().requires_grad_(), "solve"),
        "parameter": (nn.Parameter(y.clone()), "either"),
        "subclass": (y.clone().as_subclass(Sub), "either"),
        "negative view": (torch._neg_view(-y), "either"),
        "inference": (inference, "either"),
        "numpy": (y.numpy(), "refuse"),
        "list": (y.tolist(), "refuse"),
        "None": (None, "refuse"),
        "integers": (y.long(), "refuse"),
        "bool": (y > 0, "refuse"),
        "float16": (y.half(), "refuse"),
        "bfloat16": (y.bfloat16(), "refuse"),
        "complex": (torch.complex(y, y), "refuse"),
        "scalar": (y.new_zeros(()), "refuse"),
        "flat": (y.flatten(), "refuse"),
        "one less": (y[..., :-1], "refuse"),
        "one more dimension": (y[:, None], "refuse"),
        "sparse": (y.to_sparse(), "refuse"),
        "meta": (y.to("meta"), "refuse"),
        "a class": (Tensor, "refuse"),
    }


def tampered(draw: Callable, y: Tensor, case: Case) -> None:
    """y in another form, or with values that cannot be."""
    how = draw(st.sampled_from([*_forms(y), "NaN", "infinite", "NaN, spared", "huge"]))
    rows = len(y)
    if how in ("NaN", "infinite", "NaN, spared", "huge") and rows:
        row = draw(st.integers(0, rows - 1))
        y = y.clone()
        y[row].view(-1)[0] = {"infinite": math.inf, "huge": 1e25}.get(how, math.nan)
        case.y = y
        if how == "NaN, spared":
            case.options["throw"] = False
        if how != "huge" and case.options.get("throw") is False:
            case.bad_rows, how = (row,), "NaN, spared"
        case.add(f"y {how}", {"huge": "either", "NaN, spared": "solve"}.get(how, "refuse"))
        return
    if how in _forms(y):
        case.y, expect = _forms(y)[how]
        if not rows and expect == "refuse":
            expect = "either"
        case.add(f"y {how}", expect)


@st.composite
def calls(draw: Callable) -> Case:
    """A call of ``reconstruct``."""
    rarely = lambda percent: draw(st.integers(0, 99)) < percent
    batch = draw(st.sampled_from([0, 1, 1, 2, 2, 3]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64]))
    seed = draw(st.integers(0, 2**31 - 1))
    generator_ = torch.Generator().manual_seed(seed)
    d = Draws(generator_, batch, draw(st.sampled_from(SHAPES)), dtype)
    name = draw(st.sampled_from([*OBJECTIVES]))
    objective, weight = OBJECTIVES[name](d)
    priors = [*PRIORS] if name in FLOW_ONLY else [*PRIORS, "generator"]
    which = draw(st.sampled_from(priors))
    prior = generator(d) if which == "generator" else PRIORS[which](d)
    bad = rarely(8)
    kind = draw(st.sampled_from([*(BAD_OPERATORS if bad else OPERATORS)]))
    operator = (BAD_OPERATORS if bad else OPERATORS)[kind](d)
    truth = d.uniform(batch, *d.shape).double()
    meaning = operator.meaning or (lambda x: x)
    y = meaning(truth)
    y = (y + 0.1 * d.normal(*y.shape).double()).to(dtype)
    bad_noise = rarely(8)
    law = draw(st.sampled_from([*(BAD_NOISES if bad_noise else NOISES)]))
    noise = (BAD_NOISES if bad_noise else NOISES)[law](d, tuple(y.shape))
    case = Case(y, operator, prior, noise, name, weight, {"objective": objective}, d)
    case.labels += [f"B {batch}", str(dtype), str(d.shape), name]
    case.add(f"prior {which}", prior.expect)
    emptied = lambda part: "either" if not batch and part.expect == "refuse" else part.expect
    case.add(f"operator {kind}", emptied(operator))
    needs = name in ("map", "map-image", "mle")
    case.add(f"noise {law}", emptied(noise) if needs else "solve")
    if rarely(5):
        which = draw(st.sampled_from([*BAD_PRIORS]))
        case.prior = BAD_PRIORS[which](d)
        quiet = which == "one density for all" and name not in FLOW_ONLY
        case.add(f"prior {which}", "either" if quiet or not batch else case.prior.expect)
    _options(draw, case, rarely)
    if rarely(12):
        tampered(draw, y, case)
    if rarely(6):
        case.mode = draw(st.sampled_from(MODES))
        case.add(case.mode, "either")
    return case


def _options(draw: Callable, case: Case, rarely: Callable[[int], bool]) -> None:
    """Weights, strategy, start and the rest."""
    d, options, name = case.draws, case.options, case.objective
    if name in WEIGHTED and rarely(30):
        per_image = rarely(50) and d.batch > 0
        weight = d.uniform(*([d.batch] if per_image else []), low=0.1, high=2.0)
        options["objective"], case.weight = WEIGHTED[name](weight), weight
        case.labels.append(f"weights {tuple(weight.shape)}")
    options["steps"] = draw(st.integers(1, 3))
    options["progress"] = False
    if rarely(60):
        strategies = [*ff.strategies.STRATEGIES]
        options["strategy"] = draw(st.sampled_from(strategies))
    elif rarely(30):
        stages = ff.Stage(share=0.5, smoothing=0.05), ff.Stage("lbfgs", tol=1e-3)
        options["strategy"] = ff.Strategy(stages)
    if rarely(30):
        size = Generator.latent_dim if isinstance(case.prior.value, Generator) else None
        size = size or math.prod(d.shape)
        starts = ["measurement", "zeros", "draw", 0.3 * d.normal(d.batch, size)]
        if size == math.prod(d.shape):
            starts.append(d.uniform(d.batch, *d.shape))
        options["start"] = starts[draw(st.integers(0, len(starts) - 1))]
    if rarely(20):
        options["restarts"] = 2
    if rarely(30):
        options["lr"] = draw(st.sampled_from([1e-3, 0.2, 5.0, 1, np.float32(0.1), np.float64(0.1)]))
    if rarely(20):
        options["seed"] = draw(st.sampled_from([1, 2**63 - 1, np.int64(3), 2**40]))
    numpys = [n for n in ("lr", "seed") if isinstance(options.get(n), np.generic)]
    for option in numpys:
        case.add(f"{option} of numpy", "either")
    if rarely(10):
        precise = draw(st.sampled_from(["fp32", "bf16", "tf32"]))
        options["precision"] = precise
        case.add(f"precision {precise}", "either")
    if rarely(10):
        options["throw"] = False
    if rarely(6):
        options["callback"] = raises
        case.labels.append("raising callback")
    if rarely(10):
        option = draw(st.sampled_from([*BAD_OPTIONS]))
        options[option] = draw(st.sampled_from(BAD_OPTIONS[option]))
        empty = not d.batch and option == "callback"
        case.add(f"{option}={options[option]!r}"[:60], "either" if empty else "refuse")
