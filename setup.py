"""Builds flowinv_fast._C with CMake. Knows nothing of torch: one binary serves every version.

FLOWINV_CUDA        auto (default: CUDA if nvcc is found), on, wheel (nvcc from the cuda-toolkit
                    packages of the registry, installed for the build only), off
FLOWINV_CUDA_ARCHS  architectures as CMake writes them, default "80-real;90-real;100-real;120"
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA_WHEEL = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2"


def find_nvcc(mode: str) -> tuple[str, str]:
    """(path of nvcc or "", why there is none)."""
    if mode == "off":
        return "", "FLOWINV_CUDA=off"
    if mode == "wheel":
        return wheel_nvcc(), ""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc"]
    found = next((shutil.which(c) for c in candidates if c and shutil.which(c)), "")
    if not found and mode == "on":
        raise SystemExit(
            "FLOWINV_CUDA=on: nvcc was not found on PATH, in CUDACXX or under CUDA_HOME; "
            "install the CUDA toolkit, or use FLOWINV_CUDA=wheel, auto or off"
        )
    return found, "" if found else "nvcc was not found on PATH, in CUDACXX or under CUDA_HOME"


def wheel_nvcc() -> str:
    """nvcc of the registry's toolkit packages, which pip has put into the build environment."""
    found = [nvcc for path in sys.path for nvcc in Path(path).glob("nvidia/*/bin/nvcc")]
    if not found:
        raise SystemExit(
            f"FLOWINV_CUDA=wheel: no nvcc among the installed packages; pip install '{CUDA_WHEEL}' "
            "first, or build with isolation, which brings it"
        )
    library = found[0].parent.parent / "lib"
    os.environ["LIBRARY_PATH"] = f"{library}:{os.environ.get('LIBRARY_PATH', '')}"
    return str(found[0])


class CMakeBuild(build_ext):
    """Runs CMake for the one extension."""

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("FLOWINV_CUDA", "auto").lower()
        if mode not in ("auto", "on", "wheel", "off"):
            raise SystemExit(f"FLOWINV_CUDA: expected auto, on, wheel or off, got {mode!r}")
        nvcc, reason = find_nvcc(mode)
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FLOWINV_OUTPUT_DIR": output,
            "FLOWINV_CUDA": "ON" if nvcc else "OFF",
            "FLOWINV_CPU_ONLY_REASON": reason,
        }
        if ninja := shutil.which("ninja"):
            # An earlier build's cache may name one of an environment that is gone.
            options["CMAKE_MAKE_PROGRAM"] = ninja
        if nvcc:
            options["CMAKE_CUDA_COMPILER"] = nvcc
            if archs := os.environ.get("FLOWINV_CUDA_ARCHS"):
                options["FLOWINV_CUDA_ARCHS"] = archs
        else:
            print(f"flowinv_fast: building without CUDA: {reason}", file=sys.stderr)
        defines = [f"-D{name}={value}" for name, value in options.items()]
        command = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *defines]
        subprocess.run(command, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(
    ext_modules=[Extension("flowinv_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # What pip puts into the isolated build environment beside pyproject.toml's requirements.
    setup_requires=[CUDA_WHEEL] if os.environ.get("FLOWINV_CUDA", "").lower() == "wheel" else [],
)
