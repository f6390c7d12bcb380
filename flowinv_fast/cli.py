"""The command ``flowinv-fast``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from .errors import ArgumentError, SolverError


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit status (2 for bad input, 1 for a failed run)."""
    parser = argparse.ArgumentParser(
        prog="flowinv-fast",
        description="Image inverse problems with a normalizing-flow prior and noise model.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_info(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except ArgumentError as error:
        print(f"flowinv-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except SolverError as error:
        print(f"flowinv-fast {arguments.command}: {error}", file=sys.stderr)
        return 1


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
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
    demo.add_argument("--threads", type=int, help="CPU threads")
    demo.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    import torch

    from .experiments.demo import run_demo

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run_demo(arguments.out, arguments.images, arguments.seed, arguments.tasks)
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


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a flow on your images",
        description="Train a RealNVP on an IDX file, a .npy array or a folder of pictures. "
        "Running the same command again continues an interrupted run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = train.add_argument
    add("--data", required=True, help="IDX file, .npy array or folder of pictures")
    add("--held-out", help="the same for held-out images; without it, --held-out-fraction")
    add("--held-out-fraction", type=float, default=0.1, help="last part of --data held out")
    add("--out", required=True, help="folder for weights, state, log and samples")
    add("--size", type=int, nargs=3, metavar=("C", "H", "W"), help="image size for a folder")
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
    add("--lr", type=float, default=1e-3, help="learning rate")
    add("--halve-every", type=float, default=40, help="epochs per halving of the learning rate")
    add("--max-grad-norm", type=float, default=100.0, help="gradient clipping")
    add("--penalty", type=float, default=5e-5, help="weight-normalisation penalty")
    add("--ema", type=float, default=0.999, help="decay of the weights' moving average")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--bf16", action="store_true", help="conditioners in bfloat16")
    add("--evaluate-every", type=float, default=1.0, help="epochs between evaluations")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--threads", type=int, help="CPU threads")
    add("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from .data import load_images
    from .errors import require
    from .flows.realnvp import RealNVPConfig
    from .flows.train import TrainConfig, Trainer

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    images = load_images(arguments.data, arguments.size)
    size = tuple(images.shape[1:])
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


if __name__ == "__main__":
    sys.exit(main())
