"""The command ``flowinv-fast``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

from .errors import ArgumentError, SolverError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status (2 for bad input, 1 for a failed run)."""
    parser = argparse.ArgumentParser(
        prog="flowinv-fast",
        description="Image inverse problems with a normalizing-flow prior and noise model.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)  # of every command that computes
    common.add_argument("--threads", type=int, help="CPU threads")
    _add_demo(commands, common)
    _add_reproduce(commands, common)
    _add_train(commands, common)
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


def _add_demo(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="solve four inverse problems on real images",
        description="Digits removed from clothes, sinusoidal noise, compressed sensing and one-bit "
        "sensing on shipped test images, against MAP with Gaussian noise. Prints a PSNR table and "
        "writes panel.png and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", default="demo", help="folder for panel.png and results.json")
    demo.add_argument("--images", type=int, default=4, help="test images per task, 1..32")
    demo.add_argument("--seed", type=int, default=0, help="seed of noise and sensing matrices")
    demo.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="of digits, sinusoidal, cs, 1bit; all of them if not given",
    )
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .experiments.demo import run_demo

    run_demo(arguments.out, arguments.images, arguments.seed, arguments.tasks)
    return 0


def _add_reproduce(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        parents=[common],
        help="run the paper's experiments, with every method and baseline",
        description="Tunes every method on images outside the test set, solves the test images and "
        "writes results.json, curves, panels and report.html. Running the same command again goes "
        "on where a run stopped.",
    )
    add = reproduce.add_argument
    add(
        "task",
        nargs="*",
        metavar="TASK",
        help="digits, cs-sinusoidal, denoise-sinusoidal, denoise-radial, cs-1bit, sensitivity, ood",
    )
    add("--all", action="store_true", help="every task")
    add(
        "--signal", default="fashion-28", help="fashion-28 (default) or mnist-28: images and priors"
    )
    add("--images", type=int, help="test images a task (default 24 shipped ones, 100 with --test)")
    add(
        "--test", default="", metavar="FILE", help="test images, IDX or .npy: the paper's selection"
    )
    add("--tuning", default="", metavar="FILE", help="images to choose hyperparameters on")
    add("--digits", default="", metavar="FILE", help="test digits for the digits task")
    add("--other", default="", metavar="FILE", help="test images of the other signal, for ood")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--steps", type=int, default=200, help="steps of every solve")
    add("--quick", action="store_true", help="four images, 60 steps, short sweeps")
    add("--config", metavar="TOML", help="a configuration instead of the options above")
    add("--out", default="reproduction", help="folder for the results")
    add("--jobs", type=int, default=1, help="processes that share the work and the threads")
    add("--quiet", action="store_true", help="no progress bar")
    reproduce.set_defaults(run=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from .errors import require
    from .experiments.config import TASKS, ReproduceConfig
    from .experiments.report import claims
    from .experiments.runner import reproduce

    if arguments.config:
        config = ReproduceConfig.load(arguments.config)
    else:
        require(arguments.all or arguments.task, "reproduce", "TASK", f"names of {TASKS}, or --all",
                "none")  # fmt: skip
        images = arguments.images
        if images is None:
            images = 100 if arguments.test else 24
        config = ReproduceConfig(
            tasks=TASKS if arguments.all else tuple(arguments.task), signal=arguments.signal,
            images=images, seed=arguments.seed,
            steps=arguments.steps, test_file=arguments.test, tuning_file=arguments.tuning,
            digit_file=arguments.digits, other_file=arguments.other,
        )  # fmt: skip
    if arguments.quick:
        config = config.shortened()
    progress = False if arguments.quiet else None
    result = reproduce(config, arguments.out, progress, arguments.jobs)
    for claim, number in claims(result):
        print(f"{claim}: {number}")
    print(f"wrote {arguments.out}/report.html and results.json")
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
        "Running the same command for a RealNVP again continues an interrupted run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("--data", required=True, help="IDX file, .npy array or folder of pictures")
    add("--held-out", help="the same for held-out images; without it, --held-out-fraction")
    add("--held-out-fraction", type=float, default=0.1, help="last part of --data held out")
    add("--out", required=True, help="folder for weights, state, log and samples")
    add("--size", type=int, nargs=3, metavar=("C", "H", "W"), help="image size for a folder")
    add(
        "--model",
        choices=["realnvp", "dcgan", "vae"],
        default="realnvp",
        help="dcgan and vae take --data, --size, --out, --epochs, --minutes, --batch, --lr, --seed "
        "and the two options below; all others are of a realnvp",
    )
    add("--latent-dim", type=int, default=64, help="numbers in a latent (dcgan, vae)")
    add("--width", type=int, default=32, help="channels of the largest maps (dcgan, vae)")
    add(
        "--support",
        choices=["bounded", "unbounded"],
        default="unbounded",
        help="bounded: logit, images in [0, 1]; unbounded: all of R^n, Gaussian smoothing",
    )
    add("--bits", type=int, default=8, help="pixel depth")
    add("--alpha", type=float, default=0.05, help="margin of the logit (bounded)")
    add("--smoothing", type=float, default=0.08, help="std of the training noise (unbounded)")
    add("--scales", type=int, default=3, help="scales of the RealNVP")
    add("--hidden", type=int, default=64, help="channels of the conditioners")
    add("--blocks", type=int, default=2, help="residual blocks per conditioner")
    add("--epochs", type=float, default=10, help="passes over the data")
    add("--minutes", type=float, default=float("inf"), help="stop after this long")
    add("--batch", type=int, default=128, help="images per step")
    add(
        "--lr",
        type=float,
        default=argparse.SUPPRESS,
        help="learning rate (default: 1e-3, and 2e-4 for a dcgan)",
    )
    add("--halve-every", type=float, default=40, help="epochs per halving of the learning rate")
    add("--max-grad-norm", type=float, default=100.0, help="gradient clipping")
    add("--penalty", type=float, default=5e-5, help="weight-normalisation penalty")
    add("--ema", type=float, default=0.999, help="decay of the weights' moving average")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--bf16", action="store_true", help="conditioners in bfloat16")
    add("--evaluate-every", type=float, default=1.0, help="epochs between evaluations")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from .data import load_images
    from .errors import require
    from .flows.realnvp import RealNVPConfig
    from .flows.train import TrainConfig, Trainer

    images = load_images(arguments.data, arguments.size)
    size = tuple(images.shape[1:])
    if not hasattr(arguments, "lr"):
        arguments.lr = 2e-4 if arguments.model == "dcgan" else 1e-3
    if arguments.model != "realnvp":
        return _train_generator(arguments, images)
    if arguments.held_out:
        held_out = load_images(arguments.held_out, size)
    else:
        fraction = arguments.held_out_fraction
        require(0 < fraction < 1, "train", "--held-out-fraction", "a number in (0, 1)", fraction)
        count = max(1, round(fraction * len(images)))
        images, held_out = images[:-count], images[-count:]
    flow_config = RealNVPConfig(
        size, arguments.scales, arguments.hidden, arguments.blocks, arguments.support,
        arguments.bits, arguments.alpha, arguments.smoothing,
    )  # fmt: skip
    names = (
        "epochs",
        "batch",
        "lr",
        "halve_every",
        "max_grad_norm",
        "penalty",
        "ema",
        "seed",
        "bf16",
    )
    config = replace(TrainConfig(), **{name: getattr(arguments, name) for name in names})
    trainer = Trainer(
        flow_config, config, images, held_out, arguments.out, arguments.device,
        {"data": arguments.data}, not arguments.quiet,
    )  # fmt: skip
    result = trainer.run(arguments.minutes, arguments.evaluate_every)
    print(
        f"{result['bits_per_dim']:.4f} bits/dim on {result['held_out_images']} held-out images, "
        f"epoch {result['epoch']:g}; weights in {arguments.out}/flow.safetensors"
    )
    return 0


def _train_generator(arguments: argparse.Namespace, images: Tensor) -> int:
    from .generators.nets import GeneratorConfig
    from .generators.train import GeneratorTraining, train_generator

    config = GeneratorConfig(
        tuple(images.shape[1:]), arguments.model, arguments.latent_dim, arguments.width
    )
    training = GeneratorTraining(arguments.epochs, arguments.batch, arguments.lr, arguments.seed)
    trained = train_generator(
        config, training, images, arguments.out, arguments.device, {"data": arguments.data},
        not arguments.quiet, arguments.minutes,
    )  # fmt: skip
    print(f"{trained.info['epoch']} epochs; weights in {arguments.out}/generator.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
