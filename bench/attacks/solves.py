"""Calls of ``reconstruct``: refused in words, or right by a recomputation in float64."""

from __future__ import annotations

import contextlib
import hashlib
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from torch import Tensor, nn

import flowinv_fast as ff

from . import reference as ref
from .cases import Case, calls
from .engine import Campaign, Refused, Report, Wrong, refused_clearly
from .problems import FLOW_ONLY, UserError

ARGUMENTS = (
    *("y", "operator", "prior", "noise", "objective", "strategy", "start", "steps", "lr"),
    *("restarts", "precision", "seed", "callback", "progress", "throw"),
    *("beta", "lam", "gamma", "std", "mean", "residual", "x", "z", "log_prob"),
)


def run(report: Report, seed: int, size: int, work: Path) -> None:
    """A batch of calls."""
    warnings.simplefilter("ignore")

    @hypothesis.settings(
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls())
    def attack(case: Case) -> None:
        with report.case(lambda: described(case)):
            one(case)

    for number in range(size):  # independent cases, where hypothesis' own loop varies one
        bits = hashlib.shake_128(struct.pack("<2I", seed, number)).digest(4096)
        attack.hypothesis.fuzz_one_input(bits)


def described(case: Case) -> str:
    """A call in a few lines."""
    options = {k: v for k, v in case.options.items() if not isinstance(v, Tensor)}
    return f"{', '.join(case.labels)}; has to: {case.expect}; mode: {case.mode}; {options}"


def one(case: Case) -> None:
    """Make the call; returns if it is right.

    Raises:
        Refused: clearly, where that may be.
        Wrong: anything else.
    """
    given = case.y, case.operator.value, case.prior.value, case.noise.value
    with unchanged(*given, case.options.get("start"), case.options["objective"]):
        try:
            with mode(case.mode):
                found = ff.reconstruct(*given, **case.options)
        except UserError:
            raise Refused from None
        except Exception as error:
            _refused(case, error)
    failed = all(s.name in ("FAILED", "BAD_MEASUREMENT") for s in found.status)
    if case.expect == "refuse" and not (found.status and failed):
        raise Wrong(f"taken in silence: {case.demand}: {found}")
    verify(case, found)


def _refused(case: Case, error: Exception) -> None:
    """Raise what a refused call is."""
    if not refused_clearly(error, *ARGUMENTS):
        raise Wrong(f"not a clear refusal: {type(error).__name__}: {error}") from error
    if case.expect == "solve":
        raise Wrong(f"a valid call refused: {error}") from error
    raise Refused from error


@contextlib.contextmanager
def mode(name: str) -> Iterator[None]:
    """A mode of torch around a call."""
    kept, threads = torch.get_default_dtype(), torch.get_num_threads()
    contexts: dict[str, Callable[[], Any]] = {
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    try:
        if name == "float64 by default":
            torch.set_default_dtype(torch.float64)
        if name == "threads":
            torch.set_num_threads(2)
        with contexts.get(name, contextlib.nullcontext)():
            yield
    finally:
        torch.set_default_dtype(kept)
        torch.set_num_threads(threads)


# --- what nobody may change -----------------------------------------------------------------------


def fingerprint(value: Any, depth: int = 0) -> Any:
    """All of an object that a user would miss: tensors, gradients, modes, public attributes."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.device.type == "meta":
            return (value.dtype, tuple(value.shape))
        numbers = value.detach().resolve_neg().clone()
        gradient = None if not value.is_leaf or value.grad is None else value.grad.clone()
        return (type(value), value.requires_grad, gradient, numbers)
    if isinstance(value, nn.Module):
        named = [*value.named_parameters(), *value.named_buffers()]
        modes = [m.training for m in value.modules()]
        return modes, [(name, fingerprint(tensor)) for name, tensor in named]
    if isinstance(value, (str, int, float, bool, type(None), type)) or depth > 2:
        return value if not callable(value) or isinstance(value, type) else None
    if isinstance(value, np.ndarray):
        return value.tobytes()
    public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return [(k, fingerprint(v, depth + 1)) for k, v in sorted(public.items())]


def same(a: Any, b: Any) -> bool:
    """Whether two fingerprints agree, NaN with NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and (torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def world() -> tuple:
    """Global state."""
    return (
        torch.get_rng_state(),
        random.getstate(),
        [
            part.tobytes() if isinstance(part, np.ndarray) else part
            for part in np.random.get_state()
        ],
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )


@contextlib.contextmanager
def unchanged(*parts: Any) -> Iterator[None]:
    """Raises Wrong where the block changes one of these, or global state."""
    before, state = [fingerprint(part) for part in parts], world()
    failure: BaseException | None = None
    try:
        yield
    except (Refused, Wrong) as error:
        failure = error
    for part, kept in zip(parts, before):
        if not same(kept, fingerprint(part)):
            raise Wrong(f"a user's object changed: {type(part).__name__}") from failure
    for kept, now in zip(state, world()):
        if not same(kept, now):
            raise Wrong(f"global state changed: {str(kept)[:60]}, {str(now)[:60]}") from failure
    if failure is not None:
        raise failure


# --- the result -----------------------------------------------------------------------------------


def verify(case: Case, found: ff.Reconstruction) -> None:
    """Every number of a result, against float64."""
    _verify_form(case, found)
    ends = [s.name in ("FAILED", "BAD_MEASUREMENT") for s in found.status]
    lost = torch.tensor(ends, dtype=torch.bool)
    for row in case.bad_rows:
        if found.status[row] is not ff.Status.BAD_MEASUREMENT:
            raise Wrong("no status: for a measurement of NaN")
    if bool((lost & (found.x.flatten(1) != 0).any(1)).any() if len(lost) else False):
        raise Wrong("a lost image that is not zero")
    keep = ~lost
    if not bool(keep.any()):
        if len(lost) and not case.bad_rows and case.expect == "solve":
            raise Wrong("a valid call failed: no image was solved")
        return
    for name in ("x", "loss", "log_noise", "log_prior", "noise"):
        if not bool(torch.isfinite(getattr(found, name)[keep]).all()):
            raise Wrong(f"NaN without a status: {name}")
    _verify_numbers(case, found, keep)


def _verify_form(case: Case, found: ff.Reconstruction) -> None:
    y, d = case.y, case.draws
    tensors = {k: v for k, v in vars(found).items() if isinstance(v, Tensor)}
    for name, tensor in tensors.items():
        if type(tensor) is not Tensor or tensor.requires_grad or tensor.is_neg():
            raise Wrong(f"a result of another kind: {name} is {type(tensor).__name__}")
    wanted = {"x": (d.batch, *d.shape), "noise": tuple(y.shape), "loss": (d.batch,)}
    wanted |= {"log_noise": (d.batch,), "log_prior": (d.batch,), "steps": (d.batch,)}
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise Wrong(f"another shape: {name} {tuple(tensors[name].shape)}")
    if found.x.dtype != y.dtype or found.noise.dtype != y.dtype:
        raise Wrong(f"another dtype: {found.x.dtype}")
    good = len(found.status) == d.batch and all(isinstance(s, ff.Status) for s in found.status)
    if not good:
        raise Wrong(f"another status: {found.status}")


def _close(name: str, found: Tensor, wanted: Tensor, size: Tensor | float, dtype: Any) -> None:
    """Raise Wrong where two numbers differ by more than rounding allows."""
    eps = 2e-4 if dtype == torch.float32 else 1e-9
    off = (found.double() - wanted).abs()
    most = eps * (1 + wanted.abs() + size)
    if not bool((off <= most).all()):
        worst = (off / most).flatten().argmax()
        pair = found.flatten()[worst].item(), wanted.flatten()[worst].item()
        raise Wrong(f"a silent difference: {name} is {pair[0]!r}, in float64 {pair[1]!r}")


def _verify_numbers(case: Case, found: ff.Reconstruction, keep: Tensor) -> None:
    """The terms of the loss, recomputed from the image that was returned."""
    y = torch.as_tensor(case.y).detach().as_subclass(Tensor).double()
    x, dtype, name = found.x.double(), found.x.dtype, case.objective
    if "training dropout" in str(case.labels):
        return  # no function of x
    fx = case.operator.meaning(x)
    if case.operator.label == "sign":  # a sign near zero may fall either way
        fx = torch.where((fx - (y - found.noise.double())).abs() == 2, y - found.noise, fx)
    spread = (y.abs() + fx.abs()).flatten(1).sum(1)
    _close("noise", found.noise[keep], (y - fx)[keep], y[keep].abs().max(), dtype)
    zero, beta = found.loss.double() * 0, torch.as_tensor(case.weight, dtype=torch.float64)
    squares = (y - fx).square().flatten(1).sum(1)
    if name in ("map", "map-image", "mle"):
        log_noise = case.noise.meaning(y - fx)
    else:
        log_noise = -squares
    _close("log_noise", found.log_noise[keep], log_noise[keep], spread[keep], dtype)
    z = None if found.z is None else found.z.double()
    if z is not None:
        _close("x", found.x[keep], case.prior.meaning.decode(z)[0][keep], 1.0, dtype)
    log_prior = zero
    if name in FLOW_ONLY:
        log_prior = case.prior.meaning.log_prob(x)
        if "bounded" in str(case.labels) and z is not None:  # x has rounded what z still tells
            log_prior = ref.normal_log_prob(z) - case.prior.meaning.decode(z)[1]
    elif name in ("csgm", "asim-proxy"):
        assert z is not None
        log_prior = -z.square().sum(1)
    _close("log_prior", found.log_prior[keep], log_prior[keep], 10.0, dtype)
    loss = -log_noise - beta * log_prior
    _close("loss", found.loss[keep], loss[keep], spread[keep] + 10.0, dtype)


CAMPAIGNS = [
    Campaign("solve", "calls of `reconstruct`", 6_000, 8, 30.0, run, batch=200, limit=60),
]
