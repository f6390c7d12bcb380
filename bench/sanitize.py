"""The compiled module under AddressSanitizer and UBSan, its thread pool under ThreadSanitizer.

    python bench/sanitize.py [PYTEST ARGUMENT ...]    by default the tests of the operations

Builds the module for the CPU in build/sanitize, lays a copy of the package around it there, and
runs the tests on that copy. The last line is JSON: how many tests passed and how many did not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "sanitize"
TESTS = ("python_tests/ops", "python_tests/flows/test_frozen.py", "-k", "not inductor and not fork")


def library(name: str) -> str:
    """Path of a run-time library of the compiler."""
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def build() -> Path:
    """A folder with a copy of the package whose compiled module is sanitised."""
    import pybind11

    package = BUILD / "package" / "flowinv_fast"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "flowinv_fast", package, ignore=shutil.ignore_patterns("_C*.so"))
    options = {
        "FLOWINV_SANITIZE": "address,undefined",
        "FLOWINV_CUDA": "OFF",
        "FLOWINV_OUTPUT_DIR": package,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",  # of which pybind11 neither strips nor merges objects
        "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-g1 -DNDEBUG",
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    for command in (["-S", ROOT, "-B", BUILD, "-G", "Ninja", *defines], ["--build", BUILD]):
        subprocess.run(["cmake", *command], check=True, stdout=subprocess.DEVNULL)
    return package.parent


def thread_pool() -> bool:
    """Whether the thread pool's own test runs clean under ThreadSanitizer."""
    csrc = ROOT / "csrc"
    sources = [csrc / "tests" / "test_parallel.cpp", csrc / "common" / "parallel.cpp"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{csrc}", "-pthread"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "test_parallel"
        command = [os.environ.get("CXX", "c++"), *flags, *map(str, sources), "-o", str(program)]
        subprocess.run(command, check=True)
        # Without randomised addresses: some kernels' are wider than ThreadSanitizer knows.
        done = subprocess.run(["setarch", "-R", str(program)])
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    package = build()
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(arguments or TESTS)]
    # `python -m` would put the root, with the plain module, in front: a folder without one.
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(ROOT), *command[3:]],
        env=environment,
        cwd=package,
        capture_output=True,
        text=True,
    )
    print(done.stdout[-6000:], done.stderr[-6000:])
    number = lambda word: sum(map(int, re.findall(rf"(\d+) {word}", done.stdout[-300:])))
    clean = thread_pool()
    passed, failed = number("passed") + clean, number("failed") + number("error") + (not clean)
    failed += done.returncode != 0 and failed == 0
    print(json.dumps({"passed": passed, "failed": int(failed)}))
    return int(failed > 0)


_RUN = """
import os, sys
import pytest, flowinv_fast
assert "sanitize" in flowinv_fast.__file__, flowinv_fast.__file__
os.chdir(sys.argv[1])
sys.exit(pytest.main(["-p", "no:cacheprovider", *sys.argv[2:]]))
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
