"""The commands ``flowinv-fast demo``, ``reproduce`` and ``report``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .._base.command_line import whole
from .._base.errors import require
from .datasets import DATASETS

if TYPE_CHECKING:
    from .config import ReproduceConfig

Subparsers = argparse._SubParsersAction


def add_commands(
    subparsers: Subparsers[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add ``demo``, ``reproduce`` and ``report``.

    Args:
        subparsers: of ``flowinv-fast``; each command sets ``run``, which takes the parsed arguments
            and returns the exit status.
        common: parser of the options of every command that computes.
    """
    _add_demo(subparsers, common)
    _add_reproduce(subparsers, common)
    _add_report(subparsers)


# --- demo -----------------------------------------------------------------------------------------


def _add_demo(
    subparsers: Subparsers[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    demo = subparsers.add_parser(
        "demo",
        parents=[common],
        help="solve four inverse problems on real images",
        description="Digits removed from clothes, sinusoidal noise, compressed sensing and one-bit "
        "sensing on shipped test images, against MAP with Gaussian noise. Prints a PSNR table and "
        "writes panel.png and results.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = demo.add_argument
    add("--out", default="demo", help="folder for panel.png and results.json")
    add("--images", type=whole(1, 32), default=4, help="test images per task, 1..32")
    add("--seed", type=whole(0), default=0, help="seed of noise and sensing matrices")
    names = "of digits, sinusoidal, cs, 1bit; all of them if not given"
    add("--tasks", nargs="+", metavar="TASK", help=names)
    demo.set_defaults(run=_demo, kept="panel.png and results.json are as they were")


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    run_demo(arguments.out, arguments.images, arguments.seed, arguments.tasks)
    return 0


# --- reproduce ------------------------------------------------------------------------------------


def _add_reproduce(
    subparsers: Subparsers[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    from .tasks import TASKS

    reproduce = subparsers.add_parser(
        "reproduce",
        parents=[common],
        help="run the paper's experiments, with every method and baseline",
        description="Tunes every method on images outside the test set, solves the test images and "
        "writes results.json, curves, panels and report.html. Running the same command again goes "
        "on where a run stopped.",
    )
    add = reproduce.add_argument
    add("task", nargs="*", metavar="TASK", help=", ".join(TASKS))
    add("--all", action="store_true", help="every task")
    first, *others = DATASETS
    datasets = f"{first} (default), {', '.join(others)}: images and priors"
    add("--dataset", default=first, help=datasets)
    add("--flow", default="", help="name or file of your own flow as prior")
    add(
        "--images",
        type=whole(1),
        help="test images a task (default 24 shipped ones, 100 with --test)",
    )
    _add_files(reproduce)
    add("--seed", type=whole(0), default=0, help="seed of everything random")
    add("--steps", type=whole(1), default=200, help="steps of every solve")
    add("--quick", action="store_true", help="four images, 60 steps, short sweeps")
    add("--config", metavar="TOML", help="a configuration instead of the options above")
    add("--out", default="reproduction", help="folder for the results")
    add(
        "--jobs",
        type=whole(1, 1024),
        default=1,
        help="processes that share the work and the threads",
    )
    add("--quiet", action="store_true", help="no progress bar")
    kept = "finished cells are kept: the same command goes on where this one stopped"
    reproduce.set_defaults(run=_reproduce, kept=kept)


def _add_files(reproduce: argparse.ArgumentParser) -> None:
    files = {
        "--test": "test images, IDX, .npy or a folder: the paper's selection",
        "--tuning": "images to choose hyperparameters on",
        "--digits": "test digits for the digits task",
        "--other": "test images of the other data set, for ood",
    }
    for name, text in files.items():
        reproduce.add_argument(name, default="", metavar="PATH", help=text)


def _reproduce(arguments: argparse.Namespace) -> int:
    from .report import claims
    from .runner import reproduce

    config = _config(arguments)
    progress = False if arguments.quiet else None
    result = reproduce(config, arguments.out, progress, arguments.jobs)
    for claim, number in claims(result):
        print(f"{claim}: {number}")
    print(f"wrote {arguments.out}/report.html and results.json")
    return 0


def _config(arguments: argparse.Namespace) -> ReproduceConfig:
    """What the options say, or the file that they name."""
    from .config import ReproduceConfig
    from .tasks import TASKS

    if arguments.config:
        config = ReproduceConfig.load(arguments.config)
    else:
        chosen = arguments.all or arguments.task
        wanted = f"names of {tuple(TASKS)}, or --all"
        require(chosen, "reproduce", "TASK", wanted, "none")
        images = arguments.images
        if images is None:
            images = 100 if arguments.test else 24
        config = ReproduceConfig(
            tasks=tuple(TASKS) if arguments.all else tuple(arguments.task),
            dataset=arguments.dataset,
            images=images,
            seed=arguments.seed,
            steps=arguments.steps,
            test_file=arguments.test,
            tuning_file=arguments.tuning,
            digit_file=arguments.digits,
            other_file=arguments.other,
            flow=arguments.flow,
        )
    return config.shortened() if arguments.quick else config


# --- report ---------------------------------------------------------------------------------------


def _add_report(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    report = subparsers.add_parser(
        "report",
        help="write the report of a run again, from its numbers",
        description="Reads results.json (or results.json.gz) of a run of reproduce and writes "
        "report.html and its curves. Pictures are shown as far as the cells of the run are there.",
    )
    report.add_argument("folder", metavar="FOLDER", help="of the run")
    report.add_argument("--out", help="folder for the report (default: FOLDER)")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from .report import report

    print(f"wrote {report(arguments.folder, arguments.out)}")
    return 0
