"""The command ``flowinv-fast``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Crops, Stored
    from .training.presets import Preset

from ._base.errors import ArgumentError, SolverError
from ._base.files import user_folder
from .experiments import commands as experiments

HELD_OUT_CROPS = 500


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status (2 for bad input, 1 for a failed run)."""
    parser = argparse.ArgumentParser(
        prog="flowinv-fast",
        description="Image inverse problems with a normalizing-flow prior and noise model.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)  # of every command that computes
    common.add_argument("--threads", type=int, help="CPU threads")
    experiments.add_commands(commands, common)
    _add_train(commands, common)
    _add_card(commands, common)
    _add_info(commands)
    arguments = parser.parse_args(argv)
    try:
        if getattr(arguments, "threads", None):
            import torch

            torch.set_num_threads(arguments.threads)
        return arguments.run(arguments)
    except ArgumentError as error:
        print(f"flowinv-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except SolverError as error:
        print(f"flowinv-fast {arguments.command}: {error}", file=sys.stderr)
        return 1


def _add_card(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    card = commands.add_parser(
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
    from .flows import load_flow
    from .training.card import held_out_images, write_card

    flow, data = load_flow(arguments.flow, arguments.device), Path(arguments.data)
    images = held_out_images(data, flow.shape, arguments.count, arguments.seed, arguments.crops)
    path = Path(arguments.flow)
    if path.name == "flow.safetensors":  # what training calls it: the folder tells more
        path = path.resolve().parent
    name = arguments.name or path.name.removesuffix(".safetensors")
    source = "/".join(data.resolve().parts[-2:])
    told = f"random crops of the pictures of {source}" if arguments.crops else source
    facts = write_card(flow, images, arguments.out, name, told, arguments.other, arguments.seed)
    held_out = facts["held_out"]
    print(
        f"{held_out['bits_per_dim']} bits/dim on {held_out['images']} held-out images, log p "
        f"finite for {held_out['finite']}; wrote {arguments.out}/{name}.md"
    )
    return 0


def _add_info(commands: argparse._SubParsersAction) -> None:
    info = commands.add_parser("info", help="what was built, what is here, which flows are shipped")
    info.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    import flowinv_fast

    print(flowinv_fast.show_config())
    print("shipped flows")
    for name, facts in flowinv_fast.available_flows().items():
        print(f"  {name:<16} {facts['bits_per_dim']:.3f} bits/dim, {facts['data']}")
    return 0


def _add_train(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    train = commands.add_parser(
        "train",
        parents=[common],
        help="train a flow, a DCGAN or a VAE on your images",
        description="Train a prior on an IDX file, a .npy array or a folder of pictures. "
        "Running the same command for a RealNVP again continues an interrupted run; torchrun "
        "shares it among processes.",
        epilog="presets: mnist-28 and celeba-hq-64, the paper's; photo-64, the latter for crops of "
        "photographs; mnist-28-small and photo-64-small, for CPUs. Options change a preset.",
    )
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
        "CelebA-HQ, 27,000 and 3,000)",
    )
    add(
        "--out",
        metavar="FOLDER",
        help="for weights, state, log and samples (default with a "
        "preset: ~/.local/share/flowinv_fast/PRESET, where load_flow finds it by name, unless a "
        "shipped flow has that name)",
    )
    add("--size", type=int, nargs=3, metavar=("C", "H", "W"), help="image size for a folder")
    add("--crops", action="store_true", help="random crops of the pictures of a folder")
    add("--flips", action="store_true", help="mirror half of the training images (crops always)")
    add("--start", metavar="FLOW", help="weights to start at: a name or a file")
    add(
        "--model",
        choices=["realnvp", "dcgan", "vae"],
        default="realnvp",
        help="dcgan and vae take --data, --size, --out, --epochs, --minutes, --batch, --lr, --seed "
        "and the two options below; all others are of a realnvp",
    )
    add("--latent-dim", type=int, default=64, help="numbers in a latent (dcgan, vae; default 64)")
    add(
        "--width",
        type=int,
        default=32,
        help="channels of the largest maps (dcgan, vae; default 32)",
    )
    flow = train.add_argument_group("architecture of a realnvp")
    training = train.add_argument_group("training")
    for group, options in ((flow, _FLOW_OPTIONS), (training, _TRAIN_OPTIONS)):
        for name, kind, default, told in options:
            text = f"{told} (default {default})" if default else told
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **kind)
    add = training.add_argument
    add("--minutes", type=float, default=float("inf"), help="stop after this long")
    add("--evaluate-every", type=float, default=1.0, help="epochs between evaluations (default 1)")
    add("--save-minutes", type=float, default=5.0, help="what a kill loses at most (default 5)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)


_INT, _FLOAT, _FLAG = {"type": int}, {"type": float}, {"action": "store_true"}
_FLOW_OPTIONS = (
    ("support", {"choices": ["bounded", "unbounded"]}, "unbounded",
     "bounded: logit, images in [0, 1]; unbounded: all of R^n"),
    ("bits", _INT, "8", "pixel depth"),
    ("alpha", _FLOAT, "0.05", "margin of the logit (bounded)"),
    ("smoothing", _FLOAT, "0.08", "std of the training noise (unbounded); 0: uniform "
     "dequantisation"),
    ("scales", _INT, "3", "scales"),
    ("hidden", _INT, "64", "channels of the conditioners"),
    ("blocks", _INT, "2", "residual blocks per conditioner"),
    ("mixing", _FLAG, "", "invertible 1x1 convolutions before the channel couplings, as Glow"),
)  # fmt: skip
_TRAIN_OPTIONS = (
    ("epochs", _FLOAT, "10", "passes over the data"),
    ("batch", _INT, "128", "images per step, over all processes"),
    ("lr", _FLOAT, "1e-3, and 2e-4 for a dcgan", "learning rate"),
    ("gain-lr", _FLOAT, "10", "learning rate of the couplings' gains over --lr"),
    ("halve-every", _FLOAT, "40", "epochs per halving of the learning rate"),
    ("max-grad-norm", _FLOAT, "100", "gradient clipping"),
    ("penalty", _FLOAT, "5e-5", "weight-normalisation penalty"),
    ("ema", _FLOAT, "0.999", "decay of the weights' moving average"),
    ("warmup", _INT, "200", "steps of learning-rate warm-up"),
    ("seed", _INT, "0", "seed of everything random"),
    ("precision", {"choices": ["fp32", "tf32", "bf16"]}, "fp32", "of the conditioners"),
    ("recompute", _FLAG, "", "recompute activations: memory of one coupling"),
    ("compile", _FLAG, "", "torch.compile the conditioners"),
)  # fmt: skip


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from ._base.errors import require
    from .data import load_images
    from .flows import available_flows, load_flow
    from .flows.realnvp import RealNVPConfig
    from .training.flow import TrainConfig, Trainer
    from .training.presets import PRESETS, Preset

    name = arguments.preset
    require(name is None or name in PRESETS, "train", "PRESET", f"one of {list(PRESETS)}", name)
    preset = PRESETS.get(name) or Preset("", RealNVPConfig((1, 28, 28)), TrainConfig())
    require(name is None or arguments.model == "realnvp", "train", "PRESET",
            f"none for a {arguments.model}", name)  # fmt: skip
    shipped = name in available_flows()
    wanted = f"a folder (a flow named {name} is shipped)" if shipped else "a folder"
    require(arguments.out or name and not shipped, "train", "--out", wanted, "none")
    out = arguments.out or user_folder() / name
    if arguments.model != "realnvp":
        return _train_generator(arguments, load_images(_split(arguments)[0], arguments.size))
    size = arguments.size or (preset.flow.shape if name else None)
    seed = getattr(arguments, "seed", preset.train.seed)
    images, held_out = _training_images(arguments, preset, size, seed)
    chosen = lambda options: {
        key: getattr(arguments, key)
        for key in (option[0].replace("-", "_") for option in options)
        if hasattr(arguments, key)
    }
    flow_config = replace(preset.flow, shape=images.shape, **chosen(_FLOW_OPTIONS))
    config = replace(preset.train, **chosen(_TRAIN_OPTIONS))
    device, together = _place(arguments.device)
    start = load_flow(arguments.start) if arguments.start else None
    try:
        trainer = Trainer(
            flow_config, config, images, held_out, out, device, {"data": arguments.data},
            not arguments.quiet, start,
        )  # fmt: skip
        result = trainer.run(arguments.minutes, arguments.evaluate_every, arguments.save_minutes)
    finally:
        if together:
            # Gloo's thread takes the GIL to let go of the last tensors, and holds a lock that the
            # end of the group wants: let it finish first, or both wait for ever.
            time.sleep(1)
            torch.distributed.destroy_process_group()
    if trainer.rank == 0:
        print(
            f"{result['bits_per_dim']:.4f} bits/dim on {result['held_out_images']} held-out "
            f"images, epoch {result['epoch']:g}; weights in {out}/flow.safetensors"
        )
    return 0


def _place(device: str | None) -> tuple[str, bool]:
    """Where this process computes, and whether torchrun started it beside others."""
    import torch

    from ._base.errors import require

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if _processes() == 1:
        return device, False
    require(device in ("cpu", "cuda"), "train", "--device", "cpu or cuda beside others", device)
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device, True


def _processes() -> int:
    """How many torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _split(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Where the training images are, and the held-out ones, if these lie apart."""
    data, held_out = Path(arguments.data), arguments.held_out
    names = ("test", "val", "valid", "validation")
    parts = [data / name for name in names if (data / name).is_dir()]
    if parts and (data / "train").is_dir():
        data, held_out = data / "train", held_out or parts[0]
    return data, held_out and Path(held_out)


def _training_images(
    arguments: argparse.Namespace, preset: Preset, size: tuple | None, seed: int
) -> tuple[Stored | Crops, Tensor]:
    """Training images, and held-out ones of the same size."""
    from ._base.errors import require
    from .data import Crops, Stored, load_images

    data, held_out = _split(arguments)
    if arguments.crops or preset.crops:
        require(
            held_out is not None,
            "train",
            "--held-out",
            "a folder of other photographs (or --data with the parts train and test)",
            "none",
        )
        crops = lambda folder: Crops(folder, size or (3, 64, 64), seed=seed)
        return crops(data), crops(held_out).take(HELD_OUT_CROPS, 1)
    images = load_images(data, size)
    if held_out is not None:
        other = load_images(held_out, tuple(images.shape[1:]))
    else:
        fraction = arguments.held_out_fraction
        require(0 < fraction < 1, "train", "--held-out-fraction", "a number in (0, 1)", fraction)
        count = max(1, round(fraction * len(images)))
        images, other = images[:-count], images[-count:]
    return Stored(images, arguments.flips or preset.flips, seed), other


def _train_generator(arguments: argparse.Namespace, images: Tensor) -> int:
    from ._base.errors import require
    from .generators.nets import GeneratorConfig
    from .training.generator import GeneratorTraining, train_generator

    require(_processes() == 1, "train", "--model", "realnvp in several processes",
            arguments.model)  # fmt: skip
    config = GeneratorConfig(
        tuple(images.shape[1:]), arguments.model, arguments.latent_dim, arguments.width
    )
    training = GeneratorTraining(
        getattr(arguments, "epochs", 10), getattr(arguments, "batch", 128),
        getattr(arguments, "lr", 2e-4 if arguments.model == "dcgan" else 1e-3),
        getattr(arguments, "seed", 0),
    )  # fmt: skip
    trained = train_generator(
        config, training, images, arguments.out, _place(arguments.device)[0],
        {"data": arguments.data}, not arguments.quiet, arguments.minutes,
    )  # fmt: skip
    print(f"{trained.info['epoch']} epochs; weights in {arguments.out}/generator.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
