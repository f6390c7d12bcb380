"""Tolerances and reference computations that several tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pybind11
import pytest
import torch

from flowinv_fast import ArgumentError, Flow
from flowinv_fast.flows import Standardise


def tolerance(dtype: torch.dtype, n: int = 1) -> dict[str, float]:
    """Bounds for a result of n rounded operations of size about one.

    16 eps sqrt(n): independent roundings add up like a random walk, and 16 leaves room for the
    few roundings inside each of them (an exponential, a logarithm, a quotient).
    """
    bound = 16 * torch.finfo(dtype).eps * max(1, n) ** 0.5
    return {"rtol": bound, "atol": bound}


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values as a view whose last dimension has stride 2."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def standardisation(flow: Flow) -> Standardise:
    """The layer that takes mean and standard deviation of the training data."""
    return next(layer for layer in flow.layers if isinstance(layer, Standardise))


def randomise(flow: Flow, amount: float = 0.3) -> Flow:
    """Move a flow away from the identity, as training would.

    The factors of a 1x1 convolution move by less where they are large: triangular matrices of
    independent entries have condition numbers that grow exponentially with their size.
    """
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if name.endswith(("gain", "bias", "log_size")):
                parameter.add_(amount * torch.randn_like(parameter))
            elif name.endswith(("lower", "upper")):
                parameter.add_(amount / len(parameter) * torch.randn_like(parameter))
        standardisation(flow).mean.normal_(0.3, 0.1)
        standardisation(flow).std.uniform_(0.5, 1.5)
    return flow


def jacobian_logdet(function: Callable, point: torch.Tensor) -> torch.Tensor:
    """log|det| of a map of one image, the first thing it returns, by autograd's dense Jacobian."""
    dense = torch.autograd.functional.jacobian(
        lambda v: function(v.view_as(point)[None])[0].flatten(), point.flatten()
    )
    return torch.linalg.slogdet(dense)[1]


def assert_derivatives(function: Callable, inputs, second: bool = False, **options) -> None:
    """First or ``second`` derivatives against differences, by torch's own check.

    Differences over a bend (of a ReLU, at the end of a clamp) show another derivative. About one
    random input in 1,000 lies so near to one; at a thousandth of the step next to none does, and a
    derivative that is wrong is wrong there too.
    """
    check = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    if not check(function, inputs, raise_exception=False, **options):
        check(function, inputs, eps=1e-9, **options)


def assert_names(argument: str, call: Callable[[], object]) -> str:
    """The call raises one ArgumentError that names this argument; returns its message."""
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.argument == argument
    return str(caught.value)


def build_shim(source: Path, texts: dict[str, str] | None = None) -> Path:
    """The compiled module with the CUDA kernels as fibers (csrc/tests/host_shim.h).

    It is built of a copy of this tree's C++ sources, or of ``texts`` (path: text), which is kept in
    build/: trees that share the copy (FLOWINV_SHIM_FOLDER) compile what differs between them alone.
    """
    folder = shim_folder(source)
    names = ("CMakeLists.txt", "pyproject.toml")
    texts = texts or read_texts(source, "csrc/**/*.*", *names)
    cpp = {n: t for n, t in texts.items() if n.startswith("csrc/") or n in names}
    write_texts(folder / "tree", cpp, "csrc/**/*.*")
    options = {
        "FLOWINV_HOST_SHIM": "ON",
        "FLOWINV_WERROR": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    build = folder / "build"
    checked(["cmake", "-S", str(folder / "tree"), "-B", str(build), "-G", "Ninja", *defines])
    checked(["cmake", "--build", str(build)])
    return build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def shim_folder(source: Path) -> Path:
    """Where the module with the shim is built."""
    own = source / "build" / f"shim-{sysconfig.get_config_var('SOABI')}"
    return Path(os.environ.get("FLOWINV_SHIM_FOLDER", own))


def read_texts(folder: Path, *patterns: str) -> dict[str, str]:
    """The files of a folder by their names in it."""
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def write_texts(folder: Path, texts: dict[str, str], *patterns: str) -> None:
    """Only what changed, so that a build has little to do; other files of the patterns go."""
    for old in set(read_texts(folder, *patterns)) - set(texts):
        (folder / old).unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def checked(command: list[str], **options) -> str:
    """What a command prints; one that fails is a failure that shows it."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
