"""A short form of bench/reliability.py, from a fresh seed, and what finds the faults it counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import checked

ROOT = Path(__file__).parent.parent
pytest.importorskip("hypothesis")
if sys.platform != "linux":
    pytest.skip("forks, and reads /proc", allow_module_level=True)


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from attacks import engine

    return engine


def quick(tmp_path, *options: str) -> list[dict]:
    """Rows of a short run in a process of its own."""
    command = [sys.executable, str(ROOT / "bench" / "reliability.py"), "--quick", *options]
    command += ["--seed", str(torch.initial_seed()), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    told = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:] + told[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_wrong(tmp_path):
    """Calls, threads, kills and failures: of each a few."""
    names = ["solve", "parts", "threads", "soak", "kill-save"]
    rows = quick(tmp_path, *(f"--only={name}" for name in names))
    assert [row["campaign"] for row in rows] == names
    for row in rows:
        assert row["wrong"] == 0 and row["tried"] == row["right"] + row["refused"] > 0, row


def test_no_mutant_is_wrong(tmp_path):
    """Files of every kind; some are refused and some are read."""
    pytest.importorskip("atheris")
    names = ["flows", "generators", "results", "pictures", "idx", "npy", "npz", "toml"]
    rows = quick(tmp_path, *(f"--only={name}" for name in names))
    for row in rows:
        assert row["wrong"] == 0 and row["refused"] > 0 and row["right"] > 0, row


PLANTED = {
    "crash": lambda: os.abort(),
    "hang": lambda: time.sleep(60),
    "other exception": lambda: 1 / 0,
    "leave": lambda: os._exit(3),
}


@pytest.mark.parametrize("fault", [*PLANTED, "wrong", "memory"])
def test_a_planted_fault_is_counted(engine, tmp_path, fault):
    def run(report, seed, size, work):
        for number in range(size):
            with report.case():
                if number == 0:
                    raise engine.Refused
                if number == 3 and fault == "wrong":
                    raise engine.Wrong("another number: 3")
                if number == 3 and fault == "memory":
                    torch.ones(1 << 28)
                if number == 3:
                    PLANTED.get(fault, lambda: None)()

    campaign = engine.Campaign("planted", "", 5, 5, 1.0, run, 5, limit=0.5, memory=1 << 26)
    tally = engine.run(campaign, tmp_path, 4)
    stopped = fault in ("crash", "hang", "leave")
    assert (tally.refused, tally.right, tally.wrong) == (1, 2, 1), tally
    assert tally.tried == 4 and len(tally.examples) == 1 and tally.examples[0]["case"] == 3
    assert not stopped or fault.replace("leave", "crash") in tally.examples[0]["kind"]


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a compiler")
def test_the_thread_pool(tmp_path):
    """Many callers, failures, a fork; ``make sanitize`` runs the same under ThreadSanitizer."""
    csrc = ROOT / "csrc"
    sources = [csrc / "tests" / "test_parallel.cpp", csrc / "common" / "parallel.cpp"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{csrc}"]
    checked(["c++", *flags, *map(str, sources), "-o", str(tmp_path / "program")])
    checked([str(tmp_path / "program")])


def test_a_stopped_campaign_goes_on(engine, tmp_path):
    seen = tmp_path / "seen"

    def run(report, seed, size, work):
        with open(seen, "a") as file:
            file.write(f"{seed} {size}\n")
        for _ in range(size):
            with report.case():
                pass

    campaign = engine.Campaign("steady", "", 10, 10, 1.0, run, 4)
    assert engine.run(campaign, tmp_path, 4, seed=5).tried == 4
    assert engine.run(campaign, tmp_path, 10, seed=5).right == 10
    lines = seen.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["4", "4", "2"]
    assert len({line.split()[0] for line in lines}) == 3
    assert engine.run(campaign, tmp_path, 3, seed=6).tried == 3  # another seed begins anew
