"""Attacks on the package, counted: what was refused clearly, what was right, and what was wrong.

    python bench/reliability.py --all --minutes 180     every campaign, the time shared among them
    python bench/reliability.py --only solve --count 500 --seed 3
    python bench/reliability.py --quick                 what the tests run
    python bench/reliability.py --gather                only write what was counted before
    python bench/reliability.py --list

A case is refused clearly (one sentence of ours that names the argument or the file), right (checked
against an independent computation), or wrong: a crash, a hang, any other exception, a silent
difference, NaN without a status, a user's object changed, more memory than stated. Counts are kept
in runs/reliability after every batch, and a run that was stopped goes on there as long as the code
and the seed are the same. At the end they are written to bench/results, for docs/reliability.md;
wrong cases are printed and stay in runs/reliability.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "python_tests"), str(ROOT / "python_tests" / "experiments")]

from attacks import allocations, engine  # noqa: E402
from harness import conditions, write  # noqa: E402

MODULES = ("solves", "parts", "mutants", "allocations", "kills", "faults")
RUNS = ROOT / "runs" / "reliability"


def campaigns() -> dict[str, engine.Campaign]:
    """All of them by name, in the order of the table."""
    found = [c for m in MODULES for c in importlib.import_module(f"attacks.{m}").CAMPAIGNS]
    return {campaign.name: campaign for campaign in found}


def share(names: list[str], known: dict[str, engine.Campaign], minutes: float) -> dict[str, float]:
    """Seconds for each campaign, in proportion to what a full run of it takes."""
    wanted = {name: known[name].count / known[name].rate for name in names}
    scale = min(1.0, 60 * minutes / sum(wanted.values())) if minutes < math.inf else math.inf
    return {name: seconds * scale for name, seconds in wanted.items()}


def one(
    campaign: engine.Campaign, count: int, seconds: float, options: argparse.Namespace
) -> engine.Tally:
    """A campaign; where memory is made to fail, in a process that has the means."""
    if campaign.name == "allocations" and not allocations.preloaded():
        arguments = [f"--only={campaign.name}", f"--count={count}", f"--seed={options.seed}"]
        arguments += [f"--folder={options.folder}", f"--minutes={seconds / 60}", "--quick"]
        allocations.preload([__file__, *arguments])
        return engine.Tally.load(options.folder, campaign.name, options.seed)
    return engine.run(campaign, options.folder, count, seconds, options.seed)


def run_all(options: argparse.Namespace) -> list[engine.Tally]:
    """The campaigns that were asked for, one after the other; time left over goes to the rest."""
    known = campaigns()
    names = options.only or list(known)
    if options.quick:
        names = [name for name in names if known[name].quick]
    ends = time.monotonic() + 60 * options.minutes
    tallies = []
    for index, name in enumerate(names):
        left = (ends - time.monotonic()) / 60
        seconds = share(names[index:], known, max(0.1, left))[name]
        count = options.count or (known[name].quick if options.quick else known[name].count)
        tally = one(known[name], count, seconds, options)
        tallies.append(tally)
        told = f"tried {tally.tried}, refused {tally.refused}, right {tally.right}"
        rate = tally.tried / max(tally.seconds, 1e-9)
        print(f"{name}: {told}, WRONG {tally.wrong}, {rate:.1f} a second", flush=True)
        for kind, number in tally.kinds.items():
            print(f"    {number} x {kind}")
    return tallies


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every campaign")
    parser.add_argument("--only", action="append", help="a campaign by name; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the campaigns")
    parser.add_argument("--gather", action="store_true", help="write the counts that are there")
    parser.add_argument("--quick", action="store_true", help="few cases of each; nothing is kept")
    parser.add_argument("--count", type=int, help="cases of each campaign")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for all of them together")
    parser.add_argument("--seed", type=int, default=0, help="fixes every case")
    parser.add_argument("--folder", type=Path, default=RUNS, help="partial counts")
    parser.add_argument("--out", type=Path, help="folder of the JSON; by default bench/results")
    options = parser.parse_args(arguments)
    if options.list or not (options.all or options.only or options.quick or options.gather):
        for name, campaign in campaigns().items():
            minutes = campaign.count / campaign.rate / 60
            print(f"{name:16} {campaign.count:8} {minutes:6.1f} min  {campaign.title}")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    known = campaigns()
    if options.gather:
        found = [engine.Tally.read(options.folder, name) for name in known]
        tallies = [tally for tally in found if tally]
    else:
        tallies = run_all(options)
    rows = [{**asdict(t), "title": known[t.campaign].title} for t in tallies]
    if options.quick:
        print(json.dumps(rows))
    else:
        result = {"conditions": conditions("cpu", seed=options.seed), "rows": rows}
        print("wrote", write("reliability", result, options.out, same_row=("campaign",)))
    return int(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
