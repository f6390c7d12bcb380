"""Whether a flow is one: its two directions and its log-determinant, measured."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import require
from .._base.tensors import check_dense, check_seed
from ..protocols import Flow, missing

LARGEST_JACOBIAN = 256  # numbers of an image: a gradient for each
_IMAGES, _TEMPERATURE, _ROWS = 4, 0.7, 128


@dataclass(frozen=True, repr=False)
class FlowCheck:
    """What ``check_flow`` measured. Printed, it is a line for each number.

    Attributes:
        round_trip: largest |decode(encode(x)) - x|, relative to the largest |x| or 1.
        logdets: largest |logdet of encode + logdet of decode|, in nats per number of an image.
        density: largest |log_prob - (log N(encode(x); 0, I) + logdet)|, likewise.
        jacobian: |logdet - log|det J|| of one image, likewise, with J from autograd; None for
            images of more than ``LARGEST_JACOBIAN`` numbers.
        train_eval: largest difference of log_prob between training and evaluation mode, likewise;
            None for a flow that has no such modes.
        not_finite: names of the weights with numbers that are not finite.
        tolerance: what each of the numbers may be at most.
        passed: whether all are.
        message: the outcome in a sentence.

    Example:
        >>> from flowinv_fast.flows import Flow, FlowConfig
        >>> Flow([], FlowConfig((1, 2, 2))).check()
        This is a flow: everything measured is within 0.001.
          round_trip  0.0e+00
          logdets     0.0e+00
          density     0.0e+00
          jacobian    0.0e+00
          train_eval  0.0e+00
    """

    round_trip: float
    logdets: float
    density: float
    jacobian: float | None
    train_eval: float | None
    not_finite: tuple[str, ...]
    tolerance: float

    def _failures(self) -> list[str]:
        measured = {f.name: getattr(self, f.name) for f in fields(self)[:5]}
        # Not "larger than": NaN has to fail.
        wrong = [n for n, v in measured.items() if v is not None and not v <= self.tolerance]
        return [*(f"weights of {name}" for name in self.not_finite), *wrong]

    @property
    def passed(self) -> bool:
        return not self._failures()

    @property
    def message(self) -> str:
        if self.passed:
            return f"This is a flow: everything measured is within {self.tolerance:g}."
        wrong = ", ".join(self._failures())
        return f"This is not a flow to rely on: beyond {self.tolerance:g} or not finite: {wrong}."

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name)) for f in fields(self)[:5]]
        lines = [f"  {name:<11} {'-' if v is None else f'{v:.1e}'}" for name, v in shown]
        return "\n".join([self.message, *lines])


def check_flow(flow: Any, images: Tensor | None = None, seed: int = 0) -> FlowCheck:
    """Measure round trip, log-determinants, density and modes of a flow; it is left as it is.

    A module is measured as a copy in float64, so what is seen are faults and not roundings; a
    frozen flow as it is, in its precision.

    Args:
        flow: a ``Flow``, a ``FrozenFlow``, or an object of your own with ``shape``, ``encode``,
            ``decode`` and ``log_prob`` (``protocols.Flow``).
        images: (B, C, H, W) to measure at; None: four draws of the flow's own.
        seed: of these draws.
    Raises:
        ArgumentError: an object that is no flow, images of another shape, or a seed that cannot be.

    Example:
        >>> import flowinv_fast as ff
        >>> flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1))
        >>> flow.check().message
        'This is a flow: everything measured is within 1e-06.'
        >>> flow.freeze().check().passed
        True
    """
    check_seed("check_flow", seed)
    lacks = missing(flow, Flow)
    wanted = "a flow, with shape, encode, decode and log_prob"
    got = f"an object of type {type(flow).__name__} without {', '.join(lacks)}"
    require(not lacks, "check_flow", "flow", wanted, got)
    is_module = isinstance(flow, nn.Module)
    wrong = tuple(name for name, _ in not_finite(flow)) if is_module else ()
    own = copy.deepcopy(flow).double().eval().requires_grad_(False) if is_module else flow
    dtype, device = getattr(own, "dtype", torch.float32), getattr(own, "device", "cpu")
    tolerance = 0.1 if getattr(own, "precision", "fp32") != "fp32" else 1e-3
    tolerance = 1e-6 if dtype == torch.float64 else tolerance
    if wrong:
        nan = math.nan
        return FlowCheck(nan, nan, nan, None, None, wrong, tolerance)
    x = _images(own, images, seed, dtype, device)
    n, largest = math.prod(own.shape), lambda t: t.double().abs().max().item() if len(t) else 0.0
    with torch.no_grad():
        z, logdet = own.encode(x.clone())
        back, opposite = own.decode(z.clone())
        log_prob = own.log_prob(x.clone())
        summed = ops.standard_normal_log_prob(z) + logdet
    return FlowCheck(
        round_trip=largest(back - x) / max(1.0, largest(x)),
        logdets=largest(logdet + opposite) / n,
        density=largest(log_prob - summed) / n,
        jacobian=_jacobian_error(own, x[:1], logdet) / n if n <= LARGEST_JACOBIAN else None,
        train_eval=largest(_training(own, x) - log_prob) / n if is_module else None,
        not_finite=(),
        tolerance=tolerance,
    )


def not_finite(flow: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a module with a number that is not finite, and their names.

    >>> [*not_finite(nn.Linear(2, 2))]
    []
    """
    for name, tensor in itertools.chain(flow.named_parameters(), flow.named_buffers()):
        if not bool(torch.isfinite(tensor).all()):
            yield name, tensor


def _images(flow: Any, images: Tensor | None, seed: int, dtype: torch.dtype, device: Any) -> Tensor:
    """What the flow is measured at."""
    if images is not None:
        check_dense("check_flow", "images", images)
        good = images.dim() == 4 and tuple(images.shape[1:]) == tuple(flow.shape)
        wanted = f"shape (B, {', '.join(map(str, flow.shape))})"
        require(good, "check_flow", "images", wanted, tuple(images.shape))
        return images.detach().to(device, dtype)
    generator = torch.Generator("cpu").manual_seed(seed)
    size = _IMAGES, math.prod(flow.shape)
    z = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        return flow.decode((_TEMPERATURE * z).to(device, dtype))[0]


def _jacobian_error(flow: Any, x: Tensor, logdet: Tensor) -> float:
    """|logdet - log|det dz/dx|| of one image (1, C, H, W), with the dense Jacobian."""
    if len(x) == 0:
        return 0.0
    n, rows = math.prod(flow.shape), []
    for first in range(0, n, _ROWS):
        chosen = torch.arange(first, min(n, first + _ROWS), device=x.device)
        with torch.enable_grad():
            many = x.repeat(len(chosen), 1, 1, 1).requires_grad_()
            z = flow.encode(many)[0]
            (grad,) = torch.autograd.grad(z.gather(1, chosen[:, None]).sum(), many)
        rows.append(grad.flatten(1).double())
    exact = torch.linalg.slogdet(torch.cat(rows))[1]
    return abs(exact.item() - logdet[0].item())


def _training(flow: Any, x: Tensor) -> Tensor:
    """log p in training mode; the flow is a copy, which what it learns there does not matter to."""
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        return copy.deepcopy(flow).train().log_prob(x.clone())
