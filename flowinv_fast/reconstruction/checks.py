"""What ``reconstruct`` refuses, in words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import flows
from .._base.errors import ArgumentError, is_whole, require
from ..flows import FrozenFlow
from ..flows.frozen import PRECISIONS
from . import objectives

_NAME = "reconstruct"


def numbers(steps, lr, schedule, restarts, smoothing, tempering, tol, patience, seed) -> None:
    real = lambda v: isinstance(v, (int, float)) and math.isfinite(v)
    require(is_whole(steps, 1), _NAME, "steps", "an integer of at least 1", steps)
    require(real(lr) and lr > 0, _NAME, "lr", "a positive number", lr)
    require(
        schedule in ("cosine", "constant"),
        _NAME,
        "schedule",
        "'cosine' or 'constant'",
        repr(schedule),
    )
    require(is_whole(restarts, 1), _NAME, "restarts", "an integer of at least 1", restarts)
    require(
        real(smoothing) and smoothing >= 0, _NAME, "smoothing", "a number of at least 0", smoothing
    )
    fraction = real(tempering) and 0 < tempering <= 1
    require(fraction, _NAME, "tempering", "a number in (0, 1]", tempering)
    require(real(tol) and tol >= 0, _NAME, "tol", "a number of at least 0", tol)
    require(is_whole(patience, 1), _NAME, "patience", "an integer of at least 1", patience)
    require(is_whole(seed) and seed < 2**62, _NAME, "seed", "an integer in 0 .. 2^62 - 1", seed)


def measurement(y: Any) -> None:
    wanted = "a float32 or float64 tensor (B, ...)"
    require(isinstance(y, Tensor), _NAME, "y", wanted, type(y).__name__)
    good = y.dtype in (torch.float32, torch.float64) and y.dim() >= 2
    require(good, _NAME, "y", wanted, f"{y.dtype} of shape {tuple(y.shape)}")


def as_operator(operator: Any) -> Any:
    """A deepinv physics measures noiselessly through A; its call adds fresh noise."""
    if callable(getattr(operator, "A", None)):
        return operator.A
    require(
        callable(operator),
        _NAME,
        "operator",
        "a callable, or an object with A",
        type(operator).__name__,
    )
    return operator


def prior(prior: Any, chosen: objectives.Method, y: Tensor) -> None:
    if "density" in chosen.needs or chosen.space == "image":
        for name in ("decode", "encode", "log_prob", "shape"):
            require(
                hasattr(prior, name), _NAME, "prior", f"a flow with {name}", type(prior).__name__
            )
    else:
        good = hasattr(prior, "decode") and hasattr(prior, "shape")
        good = good or callable(prior) and hasattr(prior, "latent_dim")
        require(good, _NAME, "prior", "a flow, or a callable generator with latent_dim",
                type(prior).__name__)  # fmt: skip
    if isinstance(prior, (nn.Module, FrozenFlow)):
        held = prior if isinstance(prior, FrozenFlow) else next(prior.parameters(), None)
        if held is not None:
            same = held.dtype == y.dtype and held.device == y.device
            require(same, _NAME, "y", f"{held.dtype} on {held.device}, like the prior",
                    f"{y.dtype} on {y.device}")  # fmt: skip


def precision(precision: str | None, polish: int | None, prior: Any, steps: int) -> None:
    require(precision is None or precision in PRECISIONS, _NAME, "precision",
            f"None or one of {PRECISIONS}", repr(precision))  # fmt: skip
    frozen = isinstance(prior, FrozenFlow) and prior.precision == precision
    require(precision is None or frozen or isinstance(prior, flows.Flow), _NAME, "precision",
            "None for a prior that is not a Flow", repr(precision))  # fmt: skip
    good = polish is None or is_whole(polish) and polish <= steps
    require(good, _NAME, "polish", f"None or an integer in 0..{steps}", polish)


def weight(name: str, given: dict, y: Tensor) -> float | Tensor:
    value = given[name] if given[name] is not None else objectives.DEFAULT_WEIGHT[name]
    wanted = f"a number of at least 0, or one per image ({y.shape[0]},)"
    try:
        tensor = torch.as_tensor(value, device=y.device, dtype=y.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(_NAME, name, wanted, repr(value)) from None
    good = tensor.dim() == 0 or tuple(tensor.shape) == (y.shape[0],)
    require(good, _NAME, name, wanted, f"shape {tuple(tensor.shape)}")
    fine = bool((tensor >= 0).all()) and bool(torch.isfinite(tensor).all())
    require(fine, _NAME, name, wanted, value)
    return tensor.detach()


def start(init: Any, y: Tensor, prior: Any) -> None:
    size = objectives.latent_size(prior)
    if isinstance(init, Tensor):
        shapes = [(y.shape[0], size)]
        if hasattr(prior, "shape"):
            shapes.append((y.shape[0], *prior.shape))
        good = tuple(init.shape) in shapes and init.dtype == y.dtype and init.device == y.device
        wanted = f"{y.dtype} on {y.device} of shape {' or '.join(map(str, shapes))}"
        require(good, _NAME, "init", wanted,
                f"{init.dtype} on {init.device} of shape {tuple(init.shape)}")  # fmt: skip
    else:
        require(
            init in objectives.INITS,
            _NAME,
            "init",
            f"one of {objectives.INITS} or a tensor",
            repr(init),
        )


def shapes(y: Tensor, operator: Any, prior: Any, noise: Any) -> None:
    """Images at latent zero through the operator and the noise model: shapes must meet y's."""
    with torch.no_grad():
        x = objectives.generate(prior, y.new_zeros(y.shape[0], objectives.latent_size(prior)))
        fx = operator(x)
        require(isinstance(fx, Tensor), _NAME, "operator", "a tensor back", type(fx).__name__)
        wanted = f"shape {tuple(fx.shape)}, what the operator makes of images {tuple(x.shape)}"
        require(fx.shape == y.shape, _NAME, "y", wanted, tuple(y.shape))
        require(fx.dtype == y.dtype and fx.device == y.device, _NAME, "operator",
                f"{y.dtype} on {y.device}, like y", f"{fx.dtype} on {fx.device}")  # fmt: skip
        if noise is not None:
            value = objectives.log_noise_of(noise, y, fx)
            good = isinstance(value, Tensor) and value.shape == y.shape[:1]
            require(good, _NAME, "noise", f"log_prob of shape ({y.shape[0]},)",
                    getattr(value, "shape", type(value)))  # fmt: skip
