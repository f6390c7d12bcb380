"""The floors of CONTRIBUTING.md: every import and #include goes down, never up or sideways.

Each rule is a function from a file's name and text to its breaches, so that a test can plant some.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import its own wing and the floors below, but no other wing of its floor.
PYTHON_FLOORS = {
    "_C": 0,
    "protocols": 0,
    "_base": 2,
    "ops": 3,
    "flows": 4,
    "generators": 4,
    "noise": 4,
    "operators": 4,
    "data": 4,
    "metrics": 4,
    "reconstruction": 5,
    "training": 6,
    "baselines": 6,
    "experiments": 7,
    "cli": 8,
}
# All other families are on floor 1. Nothing but the tests includes tests.
C_FLOORS = {"common": 0, "frozen_flow": 2, "bindings": 3, "tests": 4}
BACKEND = "flowinv_fast/_base/backend.py"  # the only module that loads _C
KERNEL_CALLERS = (BACKEND, "flowinv_fast/ops/")  # the only ones that use it


def imports(name: str, tree: ast.AST) -> Iterator[list[str]]:
    """Everything of flowinv_fast that a file imports, each as the parts of its full name."""
    package = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else ())]
            for alias in node.names:
                yield [*base, alias.name]


def imports_that_do_not_go_down(name: str, tree: ast.AST) -> Iterator[str]:
    own = name.split("/")[1].removesuffix(".py")
    if own == "__init__" or not name.startswith("flowinv_fast/"):
        return
    for full in imports(name, tree):
        if full[0] != "flowinv_fast" or len(full) < 2:
            continue
        wing = full[1]
        down = PYTHON_FLOORS.get(wing, 99) < PYTHON_FLOORS[own]
        if wing != own and not down or wing == "_C" and name != BACKEND:
            yield wing


def uses_of_the_kernels(name: str, tree: ast.AST) -> Iterator[str]:
    """``_C`` of whatever it is called, backend or _backend, but for torch's own."""
    if name.startswith(KERNEL_CALLERS):
        return
    for node in ast.walk(tree):
        of_torch = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"
        if isinstance(node, ast.Attribute) and node.attr == "_C" and not of_torch:
            yield "_C"
        elif isinstance(node, ast.Constant) and node.value == "_C":
            yield "_C"
    for full in imports(name, tree):
        if full[0] == "flowinv_fast" and "_C" in full:
            yield "_C"


def private_names_in_benchmarks(name: str, tree: ast.AST) -> Iterator[str]:
    """bench/ measures what a user has: no module, name or attribute with an underscore."""
    if not name.startswith("bench/"):
        return
    for full in imports(name, tree):
        if full[0] == "flowinv_fast" and any(part.startswith("_") for part in full):
            yield ".".join(full)
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and re.match(r"_(?!_|C$)", node.attr)
        if private and ast.unparse(node.value) not in ("self", "cls", "torch", "os"):
            yield node.attr


def long_functions(name: str, tree: ast.AST) -> Iterator[str]:
    """Functions of more than 60 lines, their docstring not counted."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines > 60:
                yield node.name


RULES: dict[str, Callable[[str, ast.AST], Iterator[str]]] = {
    "imports": imports_that_do_not_go_down,
    "kernels": uses_of_the_kernels,
    "public": private_names_in_benchmarks,
    "functions": long_functions,
}


def sources(*suffixes: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the files of the package, the benchmarks, the tests and the kernels."""
    for folder in ("flowinv_fast", "bench", "python_tests", "csrc"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes:
                yield path.relative_to(ROOT).as_posix(), path.read_text()


@pytest.mark.parametrize("rule", RULES)
def test_python_rule(rule):
    found, seen = set(), 0
    for name, text in sources(".py"):
        if name.startswith("python_tests/") and rule != "functions":
            continue
        seen += 1
        found |= {f"{name}: {breach}" for breach in RULES[rule](name, ast.parse(text))}
    assert seen > 60
    assert found == set()


NOISE, LAYOUT, BENCH = "flowinv_fast/noise/flow.py", "flowinv_fast/ops/layout.py", "bench/solve.py"
FLOW = "flowinv_fast/flows/flow.py"
PLANTED = [
    ("imports", NOISE, "from ..operators.base import Scale", "operators"),
    ("imports", NOISE, "from .. import ops, reconstruction", "reconstruction"),
    ("imports", LAYOUT, "from flowinv_fast.flows import load_flow", "flows"),
    ("imports", LAYOUT, "import flowinv_fast.unheard.of", "unheard"),
    ("imports", LAYOUT, "from .. import _C", "_C"),
    ("kernels", FLOW, "backend._C.squeeze(1)", "_C"),
    ("kernels", FLOW, "_backend._C.squeeze(1)", "_C"),
    ("kernels", FLOW, "getattr(backend, '_C')", "_C"),
    ("kernels", BENCH, "from flowinv_fast._base.backend import _C", "_C"),
    ("public", BENCH, "from flowinv_fast.flows.flow import _f", "flowinv_fast.flows.flow._f"),
    ("public", BENCH, "from flowinv_fast._base import files", "flowinv_fast._base.files"),
    ("public", BENCH, "flow._walk()", "_walk"),
    ("functions", BENCH, "def long():\n" + "    x = 1\n" * 60, "long"),
]


@pytest.mark.parametrize("rule,name,text,breach", PLANTED)
def test_a_planted_breach_is_found(rule, name, text, breach):
    assert list(RULES[rule](name, ast.parse(text))) == [breach]


INNOCENT = [
    ("imports", NOISE, "from .gaussian import Gaussian\nfrom .. import ops"),
    ("kernels", FLOW, "torch._C._cuda_getCurrentRawStream(0)"),
    ("kernels", LAYOUT, "backend._C.squeeze(1)"),
    ("public", BENCH, "import flowinv_fast as ff\nfrom numpy import _globals\nself._x, x.__name__"),
    ("functions", BENCH, 'def f():\n    """1\n' + "2\n" * 60 + '    """\n    return 1'),
]


@pytest.mark.parametrize("rule,name,text", INNOCENT)
def test_what_is_allowed_is_not_reported(rule, name, text):
    assert list(RULES[rule](name, ast.parse(text))) == []


def test_includes_go_down():
    seen = 0
    for name, text in sources(".h", ".cuh", ".cu", ".cpp"):
        family = name.split("/")[1]
        floor = C_FLOORS.get(family, 1)
        for target in re.findall(r'#include "([a-z_]+)/[\w/]+\.(?:h|cuh)"', text):
            seen += 1
            assert C_FLOORS.get(target, 1) < floor or target == family, f"{name} includes {target}"
        assert "torch/" not in text and "ATen" not in text, f"{name} knows torch"
        assert "pybind11" not in text or family == "bindings", f"{name} knows pybind11"
    assert seen > 40


def test_file_budgets():
    """A file stays under 500 lines, setup.py under 120, CMakeLists.txt under 150."""
    found = {
        name
        for name, text in sources(".py", ".h", ".cuh", ".cu", ".cpp")
        if len(text.splitlines()) > 500
    }
    assert found == set()
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 120
    assert len((ROOT / "CMakeLists.txt").read_text().splitlines()) <= 150
