"""Runs that are killed at any moment, over and over: see kill_runs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kills_at_random(tmp_path):
    """kill -9, 16 times after a random delay and 8 times inside a write; see kill_runs.py."""
    script = Path(__file__).parent / "kill_runs.py"
    command = [sys.executable, str(script), str(tmp_path), "16", "8", str(torch.initial_seed())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["delayed"] == 16 and told["in writes"] == 8 and told["finished"] >= 1
    print(told)
