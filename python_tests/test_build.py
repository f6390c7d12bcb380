"""The built module: no torch inside, sane kernels, and a build script that says what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowinv_fast as ff
from flowinv_fast._base import backend

ROOT = Path(__file__).parent.parent
MODULE = backend._C.__file__


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("nm"), reason="needs binutils")
def test_no_torch_symbol_or_library():
    undefined = output("nm", "-D", "--undefined-only", "-C", MODULE)
    assert len(undefined) > 100
    assert not re.search(r"\b(at|c10|torch|caffe2)::|\bcuda[A-Z]\w+|\bcu[A-Z]\w+", undefined)
    libraries = output("ldd", MODULE)
    assert "libc." in libraries or "libc.so" in libraries
    assert not re.search(r"torch|c10|cudart|libcuda|gomp", libraries)


def test_the_version_is_written_once():
    """In pyproject.toml: CMake and the installed package read it there."""
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert ff.build_info()["version"] == version
    for path in ("CMakeLists.txt", "setup.py", "flowinv_fast/__init__.py"):
        assert version not in (ROOT / path).read_text(), path


@pytest.mark.skipif(not shutil.which("nm"), reason="needs binutils")
def test_only_the_entry_point_is_exported():
    exported = [
        line.split()[-1] for line in output("nm", "-D", "--defined-only", MODULE).splitlines()
    ]
    assert "PyInit__C" in exported
    assert not [name for name in exported if "flowinv" in name]


def test_imports_without_a_driver():
    """No GPU visible: the module loads and says what it holds."""
    command = [sys.executable, "-c", "import flowinv_fast; print(flowinv_fast.show_config())"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "GPUs here    none" in done.stdout


PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.skipif(not shutil.which("ninja", path=PATH), reason="needs ninja")
def test_a_second_build_finds_its_own_ninja(tmp_path):
    """pip's environment of the first build is gone when the second configures the same tree."""
    tools = tmp_path / "tools"
    tools.mkdir()
    cmake = tools / "cmake"  # configures, does not build
    cmake.write_text(
        f'#!/bin/sh\n[ "$1" = --build ] || exec {shutil.which("cmake", path=PATH)} "$@"\n'
    )
    cmake.chmod(0o755)
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "ninja").symlink_to(shutil.which("ninja", path=PATH))
    folders = ["--build-temp", str(tmp_path / "b"), "--build-lib", str(tmp_path / "l")]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    environment = {**os.environ, "FLOWINV_CUDA": "off"}
    for first in (f"{tools}:{gone}", f"{tools}"):
        environment["PATH"] = f"{first}:{PATH}"
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (gone / "ninja").unlink(missing_ok=True)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").glob("*/*.cu")), ids=lambda p: p.stem)
def test_register_and_spill_budget(source, tmp_path):
    """Compiles without warnings; no kernel spills or takes more than 64 registers (4 blocks of 256
    threads an SM), the tensor-core convolutions 168 (3 blocks of 128); a stack is there only for
    the argument reduction of double sines."""
    flags = ["-arch=sm_90", "-std=c++17", "-cubin", "-Xptxas=-v", "-Werror=all-warnings"]
    flags += ["--expt-relaxed-constexpr", "-DFI_ISA=cuda", f"-I{ROOT / 'csrc'}"]
    command = ["nvcc", *flags, str(source), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", done.stderr)
    assert registers and len(spills) >= len(registers)
    assert max(registers) <= (168 if source.parent.name == "frozen_flow" else 64)
    assert all(int(spill) == 0 and int(stack) <= 40 for stack, spill in spills), spills


def configure(environment: dict[str, str]) -> subprocess.CompletedProcess:
    """setup.py's search for nvcc alone: nothing is built."""
    code = (
        "import os, setuptools; setuptools.setup = lambda **k: None;"
        f"path = {str(ROOT / 'setup.py')!r};"
        "exec(open(path).read(), g := {'__file__': path, '__name__': 'setup'});"
        "print(g['find_nvcc'](os.environ['FLOWINV_CUDA']))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **environment}
    )


def test_on_without_nvcc_is_a_clear_error():
    done = configure({"FLOWINV_CUDA": "on", "PATH": "/nonexistent"})
    assert done.returncode == 1
    assert done.stderr.strip().startswith("FLOWINV_CUDA=on: nvcc was not found")


def test_wheel_without_the_packages_says_what_to_install():
    done = configure({"FLOWINV_CUDA": "wheel", "PATH": "/nonexistent"})
    if done.returncode:  # nothing of the toolkit is installed here
        assert "pip install 'cuda-toolkit[" in done.stderr
    else:
        assert "nvidia" in done.stdout


def test_auto_without_nvcc_stores_the_reason():
    done = configure({"FLOWINV_CUDA": "auto", "PATH": "/nonexistent"})
    assert done.returncode == 0 and "nvcc was not found" in done.stdout
    assert "FLOWINV_CUDA=off" in configure({"FLOWINV_CUDA": "off"}).stdout


@pytest.mark.skipif(not ff.build_info()["cuda"], reason="built without CUDA")
def test_cuda_build_holds_real_architectures():
    info = ff.build_info()
    wanted = os.environ.get("FLOWINV_CUDA_ARCHS", "80-real;90-real;100-real;120").split(";")
    built = info["cuda_architectures"].split()
    assert set(built) <= set(wanted)
    assert any(arch.endswith("-real") or arch.isdigit() for arch in built)
