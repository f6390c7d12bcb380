"""Weights on disk: safetensors with the architecture and its provenance in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .._files import whole_file
from ..errors import ArgumentError, require
from .realnvp import RealNVP, RealNVPConfig

_FORMAT = "flowinv_fast.realnvp.1"
_SHIPPED = Path(__file__).parent.parent / "data" / "weights"


def save_flow(
    flow: RealNVP,
    path: str | os.PathLike,
    info: dict | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a flow's weights, architecture and provenance; the file appears whole or not at all.

    Args:
        flow: the flow.
        path: file name, conventionally ending in .safetensors.
        info: JSON-able facts to keep (training data, seed, bits per dimension, ...).
        dtype: storage type of floating-point weights, for example torch.float16 to halve the
            file; None keeps them as they are. The standardisation is always kept in float32.
    """
    header = {"format": _FORMAT, "config": flow.config.to_dict(), "info": info or {}}
    tensors = {}
    for name, tensor in flow.state_dict().items():
        keep = dtype is None or name in ("location", "spread")
        tensors[name] = (tensor if keep else tensor.to(dtype)).detach().cpu().contiguous()
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"flowinv_fast": json.dumps(header)})


def load_flow(
    name_or_path: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> RealNVP:
    """Load a shipped flow by name or a file written by ``save_flow``. Nothing is unpickled.

    Args:
        name_or_path: one of ``available_flows()`` or a file.
        device: where to put it; None is the CPU.
        dtype: torch.float32 or torch.float64.
    Returns:
        The flow in evaluation mode, its weights not requiring gradients; provenance in ``.info``.
    Raises:
        ArgumentError: no such flow, or a file that is damaged or of another kind.
    """
    path = _find(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArgumentError(
            "load_flow", "name_or_path", "a safetensors file", f"{path}: {error}"
        ) from None
    header = _header(path, metadata)
    try:
        flow = RealNVP(RealNVPConfig(**header["config"])).to(dtype)
        flow.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            "load_flow", "name_or_path", "weights that fit the architecture in the file's header",
            f"{path}: {error}",
        ) from None  # fmt: skip
    flow.info = header["info"]
    return flow.to(device).eval().requires_grad_(False)


def available_flows() -> dict[str, dict]:
    """Names of the shipped flows, each with its provenance (data, seed, bits per dimension)."""
    flows = {}
    for path in sorted(_SHIPPED.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            flows[path.stem] = _header(path, file.metadata() or {})["info"]
    return flows


def _find(name_or_path: str | os.PathLike) -> Path:
    shipped = _SHIPPED / f"{name_or_path}.safetensors"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    names = ", ".join(p.stem for p in sorted(_SHIPPED.glob("*.safetensors")))
    require(path.is_file(), "load_flow", "name_or_path", f"a file or one of: {names}", str(path))
    return path


def _header(path: Path, metadata: dict[str, str]) -> dict:
    wanted = f"a flow written by save_flow (format {_FORMAT})"
    try:
        header = json.loads(metadata.get("flowinv_fast", "{}"))
    except json.JSONDecodeError:
        header = {}
    require(header.get("format") == _FORMAT, "load_flow", "name_or_path", wanted, str(path))
    return header
