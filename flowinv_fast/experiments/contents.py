"""What the numbers of a cell depend on, by content: not by the names of files."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .._base.identity import digest
from .._base.version import VERSION
from ..flows import load_flow
from .config import ReproduceConfig
from .digits import RealDigits
from .images import Images
from .methods import Context
from .task import Setting

Key = dict[str, Any]


class Contents:
    """SHA-256 of the images, digits and weights of a run, each computed once.

    Args:
        config: of the run.
        context: its priors.
        images, other: its images, and those of the other data set.
    """

    def __init__(self, config: ReproduceConfig, context: Context, images: Images, other: Images):
        self.config, self.context = config, context
        self.images, self.other = images, other
        self._parts: dict[tuple[bool, str, int, int], str] = {}
        self._priors: dict[str, str] = {}

    def of_cell(self, setting: Setting, prior: str, part: str, first: int, last: int) -> Key:
        """What fixes the numbers of these images of a setting, beside the names of the cell.

        Args:
            setting: whose measurements.
            prior: ``Method.prior``.
            part: "test" or "tuning".
            first, last: which of its images.
        """
        found = {"images": self._of_part(setting.other_images, part, first, last)}
        if isinstance(setting.noise_source, RealDigits):
            found |= {"digits": self.digits, "noise flow": self.noise_flow}
        if prior:
            found["prior"] = self.of_prior(prior)
        return {**found, **self._of_every()}

    def of_uncertainty(self, count: int) -> Key:
        """The same for what is drawn, or bounded, for the first test images."""
        found = {"images": self._of_part(False, "test", 0, count), "prior": self.of_prior("flow")}
        return {**found, **self._of_every()}

    def told(self) -> dict[str, str]:
        """For results.json: everything that the run read."""
        priors = {"flow": self.of_prior("flow")}
        priors |= {name: self.of_prior(name) for name in self.context.generators}
        images = {part: digest(getattr(self.images, part)) for part in ("test", "tuning")}
        return {**images, "digits": self.digits, **priors}

    def _of_every(self) -> Key:
        numbers = {name: getattr(self.config, name) for name in ("steps", "restarts", "seed")}
        return {**numbers, "flowinv_fast": VERSION, "torch": torch.__version__}

    def _of_part(self, other: bool, part: str, first: int, last: int) -> str:
        place = (other, part, first, last)
        if place not in self._parts:
            images: Tensor = getattr(self.other if other else self.images, part)
            self._parts[place] = digest(images[first:last])
        return self._parts[place]

    @functools.cached_property
    def digits(self) -> str:
        """Of the real digits."""
        return digest(self.images.digits)

    @functools.cached_property
    def noise_flow(self) -> str:
        """Of the flow that models them."""
        return of_weights(load_flow("digits-noise-28"))

    def of_prior(self, name: str) -> str:
        """Of the flow, or of a generator by its name."""
        if name not in self._priors:
            model = self.context.unfrozen if name == "flow" else self.context.generators[name]
            self._priors[name] = of_weights(model)
        return self._priors[name]


def of_weights(model: nn.Module) -> str:
    """SHA-256 of a flow or generator: weights, architecture, and the facts in its file."""
    config, info = getattr(model, "config", None), getattr(model, "info", {})
    told = config.to_dict() if config is not None else {}
    return digest([model.state_dict(), told, info])
