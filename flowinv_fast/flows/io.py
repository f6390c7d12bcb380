"""Flows on disk."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .._base.weights import WeightsFiles
from .realnvp import RealNVP, RealNVPConfig

_FILES = WeightsFiles(
    "flowinv_fast.realnvp.1", Path(__file__).parent.parent / "data" / "weights", "save_flow",
    "load_flow", "flow.safetensors",
)  # fmt: skip


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
    exact = ("location", "spread")
    _FILES.save(flow, path, info, lambda n, t: t if dtype is None or n in exact else t.to(dtype))


def load_flow(
    name_or_path: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> RealNVP:
    """Load a shipped flow by name or a file written by ``save_flow``. Nothing is unpickled.

    Args:
        name_or_path: one of ``available_flows()``, what ``flowinv-fast train PRESET`` left in the
            user's data folder, or a file.
        device: where to put it; None is the CPU.
        dtype: torch.float32 or torch.float64.
    Returns:
        The flow in evaluation mode, its weights not requiring gradients; provenance in ``.info``.
    Raises:
        ArgumentError: no such flow, or a file that is damaged or of another kind.
    """
    make = lambda config: RealNVP(RealNVPConfig(**config)).to(dtype)
    return _FILES.load(name_or_path, make, lambda t: t.to(dtype)).to(device)


def available_flows() -> dict[str, dict]:
    """Names of the shipped flows, each with its provenance (data, seed, bits per dimension)."""
    return _FILES.available()
