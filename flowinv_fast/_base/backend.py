"""The compiled module: loading it, choosing between it and the reference, handing tensors over."""

from __future__ import annotations

import os
import platform
import warnings

import torch
from torch import Tensor

from .constants import FALLBACK, Constants
from .errors import ArgumentError
from .tensors import accumulate_dtype

_CHOICES = ("auto", "cuda", "cpu", "torch")

choice = os.environ.get("FLOWINV_BACKEND", "auto").lower()
if choice not in _CHOICES:
    raise ArgumentError("flowinv_fast", "FLOWINV_BACKEND", f"one of {_CHOICES}", repr(choice))

try:
    from .. import _C
except ImportError as error:
    if choice != "torch":
        raise ImportError(
            "flowinv_fast._C, the compiled kernels, could not be loaded "
            f"({error}). Install the package with 'pip install .' (or 'pip install -e .' to work "
            "inside its source tree); FLOWINV_BACKEND=torch runs without it, slowly."
        ) from error
    _C = None  # type: ignore[assignment]

constants = FALLBACK if _C is None else Constants(**_C.constants)
# Torch's own threads (GNU OpenMP) do not live on in a fork, and its next parallel loop there would
# wait for them for ever. One thread a process is what torch gives its data loaders' workers too.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
DTYPES = {getattr(torch, name): code for name, code in constants.dtypes.items()}
PRECISIONS = tuple(constants.precisions)
TensorArg = tuple[int, int, int]  # address, number of elements, dtype code
_warned = False


def native(tensor: Tensor) -> bool:
    """Whether the compiled kernels serve this tensor; raises where they were asked for and cannot.

    ``auto``: CPU kernels for CPU tensors, CUDA kernels for CUDA tensors where they were built,
    else the reference with one warning. ``cpu`` and ``cuda`` refuse tensors elsewhere.
    """
    if choice == "torch":
        return False
    kind = tensor.device.type
    if choice != "auto" and kind != choice:
        raise ArgumentError(
            "FLOWINV_BACKEND", "tensor", f"a tensor on {choice} (FLOWINV_BACKEND={choice})", kind
        )
    if kind == "cpu":
        return True
    if kind == "cuda" and _C.build_info["cuda"]:
        return True
    if choice == "cuda":
        wanted = "a build with CUDA (FLOWINV_BACKEND=cuda)"
        got = f"one without: {_C.build_info['cpu_only_reason']}"
        raise ArgumentError("FLOWINV_BACKEND", "build", wanted, got)
    _warn_once(kind)
    return False


def _warn_once(kind: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        reason = _C.build_info["cpu_only_reason"] or f"no kernels for {kind}"
        warnings.warn(f"flowinv_fast: {kind} tensors run on plain torch: {reason}", stacklevel=4)


def arg(tensor: Tensor | None) -> TensorArg:
    """A dense tensor as the compiled module takes it; the caller keeps it alive."""
    if tensor is None:
        return (0, 0, 0)
    return (tensor.data_ptr(), tensor.numel(), DTYPES[tensor.dtype])


def execution(tensor: Tensor) -> tuple[int, int, int]:
    """(CUDA device or -1, CPU threads, CUDA stream) for work beside this tensor."""
    if tensor.device.type == "cuda":
        index = tensor.device.index
        return (index, 1, torch._C._cuda_getCurrentRawStream(index))
    return (-1, torch.get_num_threads(), 0)


def partials(batch: int, n: int, like: Tensor) -> Tensor | None:
    """Workspace for the sums over an image of n elements; None where none is needed."""
    tiles = (n + constants.tile - 1) // constants.tile
    if like.device.type == "cpu" or tiles <= 1:
        return None
    return like.new_empty(batch * tiles, dtype=accumulate_dtype(like.dtype))


def build_info() -> dict:
    """What was built and what this machine offers, as plain values.

    Of the compiled module: version, compiler, cpu_kernels, cuda (the toolkit's version, empty where
    there are no CUDA kernels), cuda_architectures and cpu_only_reason. Of this process: backend
    (``FLOWINV_BACKEND``), torch, python, machine, threads and gpus.

    >>> build_info()["torch"] == torch.__version__
    True
    """
    built = dict(_C.build_info) if _C is not None else {"cpu_only_reason": "no compiled module"}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **built,
        "backend": choice,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def show_config() -> str:
    """``build_info`` as text, a line each, to print or to put into a report of a bug.

    >>> print(show_config())  # doctest: +ELLIPSIS
    flowinv_fast ... on Python ...
    compiler     ...
    CPU kernels  ... threads
    ...
    """
    info = build_info()
    cuda = (
        f"toolkit {info['cuda']}, architectures {info['cuda_architectures']}"
        if info.get("cuda")
        else f"not built: {info['cpu_only_reason']}"
    )
    lines = [
        f"flowinv_fast {info.get('version', '')} on Python {info['python']}, {info['machine']}",
        f"compiler     {info.get('compiler', 'none')}",
        f"CPU kernels  {info.get('cpu_kernels', 'none')}, {info['threads']} threads",
        f"CUDA kernels {cuda}",
        f"GPUs here    {', '.join(info['gpus']) or 'none'}",
        f"torch        {info['torch']}",
        f"back end     {info['backend']} (FLOWINV_BACKEND)",
    ]
    return "\n".join(lines)
