"""The floors of CONTRIBUTING.md: every import and #include goes down, never up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A module may import its own floor and those below.
PYTHON_FLOORS = {
    "_C": 0, "protocols": 0, "_base": 1,
    "ops": 3,
    "flows": 4, "generators": 4, "noise": 4, "operators": 4, "data": 4, "metrics": 4,
    "reconstruction": 5,
    "training": 6, "baselines": 6,
    "experiments": 7, "cli": 7,
}  # fmt: skip
C_FLOORS = {"common": 0, "tests": 0, "frozen_flow": 2, "bindings": 3}  # other families are floor 1
ONLY_BACKEND = "_base/backend.py"  # the only module that knows _C


def python_imports(path: Path) -> list[str]:
    """First package-level name of each import inside flowinv_fast."""
    package = path.relative_to(ROOT / "flowinv_fast").parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            parts = (*base, *(node.module.split(".") if node.module else ()))
            found += [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("flowinv_fast.") for a in node.names), path
    return found


def test_python_imports_go_down():
    seen = 0
    for path in (ROOT / "flowinv_fast").rglob("*.py"):
        relative = path.relative_to(ROOT / "flowinv_fast")
        name = relative.parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for target in python_imports(path):
            assert target in PYTHON_FLOORS, f"{relative}: unknown module {target}"
            floor = PYTHON_FLOORS[name]
            assert PYTHON_FLOORS[target] <= floor, f"{relative} (floor {floor}) imports {target}"
            assert target != "_C" or relative.as_posix() == ONLY_BACKEND, f"{relative} imports _C"
            seen += 1
    assert seen > 40


def test_includes_go_down():
    seen = 0
    for path in [
        p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp")
    ]:
        family = path.relative_to(ROOT / "csrc").parts[0]
        floor = C_FLOORS.get(family, 1)
        text = path.read_text()
        for target in re.findall(r'#include "([a-z_]+)/\w+\.(?:h|cuh)"', text):
            seen += 1
            if family == "tests" or path.name == "launch.cuh" and target == "tests":
                continue
            below = C_FLOORS.get(target, 1) < floor
            assert below or target == family, f"{path} includes {target}"
        assert "torch/" not in text and "ATen" not in text, f"{path} knows torch"
        assert "pybind11" not in text or floor == 3, f"{path} knows pybind11"
    assert seen > 40


def test_file_and_function_budgets():
    """A file stays under 500 lines, setup.py under 120, CMakeLists.txt under 150."""
    for pattern in ("flowinv_fast/**/*.py", "csrc/**/*.*"):
        for path in ROOT.glob(pattern):
            if path.suffix in (".py", ".h", ".cuh", ".cu", ".cpp"):
                assert len(path.read_text().splitlines()) <= 500, path
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 120
    assert len((ROOT / "CMakeLists.txt").read_text().splitlines()) <= 150
