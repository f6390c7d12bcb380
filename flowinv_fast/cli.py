"""The command ``flowinv-fast``: parses its arguments and calls what the wings offer."""

from __future__ import annotations

import argparse
import sys

import flowinv_fast

from ._base.errors import ArgumentError, SolverError
from .experiments import commands as experiments
from .training import commands as training


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments; None: those of the process.
    Returns:
        The exit status: 0, 2 for bad input, 1 for a run that failed.

    >>> main(["train", "photo-65", "--data", "x"])
    2
    """
    arguments = _parser().parse_args(argv)
    try:
        if getattr(arguments, "threads", None):
            import torch

            torch.set_num_threads(arguments.threads)
        return arguments.run(arguments)
    except (ArgumentError, SolverError) as error:
        print(f"flowinv-fast {arguments.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowinv-fast",
        description="Image inverse problems with a normalizing-flow prior and noise model.",
    )
    version = f"%(prog)s {flowinv_fast.__version__}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)  # of every command that computes
    common.add_argument("--threads", type=int, help="CPU threads")
    experiments.add_commands(subparsers, common)
    training.add_commands(subparsers, common)
    text = "what was built, what is here, which flows are shipped"
    subparsers.add_parser("info", help=text).set_defaults(run=_info)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    print(flowinv_fast.show_config())
    print("shipped flows")
    for name, facts in flowinv_fast.available_flows().items():
        print(f"  {name:<16} {facts['bits_per_dim']:.3f} bits/dim, {facts['data']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
