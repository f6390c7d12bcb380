"""The formatters and the linter agree with the tree (the checks of .pre-commit-config.yaml)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = ["flowinv_fast", "python_tests", "bench", "setup.py"]
NATIVE = sorted(
    str(path) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")
)


def tool(name: str) -> str:
    """The tool installed beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; pip install -e '.[test]'")
    return found


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff(arguments):
    run = subprocess.run(
        [tool("ruff"), *arguments, *PYTHON], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_types():
    """mypy in its basic mode, as pyproject.toml sets it."""
    run = subprocess.run([tool("mypy")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_clang_format():
    command = [tool("clang-format"), "--dry-run", "-Werror", *NATIVE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]


def test_pages_hold_what_the_results_say():
    """Every hole of docs/*.md, and every model card."""
    run = subprocess.run([sys.executable, "bench/fill.py", "--check"], cwd=ROOT)
    assert run.returncode == 0, "run python bench/fill.py"
