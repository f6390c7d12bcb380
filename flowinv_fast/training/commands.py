"""The commands ``flowinv-fast train`` and ``flowinv-fast card``; torch is loaded when one runs."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.command_line import real, whole
from .._base.interrupts import Interruption, deferred

if TYPE_CHECKING:
    from .presets import Preset
    from .trainer import Trainer

MODELS = ("realnvp", "glow", "tarflow", "dcgan", "vae")
_FLOWS = MODELS[:3]
_COUNT: dict[str, Any] = {"type": whole(1)}
_COUNT_OR_NONE: dict[str, Any] = {"type": whole(0)}
_POSITIVE: dict[str, Any] = {"type": real(0)}
_WEIGHT: dict[str, Any] = {"type": real(0, ends=True)}
_SEED: dict[str, Any] = {"type": whole(0, 2**40 - 1)}
_FLAG: dict[str, Any] = {"action": "store_true"}
# Options that change a preset: name, how argparse takes it, default in words, meaning.
_Option = tuple[str, dict[str, Any], str, str]
_SUPPORT = "bounded: logit, images in [0, 1]; unbounded: all of R^n"
_SMOOTHING = "std of the training noise (unbounded); 0: uniform dequantisation"
_FLOW_OPTIONS: list[_Option] = [
    ("support", {"choices": ["bounded", "unbounded"]}, "unbounded", _SUPPORT),
    ("bits", {"type": whole(1, 8)}, "8", "pixel depth"),
    ("alpha", {"type": real(0, 0.5)}, "0.05", "margin of the logit (bounded)"),
    ("smoothing", _WEIGHT, "0.08", _SMOOTHING),
    ("scales", _COUNT, "3", "scales (realnvp, glow)"),
    ("hidden", _COUNT, "64", "channels of the conditioners (realnvp, glow)"),
    (
        "blocks",
        _COUNT_OR_NONE,
        "2, and 4 for a tarflow",
        "residual blocks per conditioner; autoregressive maps of a tarflow",
    ),
]
_TARFLOW_OPTIONS: list[_Option] = [
    ("patch", _COUNT, "4", "side of the patches"),
    ("layers", _COUNT, "3", "transformer layers in each map"),
    ("heads", _COUNT, "4", "attention heads"),
    (
        "levels",
        {"type": real(0), "nargs": 2, "metavar": ("LOWEST", "HIGHEST")},
        "one level, --smoothing",
        "train over all levels of noise of this range: flow.at(std) is the density at one of them",
    ),
]
_GENERATOR_OPTIONS: list[_Option] = [
    ("latent-dim", _COUNT, "64", "numbers in a latent"),
    ("width", _COUNT, "32; 128 for a tarflow", "channels of the largest maps; of the transformers"),
]
_TRAIN_OPTIONS: list[_Option] = [
    ("epochs", _POSITIVE, "10, and 60 for a tarflow", "passes over the data"),
    ("batch", _COUNT, "128", "images per step, over all processes"),
    ("lr", _POSITIVE, "1e-3; 2e-4 for a dcgan, 2e-3 for a tarflow", "learning rate"),
    (
        "schedule",
        {"choices": ["halving", "cosine"]},
        "cosine for a tarflow, else halving",
        "of the learning rate; along a cosine it ends at 0 with the last epoch, or with --minutes",
    ),
    (
        "halve-every",
        _POSITIVE,
        "40 for a flow, else never",
        "epochs per halving of the learning rate",
    ),
    ("warmup", _COUNT_OR_NONE, "200 for a flow, else 0", "steps of learning-rate warm-up"),
    ("seed", _SEED, "0", "seed of everything random"),
    (
        "precision",
        {"choices": ["fp32", "tf32", "bf16"]},
        "bf16 for a tarflow where this machine has it, else fp32",
        "of the networks",
    ),
    ("compile", _FLAG, "", "torch.compile the networks"),
]
_FLOW_TRAIN_OPTIONS: list[_Option] = [
    ("gain-lr", _POSITIVE, "10", "learning rate of the couplings' gains over --lr"),
    ("max-grad-norm", _POSITIVE, "100", "gradient clipping"),
    ("penalty", _WEIGHT, "5e-5", "weight-normalisation penalty"),
    ("ema", {"type": real(0, 1, ends=True)}, "0.999", "decay of the weights' moving average"),
    ("recompute", _FLAG, "", "recompute activations: memory of one coupling"),
]
_MODEL_OPTIONS = {
    "architecture of a flow": _FLOW_OPTIONS,
    "architecture of a tarflow (and --blocks, --width)": _TARFLOW_OPTIONS,
    "architecture of a generator (dcgan, vae)": _GENERATOR_OPTIONS,
    "training": _TRAIN_OPTIONS,
    "training of a flow": _FLOW_TRAIN_OPTIONS,
}


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
        description="Train a prior on an IDX file, a .npy array or a folder of pictures, or with "
        "--kind noise a noise model on recordings of noise. Running the same command again "
        "continues an interrupted run; torchrun shares the training of a flow among processes.",
        epilog="presets: mnist-28 and celeba-hq-64, the paper's; photo-64, the latter for crops of "
        "photographs; mnist-28-small and photo-64-small, for CPUs; photo-patch-16, patches of "
        "photographs. Options change a preset.",
    )
    _add_kind(train)
    _add_data(train)
    for title, options in _MODEL_OPTIONS.items():
        group = train.add_argument_group(title)
        for name, kind, default, meaning in options:
            text = f"{meaning} (default {default})" if default else meaning
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **kind)
    add = train.add_argument_group("run").add_argument
    minutes = real(0, ends=True, infinite=True)
    add("--minutes", type=minutes, default=float("inf"), help="stop after this long")
    text = "epochs between evaluations (default 1, and a sixteenth of a noise model's)"
    add("--evaluate-every", type=real(0), help=text)
    add("--save-minutes", type=minutes, default=5.0, help="what a kill loses at most (default 5)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--quiet", action="store_true", help="no progress bar")
    kept = "what was saved is kept in --out: the same command goes on there"
    train.set_defaults(run=_train, kept=kept)


def _add_kind(train: argparse.ArgumentParser) -> None:
    """What is trained, and how recordings of noise are read."""
    add = train.add_argument
    add("preset", nargs="?", metavar="PRESET", help="architecture and settings by name, see below")
    add(
        "--kind",
        dest="subject",  # the configuration of a generator has a kind of its own
        choices=("prior", "noise"),
        default="prior",
        help="prior: of images (default); noise: a noise model of recordings, y - f(x) of known x. "
        "Closed forms are fitted first, a flow is trained on what the best of them leaves, and the "
        "likeliest on recordings that were held out is noise.safetensors in --out",
    )
    add(
        "--clean",
        metavar="PATH",
        help="f(x) at which the noise was recorded, where its level follows the signal: of the "
        "shape of the recordings, or (1, C, H, W) for one scene (noise)",
    )
    add("--clean-dataset", metavar="NAME", help="the same of --clean (default: that of --dataset)")
    add("--dataset", metavar="NAME", help="which array of a file of recordings (noise)")
    add(
        "--unit",
        type=real(0),
        help="what the measurements are divided by, for recordings of whole numbers (noise)",
    )


def _add_data(train: argparse.ArgumentParser) -> None:
    """The images, the files and the model."""
    add = train.add_argument
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="IDX file, .npy array or folder of pictures; "
        "a folder with the parts train and test (or val, valid) is split so. Of noise: .npy, .npz, "
        ".h5, .zarr, .tif, .fits or a folder of them; (N, C, H, W), (N, H, W) or (N, D), any range",
    )
    add(
        "--held-out",
        metavar="PATH",
        help="the same for held-out images; without it, --held-out-fraction",
    )
    add(
        "--held-out-fraction",
        type=real(0, 1),
        metavar="F",
        help="last part of --data that is held out (default 0.1: of the 30,000 pictures of "
        "CelebA-HQ, 27,000 and 3,000); a dcgan or vae holds out none, and of recordings of noise "
        "it is a random part (default 0.2)",
    )
    add(
        "--out",
        metavar="FOLDER",
        help="for weights, state, log and samples (default with a "
        "preset: ~/.local/share/flowinv_fast/PRESET, where load_flow finds it by name, unless a "
        "shipped flow has that name)",
    )
    add(
        "--size",
        type=whole(1, 2**15),
        nargs=3,
        metavar=("C", "H", "W"),
        help="image size for a folder",
    )
    add("--crops", action="store_true", help="random crops of the pictures of a folder (a flow's)")
    add(
        "--patches",
        type=whole(1, 2**15),
        metavar="P",
        help="P x P patches of the pictures of a folder as they are, as few as one picture, for a "
        "prior of images of any size: the preset photo-patch-16 where none is named",
    )
    add(
        "--flips",
        action="store_true",
        help="mirror half of the training images (a flow's; crops always)",
    )
    text = "weights to start at: a name or a file; for --levels also of one level (a flow's)"
    add("--start", metavar="FLOW", help=text)
    add(
        "--model",
        choices=MODELS,
        help="flows: realnvp (default, and of most presets); glow, with 1x1 convolutions and "
        "learned priors of the latents that leave early; tarflow, a transformer over patches; "
        "generators without a density: dcgan, vae",
    )


def _train(arguments: argparse.Namespace) -> int:
    from .._base.errors import require
    from .presets import chosen_preset, output_folder
    from .processes import process_count

    if arguments.subject == "noise":
        return _train_noise(arguments)
    _refuse(arguments, ("unit", "dataset", "clean", "clean_dataset"), "none without --kind noise")
    patches = arguments.patches
    both = patches and arguments.size
    require(not both, "train", "--size", "none beside --patches", arguments.size)
    name = arguments.preset or ("photo-patch-16" if patches else None)
    preset = chosen_preset(name, arguments.model)
    _check_options(arguments, preset)
    out = output_folder(arguments.preset, arguments.out)
    if arguments.model in (None, *_FLOWS):
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
        patches=bool(arguments.patches) or preset.patches,
        flips=arguments.flips or preset.flips,
        fraction=arguments.held_out_fraction or 0.1,
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
        result = _run(trainer, arguments)
    if trainer.rank == 0:
        print(
            f"{result['bits_per_dim']:.4f} bits/dim on {result['held_out_images']} held-out "
            f"images, epoch {result['epoch']:g}; weights in {out}/flow.safetensors"
        )
    return 0


def _train_noise(arguments: argparse.Namespace) -> int:
    from .._base.errors import require
    from ..data.recordings import load_recordings
    from .noise import noise_config, noise_training, train_noise
    from .presets import DEFAULTS
    from .processes import process_count, shared_training

    unused = ("preset", "held_out", "size", "crops", "patches", "flips", "start")
    _refuse(arguments, unused, "none with --kind noise")
    of_levels = ("support", "bits", "alpha", "smoothing", "levels")
    _refuse(arguments, of_levels, "none with --kind noise, whose numbers are real")
    model, out = arguments.model or "realnvp", str(arguments.out or "")
    require(model in _FLOWS, "train", "--model", f"one of {_FLOWS} with --kind noise", model)
    require(bool(out), "train", "--out", "a folder", "none")
    require(process_count() == 1, "train", "--kind", "prior in several processes", "noise")
    _check_options(arguments, DEFAULTS[model]())
    read = partial(load_recordings, unit=arguments.unit, dataset=arguments.dataset)
    samples, clean = read(arguments.data), None
    if arguments.clean:
        named = arguments.clean_dataset or arguments.dataset
        clean = read(arguments.clean, dataset=named, dither=False)
        fits = clean.shape[1:] == samples.shape[1:] and len(clean) in (1, len(samples))
        wanted = f"one of shape {tuple(samples.shape[1:])}, or {len(samples)} of them"
        require(fits, "train", "--clean", wanted, f"{len(clean)} of {tuple(clean.shape[1:])}")

    def config(shape: tuple[int, int, int]) -> Any:
        if model == "realnvp":
            return _changed(noise_config(shape), arguments)
        default: Any = DEFAULTS[model]().config
        return _changed(default, arguments, shape=shape, bits=0, smoothing=0.0)

    with deferred() as came, shared_training(arguments.device) as device:
        found, check = train_noise(
            samples,
            out,
            clean=clean,
            config=config,
            train_config=lambda count: _changed(noise_training(count), arguments),
            held_out=arguments.held_out_fraction or 0.2,
            seed=getattr(arguments, "seed", 0),
            minutes=arguments.minutes,
            evaluate_every=arguments.evaluate_every,
            save_minutes=arguments.save_minutes,
            device=device,
            info={"data": arguments.data},
            progress=not arguments.quiet,
            stop=lambda: bool(came),
        )
    print(found)
    print(check.message)
    print(f"law = flowinv_fast.load_noise({out!r}); more in {out}/noise.md")
    return 0


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], wanted: str) -> None:
    """Options that mean nothing here are not ignored."""
    from .._base.errors import require

    for name in names:
        given = getattr(arguments, name, None)
        option = "PRESET" if name == "preset" else f"--{name.replace('_', '-')}"
        require(given is None or given is False, "train", option, wanted, given)


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
        result = _run(trainer, arguments)
    print(f"{result['epoch']:g} epochs; weights in {out}/generator.safetensors")
    return 0


def _run(trainer: Trainer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train; the first Ctrl-C waits for the end of a step."""
    # Beside other processes nobody waits: these may be elsewhere.
    waiting = contextlib.nullcontext(Interruption()) if trainer.together else deferred()
    with waiting as came:
        return trainer.run(
            arguments.minutes,
            arguments.evaluate_every or 1.0,
            arguments.save_minutes,
            lambda: bool(came),
        )


def _check_options(arguments: argparse.Namespace, preset: Preset) -> None:
    """Options of another model, or of another support, are not ignored."""
    config: Any = preset.config
    known = {field.name for part in (config, preset.train) for field in fields(part)}
    model = getattr(config, "kind", type(config).__name__.removesuffix("Config").lower())
    names = [option[0].replace("-", "_") for group in _MODEL_OPTIONS.values() for option in group]
    _refuse(arguments, tuple(n for n in names if n not in known), f"none for a {model}")
    support = getattr(arguments, "support", getattr(config, "support", ""))
    unused = {"bounded": ("smoothing",), "unbounded": ("alpha",)}.get(support, ())
    _refuse(arguments, unused, f"none with {support} support")


def _changed(config: Any, arguments: argparse.Namespace, **values: Any) -> Any:
    """A configuration with those of its fields that were given on the command line."""
    names = [field.name for field in fields(config)]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return replace(config, **given, **values)


def _size(arguments: argparse.Namespace) -> tuple[int, int, int] | None:
    if arguments.patches:
        return 3, arguments.patches, arguments.patches
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
    add("--patches", action="store_true", help="the same of the pictures as they are, not resized")
    add(
        "--count",
        type=whole(1),
        default=10_000,
        help="images at most, drawn by --seed (default 10000)",
    )
    add(
        "--other",
        default="",
        metavar="NAME_OR_PATH",
        help="images of other data: shipped ones by name, or as --data, of any size (default "
        "fashion-28, and mnist-28 for a flow of Fashion-MNIST)",
    )
    add("--out", default="docs/models", help="folder for the card (default docs/models)")
    add("--name", help="of the card (default: FLOW's, or its folder's for a flow.safetensors)")
    add("--seed", type=whole(0, 2**40 - 1), default=0, help="seed of everything random")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    card.set_defaults(run=_card)


def _card(arguments: argparse.Namespace) -> int:
    from ..flows.io import load_flow
    from .card import card_name, data_in_words, write_card
    from .measure import held_out_images

    flow = load_flow(arguments.flow, arguments.device)
    data, seed, cut = arguments.data, arguments.seed, (arguments.crops, arguments.patches)
    images = held_out_images(data, flow.shape, arguments.count, seed, *cut)
    name = arguments.name or card_name(arguments.flow)
    words = data_in_words(data, *cut)
    facts = write_card(flow, images, arguments.out, name, words, arguments.other, seed)
    held_out = facts["held_out"]
    print(
        f"{held_out['bits_per_dim']} bits/dim on {held_out['images']} held-out images, log p "
        f"finite for {held_out['finite']}; wrote {arguments.out}/{name}.md"
    )
    return 0
