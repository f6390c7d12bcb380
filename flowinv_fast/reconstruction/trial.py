"""What the parts of a problem do, looked at once before the first step.

Every part is evaluated at images that the prior makes of random latents, or, where it has none, at
the start with some noise on it: forth and back with gradients, and forth once more with every
second image changed. That is about one and a half steps of a solve, and it shows what would
otherwise be solved wrong without a sign: values of another shape or type, a lost gradient, images
that influence one another, values that change from call to call, and writing into what was handed
over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError, require
from ..protocols import Density, Flow, OnePass, provides
from .objectives import OBJECTIVES, Terms, has_latents, latent_size, log_noise_of
from .problem import Problem, draw

_SEED = 0  # of the latents
_STD = 0.5  # of the latents: images that the prior knows well
_SLACK = 1e-4  # by which a value may differ between two calls, of the largest
_SHARE = 1e-3  # of the values that may differ by more: a sign at the brink of another

# torch's words for a tensor that does not fit another, by its sizes, device or dtype.
_MISFIT = re.compile(
    "must match|cannot be multiplied|is invalid for input|same device|same dtype|scalar type"
)

Call = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Part:
    """A part of a problem as a function of one tensor.

    Args:
        argument: its name in the function that the user called.
        does: what is called, as in "f(x)".
        call: the values, refused where their shape or type is wrong; the first is differentiated.
        constant: whether the values may ignore what they are given, as a flat density does.
        beside: the measurements, where the part sees them.
    """

    argument: str
    does: str
    call: Call
    constant: bool = False
    beside: Tensor | None = None


def examine(function: str, problem: Problem) -> None:
    """Look at every part of a problem that its objective uses.

    Raises:
        ArgumentError: a part of ``function`` whose results could not be trusted, named.
    """
    y, prior, noise, goal = problem.y, problem.prior, problem.noise, problem.objective
    if not len(y):
        return
    latent, uses = goal.space == "latent", goal.needs
    if has_latents(prior):
        zeros = y.new_zeros(len(y), latent_size(prior))
        z = draw(zeros, 0, _SEED, _STD, problem.first)
        decode = Part("prior", "decode(z)", lambda z: _decoded(function, prior, z, y))
        x = look(function, decode, z) if latent else _once(function, decode, z)
    else:
        x = problem.images(problem.first_variable(0, 1, _SEED))
        x = x + draw(x, 0, _SEED, 0.2 * _STD, problem.first)
    if "density" in uses and not latent:
        look(function, density(function, prior), x)
    fx = look(function, Part("operator", "f(x)", lambda x: _measured(function, problem, x)), x)
    if "noise" in uses:
        of = "log_likelihood(y, fx)" if provides(noise, OnePass) else "log_prob(residual)"
        score = lambda fx: _per_image(function, "noise", of, log_noise_of(noise, y, fx), len(y))
        look(function, Part("noise", of, score, beside=y), fx)
    if type(goal) not in {type(known) for known in OBJECTIVES.values()}:
        terms = lambda variable: _terms(function, problem, variable)
        loss = Part("objective", "evaluate(...)", terms, beside=y)
        look(function, loss, z if latent else problem.of_images(x))


def density(function: str, prior: Density) -> Part:
    """log p of a prior, as a part."""
    of = "log_prob(x)"
    call = lambda x: _per_image(function, "prior", of, prior.log_prob(x), len(x))
    return Part("prior", of, call, constant=True)


# --- what the parts return ------------------------------------------------------------------------


def _decoded(function: str, prior: Any, z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    is_flow = provides(prior, Flow)
    given = prior.decode(z) if is_flow else prior(z)
    pair = isinstance(given, tuple) and len(given) == 2
    wanted = "a decode(z) that returns images and their log-determinants"
    require(not is_flow or pair, function, "prior", wanted, type(given).__name__)
    x, *logdet = given if is_flow else (given,)
    good = isinstance(x, Tensor) and x.dim() == 4 and len(x) == len(z)
    good = good and (not is_flow or tuple(x.shape[1:]) == tuple(prior.shape))
    size = ", ".join(map(str, prior.shape)) if is_flow else "C, H, W"
    wanted = f"images ({len(z)}, {size}) of latents {tuple(z.shape)}"
    require(good, function, "prior", wanted, getattr(x, "shape", type(x).__name__))
    same = x.dtype == y.dtype and x.device == y.device
    wanted = f"images, {y.dtype} on {y.device} like y"
    require(same, function, "prior", wanted, f"{x.dtype} on {x.device}")
    for value in logdet:
        _per_image(function, "prior", "the log-determinant of decode(z)", value, len(z))
    return (x, *logdet)


def _measured(function: str, problem: Problem, x: Tensor) -> tuple[Tensor, ...]:
    y, fx = problem.y, problem.operator(x)
    require(isinstance(fx, Tensor), function, "operator", "a tensor back", type(fx).__name__)
    wanted = f"shape {tuple(fx.shape)}, what the operator makes of images {tuple(x.shape)}"
    alone = tuple(fx.shape[1:]) == tuple(y.shape)
    way = ": a single measurement needs a batch dimension, give y[None]" if alone else ""
    require(fx.shape == y.shape, function, "y", wanted, f"{tuple(y.shape)}{way}")
    same = fx.dtype == y.dtype and fx.device == y.device
    wanted, got = f"{y.dtype} on {y.device}, like y", f"{fx.dtype} on {fx.device}"
    require(same, function, "operator", wanted, got)
    return (fx,)


def _per_image(function: str, argument: str, of: str, value: Any, batch: int) -> tuple[Tensor, ...]:
    good = isinstance(value, Tensor) and tuple(value.shape) == (batch,)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    wanted = f"{of} of shape ({batch},), one value per image"
    require(good, function, argument, wanted, got)
    return (value,)


def _terms(function: str, problem: Problem, variable: Tensor) -> tuple[Tensor, ...]:
    terms = problem.evaluate(variable)
    wanted = "an evaluate(...) that returns Terms"
    require(isinstance(terms, Terms), function, "objective", wanted, type(terms).__name__)
    for name, value in zip(Terms._fields, terms):
        _per_image(function, "objective", f"the {name} of evaluate(...)", value, len(variable))
    return (terms.loss,)


# --- the look -------------------------------------------------------------------------------------


def look(function: str, part: Part, given: Tensor) -> Tensor:
    """Evaluate a part forth and back, and once more with every second image changed.

    Returns:
        Its first value, detached.
    """
    given = given.detach()
    leaf = given.clone().requires_grad_()
    with torch.enable_grad():
        values = _called(function, part, leaf)
        _refuse_without_gradient(function, part, leaf, values[0])
    changed = given.clone()
    changed[1::2] *= 0.5
    with torch.no_grad():
        others = _called(function, part, changed)
    if not all(_alike(a[::2].detach(), b[::2]) for a, b in zip(values, others)):
        with torch.no_grad():
            again = _called(function, part, given)
        stays = all(_alike(a.detach(), b) for a, b in zip(values, again))
        wanted = "values of an image that do not depend on the others in its batch"
        got = f"{part.does} that couples the images of a batch, as batch normalisation does"
        if not stays:
            wanted = "values that stay the same from call to call"
            got = f"{part.does} that is random: call .eval() on its modules, and fix what it draws"
        raise ArgumentError(function, part.argument, wanted, got)
    return values[0].detach()


def _once(function: str, part: Part, given: Tensor) -> Tensor:
    """The first value of a part that needs no gradient."""
    with torch.no_grad():
        return _called(function, part, given)[0]


def _called(function: str, part: Part, given: Tensor) -> tuple[Tensor, ...]:
    """The values of a part, of a copy that it is seen to leave as it was."""
    mine = given.clone()
    beside = mine if part.beside is None else part.beside
    before, kept = beside._version, given if beside is mine else beside.detach().clone()
    try:
        values = part.call(mine)
    except Exception as error:
        told = _explained(error, function, part, given)
        if told is error:
            raise
        raise told from error
    same = mine._version == 0 and beside._version == before
    changed = lambda now, then: bool(((now != then) & ~then.isnan()).any())
    same = same and not changed(mine, given) and not changed(beside, kept)
    wanted = f"{part.does} that leaves what it is given as it is"
    got = "one that writes into it in place: let it work on a copy, as x.clone()"
    require(same, function, part.argument, wanted, got)
    return values


def _explained(error: Exception, function: str, part: Part, given: Tensor) -> Exception:
    """An error that a part raised, in words where torch's are known; else with a note of where."""
    if isinstance(error, RuntimeError):
        if "requires grad" in str(error) and "numpy" in str(error):
            return _lost(function, part)
        if "inference tensor" in str(error).lower():
            wanted, got = f"a differentiable {part.does}", "tensors made within inference_mode"
            return ArgumentError(function, part.argument, wanted, f"{got}: make them outside")
        if _MISFIT.search(str(error)):
            like = f"shape {tuple(given.shape)}, {given.dtype} on {given.device}"
            got = f"one that raises: {str(error).splitlines()[0]}"
            return ArgumentError(function, part.argument, f"{part.does} that takes {like}", got)
    if hasattr(error, "add_note") and not isinstance(error, ArgumentError):
        where = f"{function} tried {part.does} of the argument {part.argument!r} before the solve"
        error.add_note(f"{where}, for a batch of shape {tuple(given.shape)}.")
    return error


def _refuse_without_gradient(function: str, part: Part, leaf: Tensor, value: Tensor) -> None:
    """A value that moves with what it is given needs a gradient that says so.

    A gradient of zero everywhere is right where the value is constant, as behind an empty mask.
    """
    if value.requires_grad:
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype, device=value.device)
        total = (value * weights.view_as(value)).sum()
        (grad,) = torch.autograd.grad(total, leaf, allow_unused=True)
        if grad is not None and bool(grad.any()):
            return
    elif not part.constant:
        raise _lost(function, part)
    if _moves(part, leaf.detach(), value.detach()):
        raise _lost(function, part)


def _moves(part: Part, given: Tensor, value: Tensor) -> bool:
    """Whether other images have other values."""
    with torch.no_grad():
        for other in (0.5 * given, -given, given.flip(-1)):
            try:
                new = part.call(other)[0]
            except Exception:  # it does not take such images, so they tell nothing
                continue
            if bool(((new != value) & new.isfinite() & value.isfinite()).any()):
                return True
    return False


def _lost(function: str, part: Part) -> ArgumentError:
    wanted = f"a differentiable {part.does}"
    got = (
        "one that loses the gradient, by numpy, detach, no_grad, or a step such as round or argmax:"
        " keep to torch, or wrap it with operators.from_numpy or operators.straight_through"
    )
    return ArgumentError(function, part.argument, wanted, got)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two results are the same to rounding, where they are finite."""
    finite = a.isfinite() & b.isfinite()
    if not a.numel() or not bool(finite.any()):
        return True
    scale = a[finite].abs().amax()
    far = finite & ((a - b).abs() > _SLACK * scale)
    return float(far.float().mean()) <= _SHARE
