"""The commands ``flowinv-fast train`` and ``flowinv-fast card``; torch is loaded when one runs."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .presets import Preset

MODELS = ("realnvp", "glow", "dcgan", "vae")
_FLOWS = MODELS[:2]
_INT: dict[str, Any] = {"type": int}
_FLOAT: dict[str, Any] = {"type": float}
_FLAG: dict[str, Any] = {"action": "store_true"}
# Options that change a preset: name, how argparse takes it, default in words, meaning.
_Option = tuple[str, dict[str, Any], str, str]
_SUPPORT = "bounded: logit, images in [0, 1]; unbounded: all of R^n"
_SMOOTHING = "std of the training noise (unbounded); 0: uniform dequantisation"
_FLOW_OPTIONS: list[_Option] = [
    ("support", {"choices": ["bounded", "unbounded"]}, "unbounded", _SUPPORT),
    ("bits", _INT, "8", "pixel depth"),
    ("alpha", _FLOAT, "0.05", "margin of the logit (bounded)"),
    ("smoothing", _FLOAT, "0.08", _SMOOTHING),
    ("scales", _INT, "3", "scales"),
    ("hidden", _INT, "64", "channels of the conditioners"),
    ("blocks", _INT, "2", "residual blocks per conditioner"),
]
_GENERATOR_OPTIONS: list[_Option] = [
    ("latent-dim", _INT, "64", "numbers in a latent"),
    ("width", _INT, "32", "channels of the largest maps"),
]
_TRAIN_OPTIONS: list[_Option] = [
    ("epochs", _FLOAT, "10", "passes over the data"),
    ("batch", _INT, "128", "images per step, over all processes"),
    ("lr", _FLOAT, "1e-3, and 2e-4 for a dcgan", "learning rate"),
    ("halve-every", _FLOAT, "40 for a flow, else never", "epochs per halving of the learning rate"),
    ("warmup", _INT, "200 for a flow, else 0", "steps of learning-rate warm-up"),
    ("seed", _INT, "0", "seed of everything random"),
    ("precision", {"choices": ["fp32", "tf32", "bf16"]}, "fp32", "of the networks"),
    ("compile", _FLAG, "", "torch.compile the networks"),
]
_FLOW_TRAIN_OPTIONS: list[_Option] = [
    ("gain-lr", _FLOAT, "10", "learning rate of the couplings' gains over --lr"),
    ("max-grad-norm", _FLOAT, "100", "gradient clipping"),
    ("penalty", _FLOAT, "5e-5", "weight-normalisation penalty"),
    ("ema", _FLOAT, "0.999", "decay of the weights' moving average"),
    ("recompute", _FLAG, "", "recompute activations: memory of one coupling"),
]


def add_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
) -> None:
    """Add ``train`` and ``card``.

    Args:
        subparsers: of ``flowinv-fast``; each command sets ``run``, which takes the parsed arguments
            and returns the exit status.
        common: parser of the options of every command that computes.
    """
    _add_train(subparsers, common)
    _add_card(subparsers, common)


# --- train ----------------------------------------------------------------------------------------


def _add_train(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
) -> None:
    train = subparsers.add_parser(
        "train",
        parents=[common],
        help="train a flow, a DCGAN or a VAE on your images",
        description="Train a prior on an IDX file, a .npy array or a folder of pictures. "
        "Running the same command again continues an interrupted run; torchrun shares the "
        "training of a flow among processes.",
        epilog="presets: mnist-28 and celeba-hq-64, the paper's; photo-64, the latter for crops of "
        "photographs; mnist-28-small and photo-64-small, for CPUs. Options change a preset.",
    )
    _add_data(train)
    groups = {
        "architecture of a flow (realnvp, glow)": _FLOW_OPTIONS,
        "architecture of a generator (dcgan, vae)": _GENERATOR_OPTIONS,
        "training": _TRAIN_OPTIONS,
        "training of a flow": _FLOW_TRAIN_OPTIONS,
    }
    for title, options in groups.items():
        group = train.add_argument_group(title)
        for name, kind, default, meaning in options:
            text = f"{meaning} (default {default})" if default else meaning
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **kind)
    add = train.add_argument_group("run").add_argument
    add("--minutes", type=float, default=float("inf"), help="stop after this long")
    add("--evaluate-every", type=float, default=1.0, help="epochs between evaluations (default 1)")
    add("--save-minutes", type=float, default=5.0, help="what a kill loses at most (default 5)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)


def _add_data(train: argparse.ArgumentParser) -> None:
    """The preset, the images, the files and the model."""
    add = train.add_argument
    add("preset", nargs="?", metavar="PRESET", help="architecture and settings by name, see below")
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="IDX file, .npy array or folder of pictures; "
        "a folder with the parts train and test (or val, valid) is split so",
    )
    add(
        "--held-out",
        metavar="PATH",
        help="the same for held-out images; without it, --held-out-fraction",
    )
    add(
        "--held-out-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="last part of --data that is held out (default 0.1: of the 30,000 pictures of "
        "CelebA-HQ, 27,000 and 3,000); a dcgan or vae holds out none",
    )
    add(
        "--out",
        metavar="FOLDER",
        help="for weights, state, log and samples (default with a "
        "preset: ~/.local/share/flowinv_fast/PRESET, where load_flow finds it by name, unless a "
        "shipped flow has that name)",
    )
    add("--size", type=int, nargs=3, metavar=("C", "H", "W"), help="image size for a folder")
    add("--crops", action="store_true", help="random crops of the pictures of a folder (a flow's)")
    add(
        "--flips",
        action="store_true",
        help="mirror half of the training images (a flow's; crops always)",
    )
    add("--start", metavar="FLOW", help="weights to start at: a name or a file (a flow's)")
    add(
        "--model",
        choices=MODELS,
        default="realnvp",
        help="flows: realnvp (default), or glow, with 1x1 convolutions and learned priors of the "
        "latents that leave early; generators without a density: dcgan, vae",
    )


def _train(arguments: argparse.Namespace) -> int:
    from .._base.errors import require
    from .presets import chosen_preset, output_folder
    from .processes import process_count

    preset = chosen_preset(arguments.preset, arguments.model)
    out = output_folder(arguments.preset, arguments.out)
    if arguments.model in _FLOWS:
        return _train_flow(arguments, preset, out)
    alone, wanted = process_count() == 1, "a flow's in several processes"
    require(alone, "train", "--model", wanted, arguments.model)
    return _train_generator(arguments, preset, out)


def _train_flow(arguments: argparse.Namespace, preset: Preset, out: Path) -> int:
    from ..flows.io import load_flow
    from .flow import FlowTrainer
    from .processes import shared_training
    from .split import training_images

    train_config = _changed(preset.train, arguments)
    images, held_out = training_images(
        arguments.data,
        arguments.held_out,
        size=_size(arguments) or (preset.config.shape if arguments.preset else None),
        crops=arguments.crops or preset.crops,
        flips=arguments.flips or preset.flips,
        fraction=arguments.held_out_fraction,
        seed=train_config.seed,
    )
    assert held_out is not None  # there is a fraction
    config = _changed(preset.config, arguments, shape=images.shape)
    start = load_flow(arguments.start) if arguments.start else None
    info, progress = {"data": arguments.data}, not arguments.quiet
    with shared_training(arguments.device) as device:
        trainer = FlowTrainer(
            config, train_config, images, held_out, out, device, info, progress, start
        )
        result = trainer.run(arguments.minutes, arguments.evaluate_every, arguments.save_minutes)
    if trainer.rank == 0:
        print(
            f"{result['bits_per_dim']:.4f} bits/dim on {result['held_out_images']} held-out "
            f"images, epoch {result['epoch']:g}; weights in {out}/flow.safetensors"
        )
    return 0


def _train_generator(arguments: argparse.Namespace, preset: Preset, out: Path) -> int:
    from .generator import GeneratorTrainer
    from .processes import shared_training
    from .split import training_images

    train_config = _changed(preset.train, arguments)
    images, held_out = training_images(arguments.data, arguments.held_out, size=_size(arguments))
    config = _changed(preset.config, arguments, shape=images.shape)
    info, progress = {"data": arguments.data}, not arguments.quiet
    with shared_training(arguments.device) as device:
        trainer = GeneratorTrainer(
            config, train_config, images, held_out, out, device, info, progress
        )
        result = trainer.run(arguments.minutes, arguments.evaluate_every, arguments.save_minutes)
    print(f"{result['epoch']:g} epochs; weights in {out}/generator.safetensors")
    return 0


def _changed(config: Any, arguments: argparse.Namespace, **values: Any) -> Any:
    """A configuration with those of its fields that were given on the command line."""
    names = [field.name for field in fields(config)]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return replace(config, **given, **values)


def _size(arguments: argparse.Namespace) -> tuple[int, int, int] | None:
    return tuple(arguments.size) if arguments.size else None


# --- card -----------------------------------------------------------------------------------------


def _add_card(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
) -> None:
    card = subparsers.add_parser(
        "card",
        parents=[common],
        help="measure a flow on held-out images and write its model card",
        description="Bits per dimension, round trips, samples and the density of other images, as "
        "NAME.json, NAME.md, NAME-samples.png and NAME-log_prob.png.",
    )
    add = card.add_argument
    add("flow", metavar="FLOW", help="a shipped flow's name, or a file")
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="held-out images: IDX file, .npy array or folder of pictures",
    )
    add("--crops", action="store_true", help="random crops of the pictures of a folder")
    add("--count", type=int, default=10_000, help="images at most, drawn by --seed (default 10000)")
    add(
        "--other",
        default="",
        metavar="NAME_OR_PATH",
        help="images of other data: shipped ones by name, or as --data, of any size (default "
        "fashion-28, and mnist-28 for a flow of Fashion-MNIST)",
    )
    add("--out", default="docs/models", help="folder for the card (default docs/models)")
    add("--name", help="of the card (default: FLOW's, or its folder's for a flow.safetensors)")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    card.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    from ..flows.io import load_flow
    from .card import card_name, data_in_words, write_card
    from .measure import held_out_images

    flow = load_flow(arguments.flow, arguments.device)
    data, crops, seed = arguments.data, arguments.crops, arguments.seed
    images = held_out_images(data, flow.shape, arguments.count, seed, crops)
    name = arguments.name or card_name(arguments.flow)
    words = data_in_words(data, crops)
    facts = write_card(flow, images, arguments.out, name, words, arguments.other, seed)
    held_out = facts["held_out"]
    print(
        f"{held_out['bits_per_dim']} bits/dim on {held_out['images']} held-out images, log p "
        f"finite for {held_out['finite']}; wrote {arguments.out}/{name}.md"
    )
    return 0
