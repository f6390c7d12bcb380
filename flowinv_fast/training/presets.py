"""What is trained: architectures with the settings they are trained with, by name and by model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .._base.errors import did_you_mean, require
from .._base.files import user_folder
from ..flows.flow import FlowConfig
from ..flows.glow import GlowConfig
from ..flows.io import available_flows
from ..flows.multi_scale import MultiScaleConfig
from ..flows.realnvp import RealNVPConfig
from ..flows.tarflow import TarFlowConfig
from ..generators.nets import GeneratorConfig
from .config import ModelConfig, TrainConfig
from .flow import FlowTrainConfig
from .generator import GeneratorTrainConfig


@dataclass(frozen=True)
class Preset:
    """What ``flowinv-fast train`` trains.

    Args:
        about: one line for help texts.
        config: architecture, of a flow or a generator.
        train: how to train it.
        crops: train on random crops of photographs, not on whole pictures.
        patches: the same of the photographs as they are, not resized.
        flips: mirror half of the training images.
    """

    about: str
    config: ModelConfig
    train: TrainConfig
    crops: bool = False
    patches: bool = False
    flips: bool = False


_MNIST, _COLOUR = (1, 28, 28), (3, 64, 64)
_PAPERS_COLOUR = FlowTrainConfig(
    300, 16, 5e-4, halve_every=60, max_grad_norm=500, penalty=1e-5, recompute=True
)

_ONE_CORE: dict[str, Any] = {"max_grad_norm": 500, "penalty": 1e-5, "ema": 0.998}

# The first two are the paper's (Table 1; the hidden width is not in it).
PRESETS = {
    "mnist-28": Preset(
        "the paper's MNIST prior: 3 scales, 6 blocks, 8 bits",
        RealNVPConfig(_MNIST, 3, 64, 6, support="bounded", bits=8, alpha=1e-5),
        FlowTrainConfig(200, 128, 1e-3, halve_every=40, max_grad_norm=100, penalty=5e-5),
    ),
    "celeba-hq-64": Preset(
        "the paper's CelebA-HQ prior: 6 scales, 10 blocks, 5 bits",
        RealNVPConfig(_COLOUR, 6, 64, 10, support="bounded", bits=5),
        _PAPERS_COLOUR,
        flips=True,
    ),
    "photo-64": Preset(
        "the same size for crops of photographs, support on all of R^n",
        RealNVPConfig(_COLOUR, 6, 64, 10, support="unbounded", bits=5, smoothing=0.0),
        _PAPERS_COLOUR,
        crops=True,
    ),
    "mnist-28-small": Preset(
        "MNIST on a CPU, a Glow: 2 blocks, hidden width 32",
        GlowConfig(_MNIST, 3, 32, 2, support="bounded", bits=8, alpha=1e-5, early_squeeze=True),
        FlowTrainConfig(7, 64, 2e-3, schedule="cosine", penalty=5e-5),
    ),
    "photo-64-small": Preset(
        "crops of photographs on a CPU, a Glow: 6 scales, 2 blocks, hidden width 32",
        GlowConfig(_COLOUR, 6, 32, 2, bits=5, smoothing=0.0, early_squeeze=True),
        FlowTrainConfig(10, 16, 1.2e-3, schedule="cosine", **_ONE_CORE),
        crops=True,
    ),
    "photo-patch-16": Preset(
        "patches of photographs, for PatchPrior, a quarter of an hour on a CPU",
        RealNVPConfig((3, 16, 16), 3, 32, 1, support="unbounded", bits=8, smoothing=0.02),
        FlowTrainConfig(24, 64, 2e-3, halve_every=5, **_ONE_CORE),
        patches=True,
    ),
}


def _with(kind: type[MultiScaleConfig], preset: Preset) -> Preset:
    """The same sizes and settings for another kind of flow of couplings."""
    names = {f.name for f in fields(kind)}
    given = {k: v for k, v in vars(preset.config).items() if k in names}
    return replace(preset, config=kind(**given))


def _tarflow(preset: Preset) -> Preset:
    """The same images, dequantised alike, for a TarFlow of its own size and settings."""
    given = {f.name: getattr(preset.config, f.name) for f in fields(FlowConfig)}
    train = FlowTrainConfig(60, 128, 2e-3, schedule="cosine", penalty=0.0, precision=fast())
    return replace(preset, config=TarFlowConfig(**given), train=train)


def fast() -> str:
    """The precision in which this machine multiplies matrices fastest.

    A CPU that has no instructions for bf16 is several times slower in it.
    """
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    able = any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return "bf16" if able or torch.cuda.is_available() else "fp32"


_FLOW = Preset("", RealNVPConfig(_MNIST), FlowTrainConfig())
# How a preset becomes one of each model that is a flow.
FLOWS: dict[str, Callable[[Preset], Preset]] = {
    "realnvp": partial(_with, RealNVPConfig),
    "glow": partial(_with, GlowConfig),
    "tarflow": _tarflow,
}
# What each model starts from where no preset is named; the shape is that of the images.
DEFAULTS: dict[str, Callable[[], Preset]] = {
    **{name: partial(made, _FLOW) for name, made in FLOWS.items()},
    "dcgan": lambda: Preset("", GeneratorConfig(_MNIST, "dcgan"), GeneratorTrainConfig(lr=2e-4)),
    "vae": lambda: Preset("", GeneratorConfig(_MNIST, "vae"), GeneratorTrainConfig(lr=1e-3)),
}


def chosen_preset(name: str | None, model: str | None = None) -> Preset:
    """The preset of this name, for a model; without a name the model's default.

    Args:
        name: of PRESETS, which are of flows, or None.
        model: "realnvp", "glow", "tarflow", "dcgan" or "vae"; None: the preset's own, and without a
            name a RealNVP.
    Raises:
        ArgumentError: no such preset, or one for a generator.

    >>> chosen_preset("mnist-28").config.blocks
    6
    """
    got = did_you_mean(name, PRESETS)
    require(name is None or name in PRESETS, "train", "PRESET", f"one of {list(PRESETS)}", got)
    if name is None:
        return DEFAULTS[model or "realnvp"]()
    if model is None:
        return PRESETS[name]
    require(model in FLOWS, "train", "PRESET", f"none for a {model}", name)
    return FLOWS[model](PRESETS[name])


def output_folder(name: str | None, out: str | None) -> Path:
    """Where a training's files go: ``out``, or the preset's name below the user's folder.

    There ``load_flow`` finds the flow by that name, unless a shipped flow has it.

    Raises:
        ArgumentError: neither is given, or the name is a shipped flow's.
    """
    shipped = name in available_flows()
    wanted = f"a folder (a flow named {name} is shipped)" if shipped else "a folder"
    require(bool(out or name and not shipped), "train", "--out", wanted, "none")
    return Path(out) if out else user_folder() / str(name)
