"""docs/extending.md, followed as it stands: its Python is run, and its operation is built.

A block of Python without a mark stands for itself. Before a block of a file there is a mark of

    <!-- file: PATH -->                     the block is this new file
    <!-- into: PATH, after: TEXT -->        the block follows the line that holds TEXT
    <!-- into: PATH, before: TEXT -->       the block precedes it
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import build_shim, checked

from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.flows.io import ARCHITECTURES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
RECIPES = dict(
    zip(re.findall(r"^## (.*)$", PAGE, re.M), re.split(r"^## .*$", PAGE, flags=re.M)[1:])
)
BLOCK = re.compile(r"(?:<!-- (file|into): ([^\n]*?) -->\n)?```(python|cpp)\n(.*?)```", re.S)


@pytest.fixture
def tables():
    """What a recipe enters in a table leaves it again."""
    kept = [(table, dict(table)) for table in (TASKS, ARCHITECTURES)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def test_there_are_five_recipes():
    assert len(RECIPES) == 5
    assert all(BLOCK.search(text) for text in RECIPES.values())


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "kernel" not in name])
def test_recipe_runs(recipe, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCK.findall(RECIPES[recipe])
    code = compile(block[3], f"extending.md, {recipe}", "exec", dont_inherit=True)
    exec(code, {"__name__": "__main__"})


def write(path: Path, text: str) -> None:
    """Only what changed, so that a second build has little to do."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def apply(kind: str, mark: str, block: str, texts: dict[str, str]) -> None:
    if kind == "file":
        texts[mark] = block
        return
    name, where, anchor = re.fullmatch(r"(.*?), (after|before): (.*)", mark).groups()
    lines = texts[name].splitlines(keepends=True)
    (at,) = (i for i, line in enumerate(lines) if anchor in line)
    lines.insert(at + (where == "after"), block)
    texts[name] = "".join(lines)


@pytest.fixture(scope="module")
def extended_tree() -> Path:
    """The sources with the third recipe followed, built with the CUDA sources as fibers."""
    folder = ROOT / "build" / f"extended-{sysconfig.get_config_var('SOABI')}"
    patterns = ("csrc/**/*.*", "flowinv_fast/**/*.py", "python_tests/**/*.py", "*.toml", "CMake*")
    paths = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    (recipe,) = (text for name, text in RECIPES.items() if "kernel" in name)
    for kind, mark, _, block in BLOCK.findall(recipe):
        apply(kind, mark, block, texts)
    for name, text in texts.items():
        write(folder / name, text)
    for old in folder.glob("*/**/*.*"):  # of an earlier state of the sources
        name = old.relative_to(folder).as_posix()
        if name.startswith(("csrc/", "python_tests/")) and name not in texts and old.is_file():
            old.unlink()
    module = build_shim(folder)
    shutil.copy(module, folder / "flowinv_fast" / module.name)
    return folder


@pytest.mark.parametrize("tests", ["ops/test_ops.py", "test_native.py"])
def test_the_operation_keeps_all_rules(tests, extended_tree):
    """Values, derivatives and torch's rules on the CPU, then the CUDA source under the shim."""
    command = [sys.executable, "-m", "pytest", "-q", f"python_tests/{tests}", "-k", "laplace"]
    environment = {**os.environ, "PYTHONPATH": str(extended_tree)}
    told = checked(command, cwd=extended_tree, env=environment)
    assert re.search(r"\d+ passed", told) and "failed" not in told
