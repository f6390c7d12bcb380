"""Whether a result can be trusted: what is measured of each part, and said once of the whole."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .._base.errors import ArgumentError, ResultWarning, is_real
from ..noise.law import drawable, drawn_at
from ..protocols import Density, DrawnAt, Flow, PerImage, noisy_inside, provides
from .objectives import generate, has_latents, latent_size, log_noise_of
from .problem import Problem
from .result import Reconstruction
from .solvers import Status

SETTLED = 0.01  # nats a pixel, or a share of a loss in other units, that may be left to gain
UNLIKELY = -6.0  # z-score of a residual below which its law finds it unlikely
MARGIN = 0.05  # nats a pixel by which log p of the prior may leave that of held-out images
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DRAWS = 24  # of the noise in all; half as many an image of a law with parameters per image


# --- of a part of the batch -----------------------------------------------------------------------


@torch.no_grad()
def measured(found: Reconstruction, problem: Problem, seed: int) -> Reconstruction:
    """A part's result with ``misfit`` and ``outside``, see ``Reconstruction``."""
    random = torch.Generator(problem.y.device).manual_seed(seed)
    used = "noise" in problem.objective.needs and drawable(problem.noise)
    draw, misfit = None, None
    if used:
        try:
            draw = _drawn(problem, problem.y - found.noise, random)
            if not noisy_inside(problem.operator):
                misfit = _misfit(found, problem, draw, random)
        except ArgumentError:  # a law that says itself that it cannot be drawn
            pass
        except Exception:  # a user's law; what was solved is not lost for it
            misfit = torch.full_like(found.loss, math.nan)
    try:
        outside = _outside(found, problem, draw, random)
    except Exception:  # an operator that does not take black images, say; nor is it lost for that
        outside = None
    return replace(found, misfit=misfit, outside=outside)


def _drawn(problem: Problem, fx: Tensor, random: torch.Generator) -> Tensor:
    """A draw of the noise of all measurements, where their clean signal is f(x)."""
    draw = drawn_at(problem.noise, fx, random).to(fx)
    if draw.shape != fx.shape:
        raise ValueError(f"a draw of shape {tuple(draw.shape)} for {tuple(fx.shape)}")
    return draw


def _misfit(
    found: Reconstruction, problem: Problem, draw: Tensor, random: torch.Generator
) -> Tensor:
    """The z-score of log p_noise(y - f(x)) among its draws, of which one is there, (B,)."""
    fx, noise = problem.y - found.noise, problem.noise
    own = provides(noise, PerImage) or provides(noise, DrawnAt)
    rounds = _DRAWS // 2 if own else max(2, math.ceil(_DRAWS / len(fx)))
    scores = []
    for left in reversed(range(rounds)):
        scores.append(log_noise_of(noise, fx + draw, fx).double())
        draw = _drawn(problem, fx, random) if left else draw
    drawn = torch.stack(scores) if own else torch.cat(scores)[:, None]
    surplus, std = found.log_noise - drawn.mean(0), drawn.std(0)
    flat = 1e-6 * (1 + drawn.mean(0).abs())  # of a law all of whose draws are as likely
    return torch.where(surplus.abs() <= flat, 0.0, surplus / std.clamp_min(flat)).to(found.loss)


def _outside(
    found: Reconstruction, problem: Problem, draw: Tensor | None, random: torch.Generator
) -> Tensor:
    """Whether y leaves what the operator and the noise make of images in the prior's range, (B,).

    Of the smallest and the largest numbers, here the 5 % and 95 % quantiles, of measurements of
    black, of white and of two images drawn from the prior, or of uniform pixels without latents.
    """
    y, f, prior = problem.y, problem.operator, problem.prior
    if has_latents(prior):
        z = y.new_zeros(len(y), latent_size(prior))
        images = [generate(prior, z.normal_(generator=random)) for _ in range(2)]
    else:
        images = [torch.empty_like(found.x).uniform_(generator=random) for _ in range(2)]
    images += [torch.zeros_like(images[0]), torch.ones_like(images[0])]
    anew = draw is not None and provides(problem.noise, DrawnAt)
    delta = torch.zeros_like(y) if draw is None else draw
    noisy = lambda fx: fx + (_drawn(problem, fx, random) if anew else delta)
    if noisy_inside(f):
        made = [f.after_noise(noisy(f.before_noise(x))) for x in images]
    else:
        made = [noisy(f(x)) for x in images]
    low, high = (torch.stack(q) for q in zip(*map(_range, made)))
    low, high = low.amin(0), high.amax(0)
    slack = (3.0 if draw is None else 0.25) * (high - low)
    least, most = _range(y)
    return ((least < low - slack) | (most > high + slack)) & problem.readable


def _range(y: Tensor) -> tuple[Tensor, Tensor]:
    """The 5 % and 95 % quantiles of measurements (B, ...), (B,) each."""
    ordered = y.flatten(1).sort(1).values
    size = ordered.shape[1]
    return ordered[:, size // 20], ordered[:, size - 1 - size // 20]


# --- of the whole ---------------------------------------------------------------------------------


def judged(found: Reconstruction, problem: Problem, restarts: int) -> Reconstruction:
    """The whole result with what its numbers mean: UNSETTLED images, the prior's range, warnings.

    At most one ``ResultWarning`` of a kind, each naming its images.
    """
    try:
        if "density" in problem.objective.needs:
            over, under = beside_held_out(problem.prior, found.log_prior)
            found = replace(found, prior_overshoot=over, prior_undershoot=under)
        falling = _above(found, found.gain, problem)
        ends = [s is Status.MAX_STEPS and bad for s, bad in zip(found.status, falling.tolist())]
        status = [Status.UNSETTLED if bad else s for s, bad in zip(found.status, ends)]
        found = replace(found, status=status)
        for message in cautions(found, problem, restarts):
            warnings.warn(f"reconstruct: {message}", ResultWarning, stacklevel=caller_level())
    except KeyboardInterrupt:
        found = replace(found, status=stopped(found.status))
        if Status.INTERRUPTED not in found.status:
            raise
    return found


def stopped(status: list[Status]) -> list[Status]:
    """How the images of an interrupted solve ended: one of them at least tells of it."""
    done = {Status.MAX_STEPS, Status.UNSETTLED}
    if Status.INTERRUPTED not in status and not done & set(status):
        done = {Status.CONVERGED, Status.NON_FINITE}
    return [Status.INTERRUPTED if s in done else s for s in status]


def caller_level() -> int:
    """The ``stacklevel`` of the first line outside this package, for a warning of who asks."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


def beside_held_out(prior: Density, log_prior: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Whether log p is above and whether it is below that of held-out images, (B,) each.

    As ``prior_overshoot`` and ``prior_undershoot`` of ``Reconstruction``; None where the prior's
    ``info`` does not tell, or its images are of any size.
    """
    if not provides(prior, Flow):
        return None, None
    info, size = getattr(prior, "info", None), math.prod(prior.shape)
    info = info if isinstance(info, Mapping) else {}
    peak, bits = info.get("log_prob_peak"), info.get("bits_per_dim")
    if not is_real(peak):
        return None, None
    over = log_prior > peak + MARGIN * size
    if not is_real(bits):
        return over, None
    depth = getattr(getattr(prior, "config", None), "bits", 8)
    mean = (depth - bits) * math.log(2) * size  # of log p
    return over, log_prior < mean - 2 * max(0.0, peak - mean) - MARGIN * size


def _above(found: Reconstruction, amount: Tensor | None, problem: Problem) -> Tensor:
    """Where an amount of loss is more than may be left, or not known, (B,)."""
    if amount is None:
        return torch.zeros_like(found.loss, dtype=torch.bool)
    if "noise" in problem.objective.needs:
        return ~(amount <= SETTLED * math.prod(found.x.shape[1:]))
    return ~(amount <= SETTLED * found.loss.abs())


def cautions(found: Reconstruction, problem: Problem, restarts: int) -> Iterator[str]:
    """What to say of a result; one message a kind."""
    is_one = lambda *ends: torch.tensor([s in ends for s in found.status], dtype=torch.bool).to(
        found.steps.device
    )
    solved = ~is_one(Status.FAILED, Status.BAD_MEASUREMENT, Status.INTERRUPTED)
    none = torch.zeros_like(solved)
    flagged = lambda flags: none if flags is None else flags & solved

    outside = flagged(found.outside)  # told first: it explains most of what may follow
    if outside.any():
        yield (
            f"{named(outside)}: y is outside the range of measurements of images like the prior's; "
            "the shipped priors hold images in [0, 1], not 0 .. 255 or [-1, 1]"
        )
    parts = list(_unsettled(found, problem, restarts, is_one(Status.UNSETTLED), solved))
    if parts:
        yield "; ".join(parts)

    lost = is_one(Status.FAILED, Status.NON_FINITE)
    if found.starts is not None and not is_one(Status.INTERRUPTED).any():
        lost |= solved & (found.starts < restarts)
    if lost.any():
        yield (
            f"{named(lost)}: a start whose loss was not finite, at once or later; try another "
            "start or a smaller lr"
        )
    misfit = torch.zeros_like(found.loss) if found.misfit is None else found.misfit
    unlikely = flagged(misfit < UNLIKELY)
    if unlikely.any():
        yield (
            f"{named(unlikely)}: the noise model finds the residual y - f(x) unlikely, "
            f"{-misfit[unlikely].min():.0f} standard deviations below its own draws "
            "(found.misfit); check the noise level and the operator, or raise steps"
        )
    if flagged(misfit.isnan()).any():
        yield "found.misfit is not known: the noise model gives no draws like y that it can score"
    over, under = flagged(found.prior_overshoot), flagged(found.prior_undershoot)
    if over.any() or under.any():
        sides = (("more", over, "try a lower beta"), ("less", under, "check y, or start elsewhere"))
        yield "; ".join(
            f"{named(flags)}: the prior finds x far {how} likely than any held-out image; {advice}"
            for how, flags, advice in sides
            if flags.any()
        )


def _unsettled(
    found: Reconstruction, problem: Problem, restarts: int, falling: Tensor, solved: Tensor
) -> Iterator[str]:
    """Why another solve may end lower; of images that were ``solved``, and those still falling."""
    if falling.any() and found.gain is not None:
        most = found.gain[falling].nan_to_num(0.0).max()
        by = f" by {most:.3g}" if most > 0 else ""  # unknown where too few steps were exact
        yield (
            f"{named(falling)}: the loss was still falling at the last step, as many steps again "
            f"may lower it{by}; raise steps"
        )
    parted = _above(found, found.spread, problem) & solved
    if parted.any():
        yield (
            f"{named(parted)}: no two of {restarts} starts ended near the lowest loss, another may "
            "end lower; raise restarts or steps"
        )
    back = _at_the_start(found, problem) & solved
    if back.any():
        yield (
            f"{named(back)}: no step was better than the start, which is what is returned; try a "
            "smaller lr or more steps"
        )


def _at_the_start(found: Reconstruction, problem: Problem) -> Tensor:
    """Whether the steps led off from the start and never below it, (B,)."""
    if len(found.history) < 2:
        return torch.zeros_like(found.loss, dtype=torch.bool)
    first, last = found.history[0], found.history[-1]
    return torch.isclose(found.loss, first, rtol=1e-6) & _above(found, last - first, problem)


def named(flags: Tensor) -> str:
    """The numbers of the images that are flagged, (B,) bool.

    >>> named(torch.tensor([True, False, True]))
    'images [0, 2]'
    """
    which = flags.nonzero().flatten().tolist()
    more = f" and {len(which) - 10} more" if len(which) > 10 else ""
    return f"images {which[:10]}{more}"
