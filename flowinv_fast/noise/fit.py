"""Noise models fitted to recordings of noise, and compared on recordings that were held out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Laplace, StudentT

from .._base.errors import ResultWarning, did_you_mean, require
from .._base.parameters import numbers
from .._base.tensors import check_number, check_seed, image_sum
from ..protocols import Flow, NoiseModel, OnePass, missing, provides
from .correlated import LowRankGaussian, StationaryGaussian
from .distributions import FromDistribution, as_noise
from .flow import FlowNoise
from .gaussian import Gaussian
from .level import FLOOR, LEAST, clean_signal, level
from .signal_dependent import SignalDependent

FEWEST = 5  # recordings
RANKS = (1, 2, 4, 8, 16, 32, 64)
_ROUNDS = 3  # of components and diagonal, each given the other
_MANY = 1000  # recordings that components of larger images, and ties, are looked for in
_SOME = 2**16  # numbers that degrees of freedom are fitted to
_BATCH = 256  # recordings scored at once
_APART = 0.05  # nats a number between fitted and held-out recordings that are worth a warning
_SAME = 1e-4  # nats a number that are none, such as those of float32
_CLOSE = 2.0  # standard errors by which a family has to do better than a simpler one
_NUMBERS = 10  # recorded for each number fitted, for fewer a warning

Fitted = tuple[Any, float]  # a noise model, and how many numbers were fitted


# --- the result -----------------------------------------------------------------------------------


class Score(NamedTuple):
    """How a family did. Nats are log p by number of a recording; more are better.

    Attributes:
        name: of the family.
        nats, error: mean over the held-out recordings, and its standard error.
        bits: -nats / log 2, bits per dimension; like nats, relative to the unit of the recordings.
        fitted_nats: mean over the recordings that were fitted.
        parameters: numbers that were fitted, infinity where they cannot be counted.
    """

    name: str
    nats: float
    error: float
    bits: float
    fitted_nats: float
    parameters: float


@dataclass(frozen=True, eq=False, repr=False)
class NoiseFit:
    """What ``noise.fit`` found. Printed, it is the table, and in a sentence what was chosen.

    Attributes:
        best: the noise model that was chosen, ready for ``reconstruct``.
        name: its name.
        models: all that were fitted, by name.
        table: a ``Score`` for each, the best first.
        held_out: numbers of the recordings that were held out, (M,), ascending.
        message: why it was chosen, in a sentence.

    Example:
        >>> draws = Gaussian(0.1, 0.5).sample((20, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> found = fit(draws, families=("gaussian", "stationary-gaussian"))
        >>> [score.name for score in found.table], found.name
        (['gaussian', 'stationary-gaussian'], 'gaussian')
    """

    best: Any
    name: str
    models: dict[str, Any]
    table: tuple[Score, ...]
    held_out: Tensor
    message: str

    def __repr__(self) -> str:
        width = max([20, *(len(s.name) for s in self.table)])
        head = f"{'family':<{width}} {'held-out nats a number':>24} {'bits/dim':>9} {'fitted':>9}"
        lines = [head]
        for s in self.table:
            nats = f"{s.nats:.4f} ± {s.error:.4f}"
            lines.append(f"{s.name:<{width}} {nats:>24} {s.bits:>9.4f} {s.fitted_nats:>9.4f}")
        return "\n".join([*lines, self.message])


# --- fitting --------------------------------------------------------------------------------------


def fit(
    samples: Any,
    clean: Any = None,
    *,
    held_out: float = 0.2,
    families: Iterable[str] | None = None,
    flow: Any = None,
    seed: int = 0,
) -> NoiseFit:
    """Noise models fitted to recordings of noise, ranked on recordings that were held out.

    Recordings are split whole, at random by ``seed``; where they follow one another and drift,
    neighbours fall on both sides, and the held-out score is too good. The families, simplest first:

    gaussian             one mean and standard deviation
    laplace              one median and scale
    student-t            one location, scale and number of degrees of freedom (0.5 to 100)
    stationary-gaussian  a mean image, and the power spectrum of the rest
    pixel-gaussian       a mean and a standard deviation for each pixel
    low-rank-gaussian    a mean image, up to 64 components, and a variance for each pixel

    All are fitted by maximum likelihood, but images of few recordings are no better than noise:
    values by pixel are drawn towards their mean by the share of their spread that chance explains
    (empirical Bayes), components have the variance that fresh recordings have along them (Donoho,
    Gavish and Johnstone 2018), their number is doubled as long as a fifth of the fitted recordings,
    left out, gets likelier, and no variance is below 1e-4 of the mean one. ``best`` is the simplest
    family whose score is within two standard errors (of the difference, recording by recording) of
    the highest, and that is not behind on more recordings than chance would have it (a sign test,
    two standard errors too): such a law is as good.

    With ``clean`` every family is fitted once more, as "NAME, by signal": to y - f(x) over a level
    that follows the clean signal, for a ``SignalDependent`` law. The level is linear between at
    most 16 knots: the standard deviation of the numbers in a bin about the bin's mean, each bin
    about as many of them, at least 200, at their mean signal; for the families with a mean image,
    of the deviations from that. A knot counts as a number fitted, and the score is that of
    y given f(x), so that both kinds compare.

    Args:
        samples: y - f(x) of known x, such as dark frames, in the units of the measurements: real
            numbers (N, C, H, W), or (N, D) of vectors, N at least 5. An array, a tensor, or nested
            lists; several copies in float64 have to fit into memory.
        clean: f(x) at which each was recorded, numbers that broadcast to the recordings: of their
            shape, or (1, C, H, W) for one scene. None: no law by signal is fitted.
        held_out: share of the recordings, above 0 and below 1.
        families: names of those to fit; None: all.
        flow: a trained flow, ``noise.FlowNoise`` or another noise model that is ranked with the
            rest, as "flow"; it takes float32, and may be a law by signal where ``clean`` is given.
            It must not have seen the recordings that are held out: those of ``held_out`` of a
            first fit by the same seed.
        seed: of the split.
    Returns:
        A ``NoiseFit``.
    Raises:
        ArgumentError: recordings of another shape, too few, not finite, whole numbers or all the
            same; a clean signal of another shape, not finite, or the same everywhere, which tells
            nothing of a level; an unknown family; a share that leaves fewer than three to fit or
            two to score.
    Warns:
        ResultWarning: fewer than ten numbers recorded for each one fitted, held-out recordings that
            fit worse by 0.05 nats a number, numbers that repeat (rounded or clipped noise), copies
            among the recordings, or a clean signal with too few numbers beside its commonest ones
            for two levels, so that no law by signal is fitted.

    >>> noise = StationaryGaussian(torch.tensor([4.0, 1.0, 0.1, 1.0]).expand(1, 6, 4) / 100)
    >>> recorded = noise.sample((200, 1, 6, 4), torch.Generator().manual_seed(0))
    >>> fit(recorded).name
    'stationary-gaussian'
    """
    with torch.inference_mode(False), torch.no_grad():
        x = recordings("noise.fit", samples, FEWEST)
        signal = None if clean is None else clean_signal("noise.fit", clean, x)
        if signal is not None:
            differs, wanted = bool(signal.amin() < signal.amax()), "a signal that differs, or None"
            require(differs, "noise.fit", "clean", wanted, "one that is the same everywhere")
        _warn_of_ties(x)
        check_seed("noise.fit", seed)
        share = check_number("noise.fit", "held_out", held_out, "a number in (0, 1)", 0, 1)
        count = max(2, round(share * len(x)))
        wanted = f"a share that leaves 3 of {len(x)} recordings to fit"
        require(len(x) - count >= 3, "noise.fit", "held_out", wanted, held_out)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(int(seed)))
        test = order[:count].sort().values
        rest, own = order[count:].to(x.device), test.to(x.device)
        fitted, fresh = x[rest], x[own]
        names = _chosen(families)
        laws = {name: FAMILIES[name](fitted) for name in names}
        at = None if signal is None else (signal[rest], signal[own])
        if at is not None:
            laws |= _by_signal(names, fitted, at[0])
        if flow is not None:
            laws["flow"] = _of_flow(flow, at is not None)
        found = _ranked(laws, fitted, fresh, test, at)
        _warn_of(found, fitted)
    return found


def recordings(function: str, samples: Any, fewest: int) -> Tensor:
    """Recordings of noise as a float64 copy; refused are those that cannot be noise as measured."""
    x = numbers(function, "samples", samples)
    wanted = (
        f"shape (N, C, H, W) or (N, D), N at least {fewest}; of grey (N, H, W): samples[:, None]"
    )
    got = tuple(x.shape) if isinstance(x, Tensor) else x
    good = isinstance(x, Tensor) and x.dim() in (2, 4) and len(x) >= fewest
    require(good, function, "samples", wanted, got)
    x = torch.as_tensor(x).double()
    wanted = "noise in the units of the measurements; bytes are divided by 255, as they are"
    require(not bool((x == x.round()).all()), function, "samples", wanted, "whole numbers")
    same = bool((x == x[:1]).all())
    require(not same, function, "samples", "recordings that differ", f"{len(x)} that are equal")
    return x


def _warn_of_ties(x: Tensor) -> None:
    """Noise that is rounded, clipped or partly absent has no density; copies tell nothing new."""
    values, counts = x[:_MANY].unique(return_counts=True)
    most, share = int(counts.argmax()), counts.max().item() / counts.sum().item()
    if share > 0.2:
        _warn(
            f"{100 * share:.0f} % of the numbers are {values[most]:.4g}: "
            "rounded or clipped noise has no density, and families that peak there score too well"
        )
    flat = x.flatten(1)
    copies = len(x) - len((flat * torch.arange(flat.shape[1]).to(x).cos()).sum(1).unique())
    if copies:
        _warn(f"{copies} of {len(x)} recordings are copies of others: scores are too good")


def _warn(message: str) -> None:
    warnings.warn(f"noise.fit: {message}", ResultWarning, stacklevel=4)


def _chosen(families: Iterable[str] | None) -> list[str]:
    """Names of families in the order of the table."""
    asked = list(FAMILIES) if families is None else families
    wanted = f"names among {', '.join(FAMILIES)}"
    listed = isinstance(asked, Iterable) and not isinstance(asked, str)
    require(listed, "noise.fit", "families", wanted, repr(asked)[:80])
    asked = list(asked)
    for name in asked:
        known = isinstance(name, str) and name in FAMILIES
        require(known, "noise.fit", "families", wanted, did_you_mean(name, FAMILIES))
    require(bool(asked), "noise.fit", "families", wanted, "none")
    return [name for name in FAMILIES if name in asked]


def _by_signal(names: list[str], fitted: Tensor, clean: Tensor) -> dict[str, Fitted]:
    """The families on unit scale, each with the level that follows the clean signal."""
    laws: dict[str, Fitted] = {}
    levels: dict[bool, tuple[Tensor, Tensor]] = {}
    for name in names:
        pattern = name in PATTERNED
        if pattern not in levels:
            levels[pattern] = level(clean, _centred(fitted)[1] if pattern else fitted)
        signal, std = levels[pattern]
        if len(signal) < 2:
            _warn(
                f"no law by signal: fewer than {2 * LEAST} numbers, or fewer than {LEAST} beside "
                "the commonest clean signal"
            )
            break
        gauge = SignalDependent(Gaussian(1.0), signal, std)
        law, parameters = FAMILIES[name](fitted / gauge.std_of(clean))
        laws[f"{name}, by signal"] = SignalDependent(law, signal, std), parameters + len(std)
    return laws


def _of_flow(flow: Any, by_signal: bool) -> Fitted:
    model = FlowNoise(flow) if provides(flow, Flow) else as_noise(flow)
    good = not isinstance(model, type) and not missing(model, NoiseModel)
    good = good or by_signal and provides(model, OnePass)
    wanted = "a flow, or a noise model with log_prob"
    wanted += ", or with log_likelihood" if by_signal else ""
    require(good, "noise.fit", "flow", wanted, type(flow).__name__)
    weights: Any = getattr(model, "flow", model)
    if not isinstance(weights, nn.Module):
        return model, math.inf
    inside = getattr(getattr(model, "whitening", None), "numbers", 0)  # fitted too
    return model, inside + sum(p.numel() for p in weights.parameters())


def _ranked(
    laws: dict[str, Fitted],
    fitted: Tensor,
    fresh: Tensor,
    test: Tensor,
    clean: tuple[Tensor, Tensor] | None,
) -> NoiseFit:
    """The families by their score, and the one to take; ``clean``: of ``fitted`` and ``fresh``."""
    scores, table = {}, []
    at = (None, None) if clean is None else clean
    for name, (model, parameters) in laws.items():
        own: Any = Tensor.float if name == "flow" else Tensor.double  # a flow takes float32
        seen, nats = (
            nats_by_number(model, own(x), None if c is None else own(c))
            for x, c in zip((fitted, fresh), at, strict=True)
        )
        scores[name], mean = nats, nats.mean().item()
        bits, error = -mean / math.log(2), _error(nats)
        table.append(Score(name, mean, error, bits, seen.mean().item(), parameters))
    simplest = sorted(table, key=lambda s: s.parameters)  # stable: FAMILIES are in this order
    table.sort(key=lambda s: -s.nats)
    top = table[0]
    behind = {s.name: scores[top.name] - scores[s.name] for s in table}
    chosen = next(s for s in simplest if s == top or _equal(behind[s.name]))
    reason = "the only family that was fitted."
    if any(_equal(behind[s.name]) for s in table if s != chosen):
        reason = "the simplest of those within two standard errors of the best."
    elif len(table) > 1:
        gap = behind[table[1].name]
        reason = f"{gap.mean():.4f} ± {_error(gap):.4f} nats a number above {table[1].name}."
    message = f"Chosen: {chosen.name}, {reason}"
    models = {name: model for name, (model, _) in laws.items()}
    return NoiseFit(models[chosen.name], chosen.name, models, tuple(table), test, message)


def _equal(behind: Tensor) -> bool:
    """Whether scores are behind others by no more than chance: in the mean, and in how many.

    A few recordings that a law finds all but impossible make the mean's error as large as the mean.
    """
    close = behind.mean().item() <= max(_CLOSE * _error(behind), _SAME)
    more = (behind > _SAME).double().mean().item() - 0.5
    return close and more <= _CLOSE * 0.5 / math.sqrt(len(behind))


def _error(values: Tensor) -> float:
    """Standard error of a mean."""
    return values.std().item() / math.sqrt(len(values))


def nats_by_number(model: Any, x: Tensor, clean: Tensor | None = None) -> Tensor:
    """log p by number of each recording, (N,); -infinity where it is none.

    A law without ``log_prob`` is scored at the clean signal, shaped like the recordings.
    """
    if clean is None or not missing(model, NoiseModel):
        parts = [image_sum(model.log_prob(part)).double() for part in x.split(_BATCH)]
    else:
        pairs = zip(x.split(_BATCH), clean.split(_BATCH), strict=True)
        parts = [image_sum(model.log_likelihood(part + at, at)).double() for part, at in pairs]
    return (torch.cat(parts) / math.prod(x.shape[1:])).nan_to_num(nan=-math.inf, neginf=-math.inf)


def _warn_of(found: NoiseFit, fitted: Tensor) -> None:
    chosen = next(s for s in found.table if s.name == found.name)
    if chosen.name != "flow" and fitted.numel() < _NUMBERS * chosen.parameters:
        _warn(
            f"{len(fitted)} recordings ({fitted.numel():,} numbers) for the {chosen.parameters:,} "
            f"numbers of {chosen.name}: its values are uncertain, record more"
        )
    gap = chosen.fitted_nats - chosen.nats
    if gap > _APART + 3 * chosen.error:
        _warn(
            f"{chosen.name} fits held-out recordings worse than those it was fitted to, by "
            f"{gap:.2g} nats a number: record more, or look for drift between recordings"
        )


# --- the families ---------------------------------------------------------------------------------


def _gaussian(x: Tensor) -> Fitted:
    return Gaussian(x.std(correction=0).item(), x.mean().item()), 2


def _laplace(x: Tensor) -> Fitted:
    median = x.median().item()
    return FromDistribution(Laplace(median, (x - median).abs().mean().item())), 2


def _student(x: Tensor) -> Fitted:
    """Location, log scale and degrees of freedom by the likelihood's gradient."""
    flat, random = x.flatten(), torch.Generator().manual_seed(0)
    some = torch.randint(len(flat), (_SOME,), generator=random).to(x.device)
    some = flat[some] if len(flat) > _SOME else flat
    centre = some.median()
    size = 1.5 * (some - centre).abs().median()
    size = size if size > 0 else math.sqrt(FLOOR) * x.std()  # of noise that is mostly absent
    theta = torch.tensor([0.0, 0.0, -3.0]).to(x).requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=100, line_search_fn="strong_wolfe")

    def law() -> StudentT:
        scale = size * (5 * (theta[1] / 5).tanh()).exp()  # within bounds, as the degrees of freedom
        return StudentT(0.5 + 99.5 * theta[2].sigmoid(), centre + size * theta[0], scale)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -law().log_prob(some).mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
        return FromDistribution(law()), 3


def _stationary(x: Tensor) -> Fitted:
    mean, rest = _centred(x)
    axes = (-2, -1) if x.dim() > 2 else (-1,)
    power = torch.fft.fftn(rest, dim=axes, norm="ortho").abs().square().mean(0)
    size = mean.numel()
    return StationaryGaussian(_floored(power), mean), size + size // 2 + 1


def _pixels(x: Tensor) -> Fitted:
    mean, rest = _centred(x)
    variance, count = _floored(rest.square().mean(0)), len(x)
    # Chance of its logarithm: as Gaussian noise has it, or as fourth moments tell, if that is more.
    kurtosis = (rest.pow(4).mean(0) / variance.square()).mean()
    error = ((kurtosis - 1) / count).clamp_min(2 / (count - 1))
    drawn = _shrunk(variance.log(), error)[0].exp()
    variance = drawn * (variance / drawn).mean()  # the likeliest multiple of it
    return Gaussian(variance.sqrt(), mean), 2 * mean.numel()


def _low_rank(x: Tensor) -> Fitted:
    mean, rest = _centred(x)
    count = max(1, len(x) // 5)
    # As many components as make recordings likely that they were not made of.
    rank, best = 1, -math.inf
    for tried in (r for r in RANKS if r == 1 or r <= len(x) // 4):
        law = LowRankGaussian(0.0, *_components(rest[count:], tried))
        score = nats_by_number(law, rest[:count]).mean().item()
        if score <= best:
            break
        rank, best = tried, score
    factor, diagonal = _components(rest, rank)
    return LowRankGaussian(mean, factor, diagonal), (2 + len(factor)) * mean.numel()


FAMILIES: dict[str, Callable[[Tensor], Fitted]] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "student-t": _student,
    "stationary-gaussian": _stationary,
    "pixel-gaussian": _pixels,
    "low-rank-gaussian": _low_rank,
}
PATTERNED = ("stationary-gaussian", "pixel-gaussian", "low-rank-gaussian")  # with a mean image


# --- their parts ----------------------------------------------------------------------------------


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean image, and deviations from it as large as those of fresh recordings.

    Of N recordings the mean square about their own mean is that of fresh ones times
    (N - 1) / (N + 1); about a number that is the same for all pixels, it is the same.
    """
    count = len(x)
    mean, kept = _shrunk(x.mean(0), x.var(0) / count)
    return mean, (x - mean) * ((count + kept) / (count - kept)).sqrt()


def _shrunk(values: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Values by pixel, drawn towards their mean; and the shares of their deviations that are kept.

    ``error`` is the variance that each has by chance. Their spread beyond that is their own.
    """
    centre = values.mean()
    own = (values.var(correction=0) - error.mean()).clamp_min(0)
    kept = (own / (own + error)).nan_to_num(0.0).expand(values.shape)
    return centre + kept * (values - centre), kept


def _floored(variance: Tensor) -> Tensor:
    return variance.clamp_min(FLOOR * variance.mean())


def _components(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Components, at most ``rank``, and the variances of the rest, of recordings of mean zero."""
    total = x.square().mean(0).flatten()
    flat = x.flatten(1)
    flat = flat[:_MANY] if min(flat.shape) > _MANY else flat
    ratio, diagonal = flat.shape[1] / len(flat), _floored(total)
    for _ in range(_ROUNDS):
        std = diagonal.sqrt()
        _, sizes, rows = torch.linalg.svd(flat / std, full_matrices=False)
        variance = sizes[:rank].square() / len(flat)
        factor = _excess(variance, ratio).sqrt()[:, None] * rows[:rank] * std
        diagonal = (total - factor.square().sum(0)).clamp_min(FLOOR * total.mean())
    shown = factor[: max(1, int(factor.any(1).sum()))]  # those above what chance makes come first
    return shown.view(-1, *x.shape[1:]), diagonal.view(x.shape[1:])


def _excess(variance: Tensor, ratio: float) -> Tensor:
    """What fresh recordings have above 1 along components found with these variances.

    In white noise of variance 1 with one component of variance l, of ``ratio`` numbers by
    recording, one of variance l (1 + ratio / (l - 1)) is found, at an angle of the squared cosine
    (1 - ratio / (l - 1)^2) / (1 + ratio / (l - 1)); white noise alone has them up to
    (1 + sqrt(ratio))^2.
    """
    sum_ = (variance + 1 - ratio).clamp_min(0)
    above = (sum_ + (sum_.square() - 4 * variance).clamp_min(0).sqrt()) / 2 - 1
    above = above.clamp_min(math.sqrt(ratio))
    cosine = (1 - ratio / above.square()) / (1 + ratio / above)
    return torch.where(variance > (1 + math.sqrt(ratio)) ** 2, above * cosine.clamp_min(0), 0.0)
