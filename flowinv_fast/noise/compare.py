"""Whether a noise model's draws look like recordings of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._base.errors import require
from .._base.tensors import check_seed
from ..protocols import DrawnAt, NoiseModel, OnePass, Sampled, missing, provides
from .fit import nats_by_number, recordings
from .law import drawable, drawn_at
from .level import clean_signal, thirds

FAR = 4.0  # standard errors
_BANDS = {"low": (0.0, 0.125), "middle": (0.125, 0.25), "high": (0.25, 1.0)}  # cycles a pixel
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


class Comparison(NamedTuple):
    """A statistic of one recording: its mean over the recordings and over as many draws.

    Attributes:
        name: of the statistic.
        recorded, drawn: the means.
        z: their difference in standard errors.
    """

    name: str
    recorded: float
    drawn: float
    z: float


@dataclass(frozen=True, repr=False)
class LawCheck:
    """What ``noise.compare`` measured. Printed, it is a sentence, and a line for each statistic.

    Attributes:
        rows: a ``Comparison`` for each statistic.
        missed: those that are more than four standard errors apart, the farthest first.
        message: the outcome in a sentence.

    >>> LawCheck((Comparison("mean", 0.5, 0.1, 9.0), Comparison("power, low", 1.0, 1.0, 0.0)))
    The law misses 1 of 2 statistics: mean (0.1 for 0.5).
      statistic                recorded      drawn        z
      mean                          0.5        0.1      9.0
      power, low                      1          1      0.0
    """

    rows: tuple[Comparison, ...]

    @property
    def missed(self) -> tuple[Comparison, ...]:
        far = [row for row in self.rows if not abs(row.z) <= FAR]  # NaN is far
        return tuple(sorted(far, key=lambda row: -abs(row.z)))

    @property
    def message(self) -> str:
        if not self.missed:
            return f"The law has all {len(self.rows)} statistics of the recordings."
        told = [f"{r.name} ({r.drawn:.3g} for {r.recorded:.3g})" for r in self.missed]
        return f"The law misses {len(told)} of {len(self.rows)} statistics: {', '.join(told)}."

    def __repr__(self) -> str:
        lines = [
            f"  {r.name:<22} {r.recorded:>10.4g} {r.drawn:>10.4g} {r.z:>8.1f}" for r in self.rows
        ]
        head = f"  {'statistic':<22} {'recorded':>10} {'drawn':>10} {'z':>8}"
        return "\n".join([self.message, head, *lines])


@torch.no_grad()
def compare(model: Any, samples: Any, clean: Any = None, *, seed: int = 0) -> LawCheck:
    """Statistics of recordings against those of as many draws of a noise model.

    By recording: log p by number, mean, standard deviation and quantiles; the covariance with the
    mean of the other recordings (the fixed pattern); and of the deviations from that mean the power
    of a number at low, middle and high frequencies (below 1/8, to 1/4 and above 1/4 cycles a
    pixel), the largest in standard deviations, and the correlation of neighbours down, across and
    between channels. With ``clean`` also the standard deviation where the clean signal is in its
    lower, middle and upper third, as "deviation, dark", "middle" and "bright". Recordings that a
    model was fitted to flatter it: give those that were held out.

    Args:
        model: a noise model with ``log_prob`` and ``sample``; or by signal, with ``log_likelihood``
            or ``draw``, for which ``clean`` is needed.
        samples: recordings, as ``noise.fit`` takes them.
        clean: f(x) at which each was recorded, as ``noise.fit`` takes it; a model with ``draw`` is
            drawn there.
        seed: of the draws.
    Returns:
        A ``LawCheck``; statistics that are more than four standard errors apart are missed.
    Raises:
        ArgumentError: a model that cannot be scored or drawn, or recordings that ``noise.fit``
            would refuse; fewer than two; a clean signal of another shape or not finite, or none for
            a model that needs it.

    >>> from flowinv_fast.noise import Gaussian
    >>> recorded = Gaussian(0.1).sample((50, 1, 8, 8), torch.Generator().manual_seed(1))
    >>> compare(Gaussian(0.1), recorded).message
    'The law has all 15 statistics of the recordings.'
    >>> [row.name for row in compare(Gaussian(0.1, 0.05), recorded).missed][:2]
    ['mean', 'quantile 0.5']
    """
    name = "noise.compare"
    residual = not isinstance(model, type) and not missing(model, NoiseModel)
    able = (residual or provides(model, OnePass)) and drawable(model)
    wanted = "a noise model with log_prob and sample, or log_likelihood and draw"
    require(able, name, "model", wanted, type(model).__name__)
    check_seed(name, seed)
    x = recordings(name, samples, 2)
    if clean is None:
        plain = residual and provides(model, Sampled)
        wanted = f"f(x) at which it was recorded: the law of a {type(model).__name__} follows it"
        require(plain, name, "clean", wanted, "None")
    at = None if clean is None else clean_signal(name, clean, x)
    random = torch.Generator().manual_seed(int(seed))
    if at is not None and provides(model, DrawnAt):
        drawn = drawn_at(model, at.float(), random)
    else:
        drawn = model.sample(tuple(x.shape), random)
    own, other = _statistics(model, x, at), _statistics(model, drawn.to(x), at)
    return LawCheck(tuple(_compared(key, own[key], other[key]) for key in own))


def _compared(name: str, a: Tensor, b: Tensor) -> Comparison:
    error = math.sqrt((a.var() + b.var()).item() / len(a))
    gap = (a.mean() - b.mean()).item()
    return Comparison(
        name, a.mean().item(), b.mean().item(), gap / error if error else gap and math.inf
    )


def _statistics(model: Any, x: Tensor, clean: Tensor | None) -> dict[str, Tensor]:
    """Statistics of recordings, (N,) each, or fewer of those that have what is asked, by name."""
    at = None if clean is None else clean.float()
    found = {"log p by number": nats_by_number(model, x.float(), at)}
    found |= {} if clean is None else _deviations(x, clean)
    x = x if x.dim() == 4 else x[:, None, None]
    flat = x.flatten(1)
    found["mean"], found["standard deviation"] = flat.mean(1), flat.std(1, correction=0)
    ordered = flat.sort(1).values
    for q in _QUANTILES:
        found[f"quantile {q:g}"] = ordered[:, round(q * (flat.shape[1] - 1))]
    others = (x.sum(0) - x) / (len(x) - 1)
    found["fixed pattern"] = (x * others).mean((1, 2, 3)) - flat.mean(1) * others.mean((1, 2, 3))
    rest = x - others
    power = torch.fft.fft2(rest, norm="ortho").abs().square().mean(1)
    frequency = torch.hypot(*torch.meshgrid(*map(torch.fft.fftfreq, x.shape[2:]), indexing="ij"))
    for band, (low, high) in _BANDS.items():
        inside = ((frequency >= low) & (frequency < high)).to(x)
        if inside.any():
            found[f"power, {band}"] = (power * inside).sum((1, 2)) / inside.sum()
    rest = rest - rest.mean((1, 2, 3), keepdim=True)
    variance = rest.square().mean((1, 2, 3)).clamp_min(torch.finfo(x.dtype).tiny)
    found["largest deviation"] = rest.abs().amax((1, 2, 3)) / variance.sqrt()
    for axis, direction in ((2, "down"), (3, "across"), (1, "between channels")):
        size = x.shape[axis]
        if size > 1:
            near = rest.narrow(axis, 0, size - 1) * rest.narrow(axis, 1, size - 1)
            found[f"neighbours, {direction}"] = near.mean((1, 2, 3)) / variance
    return found


def _deviations(x: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Standard deviations in the thirds of the clean signal, of the recordings with numbers there.

    A third that fewer than two recordings have is left out.
    """
    found = {}
    for third, where in thirds(clean).items():
        where = where.flatten(1).to(x)
        count = where.sum(1)
        some = count > 1
        if int(some.sum()) > 1:
            where, rest, count = where[some], x.flatten(1)[some], count[some]
            mean = (rest * where).sum(1) / count
            square = (rest - mean[:, None]).square() * where
            found[f"deviation, {third}"] = (square.sum(1) / count).sqrt()
    return found
