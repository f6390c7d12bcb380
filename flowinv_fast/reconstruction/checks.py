"""What this wing refuses, in words; ``function`` is the public function that was called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._base.backend import PRECISIONS
from .._base.errors import require
from ..protocols import Flow, Freezable, Frozen, NoiseModel, missing, provides
from .objectives import STARTS, Objective, generate, latent_size, log_noise_of


def measurement(function: str, y: Any) -> None:
    """y (B, ...) is a float32 or float64 tensor."""
    wanted = "a float32 or float64 tensor (B, ...)"
    require(isinstance(y, Tensor), function, "y", wanted, type(y).__name__)
    good = y.dtype in (torch.float32, torch.float64) and y.dim() >= 2
    require(good, function, "y", wanted, f"{y.dtype} of shape {tuple(y.shape)}")


def images(function: str, argument: str, x: Any) -> None:
    """x (B, C, H, W) is a finite floating-point tensor."""
    good = isinstance(x, Tensor) and x.is_floating_point() and bool(torch.isfinite(x).all())
    require(good, function, argument, "finite images (B, C, H, W)", type(x).__name__)


def readable(function: str, y: Tensor, throw: bool) -> Tensor:
    """Whether y is finite, (B,); with ``throw`` it has to be."""
    finite = torch.isfinite(y).flatten(1).all(1)
    bad = finite.numel() - int(finite.sum())
    wanted = "finite measurements (throw=False solves the other images)"
    require(
        not throw or bad == 0, function, "y", wanted, f"NaN or infinity in {bad} of {len(y)} images"
    )
    return finite


def as_operator(function: str, operator: Any) -> Any:
    """f as a callable. A deepinv physics measures noiselessly through A; its call adds noise."""
    if callable(getattr(operator, "A", None)):
        return operator.A
    wanted = "a callable, or an object with A"
    require(callable(operator), function, "operator", wanted, type(operator).__name__)
    return operator


def prior(function: str, prior: Any, objective: Objective, y: Tensor) -> None:
    """The prior has what the objective needs, and is where y is."""
    got = type(prior).__name__
    if "density" in objective.needs or objective.space == "image":
        for name in missing(prior, Flow):
            require(False, function, "prior", f"a flow with {name}", got)
    else:
        good = hasattr(prior, "decode") and hasattr(prior, "shape")
        good = good or callable(prior) and hasattr(prior, "latent_dim")
        require(good, function, "prior", "a flow, or a callable generator with latent_dim", got)
    held = next(prior.parameters(), None) if isinstance(prior, nn.Module) else prior
    dtype, device = getattr(held, "dtype", None), getattr(held, "device", None)
    if isinstance(dtype, torch.dtype) and isinstance(device, torch.device):
        same = dtype == y.dtype and device == y.device
        wanted = f"{dtype} on {device}, like the prior"
        require(same, function, "y", wanted, f"{y.dtype} on {y.device}")


def precision(function: str, precision: str | None, prior: Any, y: Tensor) -> None:
    """The prior can be had in this precision."""
    known = precision is None or precision in PRECISIONS
    require(known, function, "precision", f"None or one of {PRECISIONS}", repr(precision))
    is_frozen = not missing(prior, Frozen) and prior.precision == precision
    able = precision is None or is_frozen or provides(prior, Freezable)
    wanted = "None for a prior without freeze(precision=)"
    require(able, function, "precision", wanted, repr(precision))
    able = precision in (None, "fp32") or y.dtype == torch.float32
    require(able, function, "precision", f"None for {y.dtype} measurements", repr(precision))


def start(function: str, start: Any, y: Tensor, prior: Any) -> None:
    """A start is a known name, or latents or images for all measurements."""
    if not isinstance(start, Tensor):
        known = isinstance(start, str) and start in STARTS
        require(known, function, "start", f"one of {STARTS} or a tensor", repr(start))
        return
    shapes: list[tuple[int, ...]] = [(y.shape[0], latent_size(prior))]
    if hasattr(prior, "shape"):
        shapes.append((y.shape[0], *prior.shape))
    good = tuple(start.shape) in shapes and start.dtype == y.dtype and start.device == y.device
    wanted = f"{y.dtype} on {y.device} of shape {' or '.join(map(str, shapes))}"
    got = f"{start.dtype} on {start.device} of shape {tuple(start.shape)}"
    require(good, function, "start", wanted, got)


def shapes(function: str, y: Tensor, operator: Any, prior: Any, noise: NoiseModel | None) -> None:
    """Images at latent zero through the operator and the noise model: shapes must meet y's."""
    with torch.no_grad():
        x = generate(prior, y.new_zeros(y.shape[0], latent_size(prior)))
        fx = operator(x)
        require(isinstance(fx, Tensor), function, "operator", "a tensor back", type(fx).__name__)
        wanted = f"shape {tuple(fx.shape)}, what the operator makes of images {tuple(x.shape)}"
        require(fx.shape == y.shape, function, "y", wanted, tuple(y.shape))
        same = fx.dtype == y.dtype and fx.device == y.device
        wanted, got = f"{y.dtype} on {y.device}, like y", f"{fx.dtype} on {fx.device}"
        require(same, function, "operator", wanted, got)
        if noise is None:
            return
        value = log_noise_of(noise, y, fx)
        good = isinstance(value, Tensor) and value.shape == y.shape[:1]
        shape = getattr(value, "shape", type(value))
        require(good, function, "noise", f"log_prob of shape ({y.shape[0]},)", shape)
