"""Architectures with the settings they are trained with, by name."""

from __future__ import annotations

from dataclasses import dataclass

from ..flows.realnvp import RealNVPConfig
from .flow import TrainConfig


@dataclass(frozen=True)
class Preset:
    """What ``flowinv-fast train NAME`` trains.

    Args:
        about: one line for help texts.
        flow: architecture.
        train: how to train it.
        crops: train on random crops of photographs, not on whole pictures.
        flips: mirror half of the training images.
    """

    about: str
    flow: RealNVPConfig
    train: TrainConfig
    crops: bool = False
    flips: bool = False


_MNIST, _COLOUR = (1, 28, 28), (3, 64, 64)

# The first two are the paper's (Table 1; the hidden width is not in it).
PRESETS = {
    "mnist-28": Preset(
        "the paper's MNIST prior: 3 scales, 6 blocks, 8 bits",
        RealNVPConfig(_MNIST, 3, 64, 6, support="bounded", bits=8, alpha=1e-5),
        TrainConfig(200, 128, 1e-3, halve_every=40, max_grad_norm=100, penalty=5e-5),
    ),
    "celeba-hq-64": Preset(
        "the paper's CelebA-HQ prior: 6 scales, 10 blocks, 5 bits",
        RealNVPConfig(_COLOUR, 6, 64, 10, support="bounded", bits=5),
        TrainConfig(300, 16, 5e-4, halve_every=60, max_grad_norm=500, penalty=1e-5,
                    recompute=True),
        flips=True,
    ),
    "photo-64": Preset(
        "the same size for crops of photographs, support on all of R^n",
        RealNVPConfig(_COLOUR, 6, 64, 10, bits=5, smoothing=0.0),
        TrainConfig(300, 16, 5e-4, halve_every=60, max_grad_norm=500, penalty=1e-5,
                    recompute=True),
        crops=True,
    ),
    "mnist-28-small": Preset(
        "MNIST on a CPU: 2 blocks, hidden width 32",
        RealNVPConfig(_MNIST, 3, 32, 2, support="bounded", bits=8, alpha=1e-5),
        TrainConfig(7, 64, 2e-3, halve_every=2, penalty=5e-5),
    ),
    "photo-64-small": Preset(
        "crops of photographs on a CPU: 6 scales, 2 blocks, hidden width 32",
        RealNVPConfig(_COLOUR, 6, 32, 2, bits=5, smoothing=0.0),
        TrainConfig(12, 8, 1e-3, halve_every=3, max_grad_norm=500, penalty=1e-5, ema=0.998),
        crops=True,
    ),
}  # fmt: skip
