"""What this wing refuses, in words; ``function`` is the public function that was called.

These are the checks of arguments as they come. What a part does is looked at in ``trial``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from .._base.backend import PRECISIONS
from .._base.errors import ArgumentError, did_you_mean, is_whole, require
from .._base.tensors import plain
from ..noise.law import drawable as can_be_drawn
from ..operators.composition import noiseless
from ..protocols import (
    Density,
    Flow,
    Freezable,
    Frozen,
    Generator,
    missing,
    provides,
    scores,
)
from .modes import fault, modules
from .objectives import OBJECTIVES, STARTS, Objective, has_latents, latent_size
from .strategies import Stage, Strategy

P = ParamSpec("P")
R = TypeVar("R")
Choice = TypeVar("Choice")


# --- options and choices --------------------------------------------------------------------------


def entrance(function: Callable[P, R]) -> Callable[P, R]:
    """What holds for every public function of this wing.

    A keyword that the function does not have is refused, with where it belongs. Modes of torch that
    the caller is in, and in which gradients or types are not what they seem, end at the entrance,
    and so do subclasses of tensors: results are plain.
    """
    known = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())

    @functools.wraps(function)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in [] if open_ended else [name for name in kwargs if name not in known]:
            wanted = _where(name, list(known))
            got = f"{did_you_mean(name, known)} = {kwargs[name]!r}"
            raise ArgumentError(function.__name__, name, wanted, got)
        own: Any = [plain(v) if isinstance(v, Tensor) else v for v in args]
        named: Any = {k: plain(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        tensors = (v for v in (*own, *named.values()) if isinstance(v, Tensor))
        with _plain_modes(next(tensors, torch.empty(0, device="cpu")).device):
            return function(*own, **named)

    return entered


@contextlib.contextmanager
def _plain_modes(device: torch.device) -> Iterator[None]:
    """Out of inference mode, of autocast, and of a default device that is not that of the data.

    The gradient mode is the caller's again at the end, also where an interrupt fell into the very
    moment in which a ``no_grad`` within would have given it back.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_autocast_enabled(device.type if device.type != "meta" else "cpu"):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type not in ("cpu", device.type):
            stack.enter_context(torch.device(device))
        yield


def _where(name: str, known: list[str]) -> str:
    """Where an option belongs, of a function that does not have it."""
    goals = {type(goal).__name__: type(goal) for goal in OBJECTIVES.values()}
    ways = [f"{kind}({name}=...)" for kind, goal in goals.items() if name in _fields(goal)]
    if ways:
        return f"inside the objective, as objective={' or '.join(ways)}"
    if name in _fields(Stage):
        return f"inside the strategy, as strategy=Strategy((Stage({name}=...),))"
    if name in _fields(Strategy):
        return f"inside the strategy, as strategy=Strategy({name}=...)"
    return f"one of {known}"


def _fields(kind: Any) -> list[str]:
    return [f.name for f in fields(kind)]


def choice(
    function: str,
    argument: str,
    given: Any,
    table: dict[str, Choice],
    fits: Callable[[Any], bool],
) -> Choice:
    """An entry of a table by name, or the user's own object."""
    if isinstance(given, str) and given in table:
        return table[given]
    wanted = f"one of {list(table)}, or an object like them"
    got = did_you_mean(repr(given), table) if isinstance(given, str) else _described(given)
    require(not isinstance(given, (str, type)) and fits(given), function, argument, wanted, got)
    return given


def _described(given: Any) -> str:
    """What came instead of something else, and what to do where that is known."""
    if isinstance(given, type):
        return f"the class {given.__name__}: give an instance, as {given.__name__}(...)"
    if isinstance(given, Tensor):
        return f"{given.dtype} of shape {tuple(given.shape)}"
    if given is None or isinstance(given, (str, int, float, complex)):
        return repr(given)
    return f"an object of type {type(given).__name__}"


# --- tensors --------------------------------------------------------------------------------------


def _floats(function: str, argument: str, given: Any, wanted: str) -> Tensor:
    """A dense float32 or float64 tensor; anything else is told what would make it one."""
    if not isinstance(given, Tensor):
        made = {np.ndarray: "torch.from_numpy", list: "torch.tensor", tuple: "torch.tensor"}
        way = next((f": give {f}({argument})" for k, f in made.items() if isinstance(given, k)), "")
        raise ArgumentError(function, argument, wanted, _described(given) + way)
    got, way = _described(given), ""
    if given.is_complex():
        way = f"torch.view_as_real({argument}), and an operator that returns the same"
    elif given.layout != torch.strided:
        got, way = f"a tensor of layout {given.layout}", f"{argument}.to_dense()"
    elif given.device.type == "meta":
        got, way = "a tensor on the meta device, which holds no numbers", f"{argument} on another"
    elif given.dtype == torch.uint8:
        way = f"{argument}.float() / 255 where these are grey levels from 0 to 255"
    elif given.dtype not in (torch.float32, torch.float64):
        way = f"{argument}.float()"
    require(not way, function, argument, wanted, f"{got}: give {way}")
    return given


def measurement(function: str, y: Any) -> None:
    """y (B, ...) is a float32 or float64 tensor."""
    wanted = "a float32 or float64 tensor (B, ...)"
    y = _floats(function, "y", y, wanted)
    require(y.dim() >= 2, function, "y", wanted, f"{_described(y)}: give y[None] for one image")


def images(function: str, argument: str, x: Any, finite: bool = True) -> None:
    """x (B, C, H, W) is a float32 or float64 tensor, and finite."""
    wanted = f"{'finite ' if finite else ''}images, a float32 or float64 tensor (B, C, H, W)"
    x = _floats(function, argument, x, wanted)
    way = {3: f": give {argument}[None]", 2: f": give {argument}[None, None]"}.get(x.dim(), "")
    require(x.dim() == 4, function, argument, wanted, _described(x) + way)
    good = not finite or bool(torch.isfinite(x).all())
    require(good, function, argument, wanted, "NaN or infinity in them")


def readable(function: str, y: Tensor, throw: bool) -> Tensor:
    """Whether y is finite, (B,); with ``throw`` it has to be."""
    finite = torch.isfinite(y).flatten(1).all(1)
    bad = finite.numel() - int(finite.sum())
    wanted = "finite measurements (throw=False solves the other images)"
    require(
        not throw or bad == 0, function, "y", wanted, f"NaN or infinity in {bad} of {len(y)} images"
    )
    return finite


# --- the parts of a problem -----------------------------------------------------------------------


def as_operator(function: str, operator: Any) -> Any:
    """f as a callable. A deepinv physics measures noiselessly by sensor(A(x)); its call adds noise.

    Every other object is called, whatever its attributes are.
    """
    operator = noiseless(operator)
    good = callable(operator) and not isinstance(operator, type)
    got = _described(operator)
    if callable(getattr(operator, "A", None)):
        got += " that cannot be called: give its method, operator=physics.A"
    require(good, function, "operator", "a callable, images to measurements", got)
    return operator


def density(function: str, prior: Any, argument: str = "prior") -> None:
    """A prior with a log-density, in evaluation mode."""
    good, wanted = provides(prior, Density), "a density with log_prob(x)"
    require(good, function, argument, wanted, _described_prior(prior))
    modes(function, **{argument: prior})


def _described_prior(prior: Any) -> str:
    if isinstance(prior, (str, os.PathLike)):
        return f"{str(prior)!r}: load it with flowinv_fast.load_flow({str(prior)!r})"
    return _described(prior)


def prior(function: str, prior: Any, objective: Objective, y: Tensor) -> None:
    """The prior has what the objective needs, and is where y is."""
    got = _described_prior(prior)
    if objective.space == "image" and not provides(prior, Generator):
        require(provides(prior, Density), function, "prior", "a density with log_prob(x)", got)
    elif "density" in objective.needs or objective.space == "image":
        lacks = missing(prior, Flow)
        wanted = f"a flow with {lacks[0]}" if lacks else "a flow"
        if provides(prior, Generator):
            got += (
                ", a generator: one without a density takes objective 'mle', 'csgm' or 'asim-proxy'"
            )
        require(provides(prior, Flow), function, "prior", wanted, got)
    else:
        good = provides(prior, Flow) or provides(prior, Generator)
        require(good, function, "prior", "a flow, or a callable generator with latent_dim", got)
    if provides(prior, Flow):
        shape = prior.shape
        good = isinstance(shape, (tuple, list)) and len(shape) == 3
        good = good and all(is_whole(n, 1) for n in shape)
        require(good, function, "prior", "a shape (C, H, W)", f"shape {shape!r}")
    elif provides(prior, Generator):
        size = prior.latent_dim
        require(is_whole(size, 1), function, "prior", "latent_dim, an integer", repr(size))
    held = next(prior.parameters(), None) if isinstance(prior, nn.Module) else prior
    dtype, device = getattr(held, "dtype", None), getattr(held, "device", None)
    if isinstance(dtype, torch.dtype) and isinstance(device, torch.device):
        same = dtype == y.dtype and device == y.device
        wanted = f"{dtype} on {device}, like the prior"
        way = f"give y.to({str(device)!r}, {dtype})"
        require(same, function, "y", wanted, f"{y.dtype} on {y.device}: {way}")


def noise(function: str, noise: Any) -> None:
    """A noise model has a density, of residuals or of y given f(x)."""
    got = _described(noise)
    if noise is None or isinstance(noise, (int, float, Tensor)):
        got += ": noise.Gaussian(std) is white noise of a standard deviation"
    elif isinstance(noise, str):
        got += ": a flow of that name is noise.FlowNoise(load_flow(name))"
    wanted = "an object with log_prob(residual) or log_likelihood(y, fx)"
    require(scores(noise), function, "noise", wanted, got)


def drawable(function: str, noise: Any) -> None:
    """A noise model that can be drawn from."""
    wanted = "an object with sample(shape, generator) or draw(fx, generator)"
    require(can_be_drawn(noise), function, "noise", wanted, _described(noise))


def modes(function: str, **parts: Any) -> None:
    """No part holds a module in training mode whose values depend on it, or without gradients."""
    for argument, part in parts.items():
        wrong = next(filter(None, map(fault, modules(part))), "")
        require(not wrong, function, argument, "modules in evaluation mode, with gradients", wrong)


def precision(function: str, precision: str | None, prior: Any, y: Tensor) -> None:
    """The prior can be had in this precision."""
    known = precision is None or precision in PRECISIONS
    require(known, function, "precision", f"None or one of {PRECISIONS}", repr(precision))
    is_frozen = provides(prior, Frozen) and prior.precision == precision
    able = precision is None or is_frozen or provides(prior, Freezable)
    wanted = "None for a prior without freeze(precision=)"
    require(able, function, "precision", wanted, repr(precision))
    able = precision in (None, "fp32") or y.dtype == torch.float32
    require(able, function, "precision", f"None for {y.dtype} measurements", repr(precision))


def stages(function: str, strategy: Strategy, prior: Any) -> None:
    """A prior without latents takes a strategy without stages over latents."""
    good = has_latents(prior) or all(stage.space != "latent" for stage in strategy.stages)
    wanted = "one without stages over latents, which this prior has not"
    require(good, function, "strategy", wanted, [stage.space for stage in strategy.stages])


def start(function: str, start: Any, y: Tensor, prior: Any) -> None:
    """A start is a known name, or latents or images for all measurements."""
    known = STARTS if has_latents(prior) else STARTS[:1]
    if isinstance(start, str) and start in known:
        return
    wanted = f"one of {known} or a tensor"
    require(not isinstance(start, str), function, "start", wanted, repr(start))
    start = _floats(function, "start", start, wanted)
    shapes: list[tuple[int, ...]] = [(y.shape[0], latent_size(prior))] if has_latents(prior) else []
    if provides(prior, Flow):
        shapes.append((y.shape[0], *prior.shape))
    any_size = not shapes and start.dim() == 4 and len(start) == len(y)
    good = any_size or tuple(start.shape) in shapes
    good = good and start.dtype == y.dtype and start.device == y.device
    sizes = " or ".join(map(str, shapes)) or f"({len(y)}, C, H, W)"
    wanted = f"{y.dtype} on {y.device} of shape {sizes}"
    got = f"{start.dtype} on {start.device} of shape {tuple(start.shape)}"
    require(good, function, "start", wanted, got)
