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
from helpers import build_shim, checked, read_texts, shim_folder, write_texts

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


def test_there_are_six_recipes():
    assert len(RECIPES) == 6
    assert all(BLOCK.search(text) for text in RECIPES.values())


@pytest.mark.parametrize("recipe", [name for name in RECIPES if "kernel" not in name])
def test_recipe_runs(recipe, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = BLOCK.findall(RECIPES[recipe])
    code = compile(block[3], f"extending.md, {recipe}", "exec", dont_inherit=True)
    exec(code, {"__name__": "__main__"})


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
    """The sources with the recipe of a kernel followed, built with the CUDA sources as fibers."""
    folder = ROOT / "build" / f"extended-{sysconfig.get_config_var('SOABI')}"
    patterns = ("csrc/**/*.*", "python_tests/**/*.py", "flowinv_fast/**/*.py")
    texts = read_texts(ROOT, *patterns, "*.toml", "CMake*")
    (recipe,) = (text for name, text in RECIPES.items() if "kernel" in name)
    for kind, mark, _, block in BLOCK.findall(recipe):
        apply(kind, mark, block, texts)
    write_texts(folder, texts, *patterns)
    module = build_shim(ROOT, texts)
    shutil.copy(module, folder / "flowinv_fast" / module.name)
    return folder


@pytest.mark.parametrize("tests", ["ops/test_ops.py", "test_native.py"])
def test_the_operation_keeps_all_rules(tests, extended_tree):
    """Values, derivatives and torch's rules on the CPU, then the CUDA source under the shim."""
    command = [sys.executable, "-m", "pytest", "-q", f"python_tests/{tests}", "-k", "laplace"]
    shared = {"PYTHONPATH": str(extended_tree), "FLOWINV_SHIM_FOLDER": str(shim_folder(ROOT))}
    told = checked(command, cwd=extended_tree, env={**os.environ, **shared})
    assert re.search(r"\d+ passed", told) and "failed" not in told
