"""How to train, whatever is trained, and what a trainer reads of an architecture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from .._base.backend import PRECISIONS
from .._base.errors import is_real, is_whole, require
from .._base.tensors import DATA_SEEDS, check_seed

SCHEDULES = ("halving", "cosine")


class ModelConfig(Protocol):
    """What a trainer reads of an architecture: the size of its images and its plain values."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in the header of a weights file."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever is trained.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all processes together.
        lr: Adam learning rate, reached after ``warmup`` steps.
        warmup: steps of linear learning-rate warm-up.
        schedule: of the learning rate after the warm-up: "halving", see ``halve_every``, or
            "cosine": along half a cosine to zero at the last epoch, or, where ``run`` is given
            minutes, when these are over if that is sooner.
        halve_every: epochs after which the learning rate is halved, repeatedly; None: never.
        seed: fixes everything random, 0 .. 2^40 - 1.
        precision: what the networks multiply in: fp32, tf32 (CUDA) or bf16.
        compile: pass the networks through torch.compile; pays on long runs.
    Raises:
        ArgumentError: a value out of its range.
    """

    epochs: float = 10
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    schedule: str = "halving"
    halve_every: float | None = None
    seed: int = 0
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        self._check_positive("epochs", "lr")
        self._check(is_whole(self.batch, 1), "batch", "an integer of at least 1")
        self._check(is_whole(self.warmup), "warmup", "an integer of at least 0")
        self._check(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        if self.halve_every is not None:
            self._check_positive("halve_every")
        check_seed(type(self).__name__, self.seed, seeds=DATA_SEEDS)
        self._check(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._check(is_real(value) and value > 0, name, "a finite positive number")

    def _check(self, good: bool, name: str, wanted: str) -> None:
        require(good, type(self).__name__, name, wanted, repr(getattr(self, name)))


def curve_in_words(log: list[str], most: int = 20) -> str:
    """Minutes and held-out bits/dim of the lines of a flow's log, about ``most`` of them.

    >>> curve_in_words(['{"seconds": 60.0, "bits_per_dim": 2.5}'])
    '1.0: 2.500'
    """
    points = [(line.get("seconds"), line.get("bits_per_dim")) for line in map(json.loads, log)]
    points = [point for point in points if all(map(is_real, point))]
    points = points[:: -(-len(points) // most) or 1][:-1] + points[-1:]
    return ", ".join(f"{seconds / 60:.1f}: {bits:.3f}" for seconds, bits in points)
