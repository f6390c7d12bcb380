"""The commands ``flowinv-fast demo`` and ``flowinv-fast reproduce``."""

from __future__ import annotations

import argparse


def add_commands(subparsers: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Add ``demo`` and ``reproduce``."""
    _add_demo(subparsers, common)
    _add_reproduce(subparsers, common)


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
    from .demo import run_demo

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
        help="digits, cs-sinusoidal, denoise-gaussian, denoise-sinusoidal, denoise-radial, "
        "cs-1bit, sensitivity, ood",
    )
    add("--all", action="store_true", help="every task")
    add(
        "--signal",
        default="fashion-28",
        help="fashion-28 (default), mnist-28, photo-64 or celeba-hq-64: images and priors",
    )
    add("--flow", default="", help="name or file of your own flow as prior")
    add("--images", type=int, help="test images a task (default 24 shipped ones, 100 with --test)")
    add(
        "--test",
        default="",
        metavar="PATH",
        help="test images, IDX, .npy or a folder: the paper's selection",
    )
    add("--tuning", default="", metavar="PATH", help="images to choose hyperparameters on")
    add("--digits", default="", metavar="PATH", help="test digits for the digits task")
    add("--other", default="", metavar="PATH", help="test images of the other signal, for ood")
    add("--seed", type=int, default=0, help="seed of everything random")
    add("--steps", type=int, default=200, help="steps of every solve")
    add("--quick", action="store_true", help="four images, 60 steps, short sweeps")
    add("--config", metavar="TOML", help="a configuration instead of the options above")
    add("--out", default="reproduction", help="folder for the results")
    add("--jobs", type=int, default=1, help="processes that share the work and the threads")
    add("--quiet", action="store_true", help="no progress bar")
    reproduce.set_defaults(run=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from .._base.errors import require
    from .config import TASKS, ReproduceConfig
    from .report import claims
    from .runner import reproduce

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
            flow=arguments.flow, images=images, seed=arguments.seed,
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
