"""How the level of recorded noise follows the clean signal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base.parameters import numbers
from .._base.tensors import check_broadcast

FLOOR = 1e-4  # least variance of a pixel, wave, component or bin, of the mean variance
BINS = 16
LEAST = 200  # numbers in a bin
_SOME = 2**22  # numbers that levels are fitted to


def clean_signal(function: str, clean: Any, x: Tensor) -> Tensor:
    """f(x) of recordings x (N, ...) of noise, float64 of their shape on their device.

    Raises:
        ArgumentError: of ``function``: no finite numbers, a shape that does not broadcast.
    """
    given = torch.as_tensor(numbers(function, "clean", clean)).to(x)
    check_broadcast(function, "clean", given, tuple(x.shape))
    return given.expand(x.shape)


def level(clean: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of noise by the clean signal: knots (K,) ascending, and levels (K,).

    The numbers are cut by their clean signal into at most 16 bins of about as many, at least 200,
    equal signals together. A knot is at the mean signal of a bin, its level the standard deviation
    about the bin's mean: an offset of the noise is the law's to tell, not part of its level. Where
    the variance is linear in the signal, as that of counted photons, the levels are unbiased.

    Args:
        clean, x: f(x) and y - f(x), one shape, float64.
    """
    signal, noise = clean.flatten(), x.flatten()
    if len(noise) > _SOME:
        some = torch.randint(len(noise), (_SOME,), generator=torch.Generator().manual_seed(0))
        signal, noise = signal[some.to(x.device)], noise[some.to(x.device)]
    signal, order = signal.sort()
    sizes = _sizes(signal)
    parts = list(zip(signal.split(sizes), noise[order].split(sizes), strict=True))
    knots = torch.stack([at.mean() for at, _ in parts])
    variances = torch.stack([part.var(correction=0) for _, part in parts])
    least = (FLOOR * noise.var(correction=0)).clamp_min(torch.finfo(torch.float32).tiny)
    apart = torch.ones(len(knots), dtype=torch.bool, device=knots.device)
    apart[1:] = knots.float().diff() > 0  # as float32 tells them
    return knots[apart], variances.clamp_min(least).sqrt()[apart]


def _sizes(ordered: Tensor) -> list[int]:
    """Sizes of the bins of an ascending signal."""
    count, ends = len(ordered), [0]
    bins = max(1, min(BINS, count // LEAST))
    for i in range(1, bins):
        last = ordered[math.ceil(i * count / bins) - 1]
        end = int(torch.searchsorted(ordered, last, right=True))
        if end - ends[-1] >= LEAST and count - end >= LEAST:
            ends.append(end)
    return [b - a for a, b in zip(ends, [*ends[1:], count], strict=True)]


def thirds(clean: Tensor) -> dict[str, Tensor]:
    """Where the clean signal is dark, middle and bright: a third of the numbers each, but for ties.

    >>> {name: where.tolist() for name, where in thirds(torch.tensor([3.0, 1.0, 2.0])).items()}
    {'dark': [False, True, False], 'middle': [False, False, True], 'bright': [True, False, False]}
    """
    count = clean.numel()
    rank = lambda share: clean.flatten().kthvalue(max(1, math.ceil(share * count))).values
    low, high = rank(1 / 3), rank(1 / 3 + 1 / 3)
    dark = clean <= low
    bright = ~dark & (clean > high if bool((clean > high).any()) else clean >= high)
    return {"dark": dark, "middle": ~dark & ~bright, "bright": bright}
