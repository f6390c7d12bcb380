"""Flows on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.tensors import known_device, stored_as
from .._base.weights import WeightsFiles
from .flow import Flow, FlowConfig
from .glow import GlowConfig, glow
from .layers import Standardise
from .realnvp import RealNVPConfig, realnvp
from .tarflow import TarFlowConfig, tarflow

# Name in the header of a file: the configuration, and what makes a flow of it. A flow of your own
# can be saved and loaded once its architecture is entered here.
ARCHITECTURES: dict[str, tuple[type[FlowConfig], Callable[[Any], Flow]]] = {
    "realnvp": (RealNVPConfig, realnvp),
    "glow": (GlowConfig, glow),
    "tarflow": (TarFlowConfig, tarflow),
}
_FILES: WeightsFiles[Flow] = WeightsFiles(
    kind="flowinv_fast.flow.1",
    folder=Path(__file__).parent.parent / "data" / "weights",
    saver="save_flow",
    loader="load_flow",
    trained="flow.safetensors",
)


def architecture_of(config: FlowConfig) -> str | None:
    """Name of the architecture in ``ARCHITECTURES`` that this configuration is of, or None."""
    names = {kind: name for name, (kind, _) in ARCHITECTURES.items()}
    return names.get(type(config))


def build_flow(config: FlowConfig) -> Flow:
    """A new flow of this configuration: ``realnvp``, ``tarflow`` or another of ``ARCHITECTURES``.

    Raises:
        ArgumentError: a configuration that belongs to none of them.

    Example:
        >>> import flowinv_fast as ff
        >>> from flowinv_fast.flows import build_flow
        >>> build_flow(ff.GlowConfig((1, 8, 8), scales=2, hidden=8, blocks=1)).shape
        (1, 8, 8)
    """
    name = architecture_of(config)
    wanted = f"a configuration of {' or '.join(ARCHITECTURES)}"
    require(name is not None, "build_flow", "config", wanted, type(config).__name__)
    assert name is not None
    return ARCHITECTURES[name][1](config)


def save_flow(
    flow: Flow,
    path: str | os.PathLike,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a flow's weights, architecture and provenance; the file appears whole or not at all.

    Args:
        flow: a flow of one of ``ARCHITECTURES``: ``load_flow`` builds it again from its config.
        path: file name, conventionally ending in .safetensors.
        info: JSON-able facts to keep (training data, seed, bits per dimension, ...).
        dtype: storage type of floating-point weights, for example torch.float16 to halve the
            file; None keeps them as they are. The standardisation is always kept in float32.
    Raises:
        ArgumentError: a flow of other layers than those that its config stands for; a dtype that
            is no floating-point one; weights that are not finite (in ``dtype``); info of more than
            a million characters. Nothing is written.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, flowinv_fast as ff
        >>> flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ff.save_flow(flow, f"{folder}/mine.safetensors", {"data": "none"})
        ...     ff.load_flow(f"{folder}/mine.safetensors").info
        {'data': 'none'}
    """
    name = architecture_of(flow.config)
    wanted = f"a flow whose config belongs to {' or '.join(ARCHITECTURES)}"
    require(name is not None, "save_flow", "flow", wanted, f"one of a {type(flow.config).__name__}")
    with torch.device("meta"):  # the structure alone
        made = build_flow(flow.config)
    wanted = f"the layers that {name} makes of its config"
    same = repr(flow) == repr(made) and _sizes(flow) == _sizes(made)
    require(same, "save_flow", "flow", wanted, "a flow of other layers")
    exact = {
        f"{prefix}.{buffer}"
        for prefix, module in flow.named_modules()
        if isinstance(module, Standardise)
        for buffer in ("mean", "std")
    }

    def stored(key: str, tensor: Tensor) -> Tensor:
        return stored_as("save_flow", tensor, None if key in exact else dtype)

    header = {"architecture": name, "config": flow.config.to_dict(), "info": info or {}}
    _FILES.save(flow, path, header, stored)


def load_flow(
    name_or_path: str | os.PathLike,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Flow:
    """Load a shipped flow by name or a file written by ``save_flow``. Nothing is unpickled.

    Args:
        name_or_path: one of ``available_flows()``, what ``flowinv-fast train PRESET`` left in the
            user's data folder, or a file.
        device: where to put it; None is the CPU.
        dtype: torch.float32 or torch.float64.
    Returns:
        The flow in evaluation mode, its weights not requiring gradients; provenance in ``.info``.
    Raises:
        ArgumentError: no such flow, or no such device.
        DataError: a file that is damaged, of another kind, or of weights that are not finite.

    Example:
        >>> import flowinv_fast as ff
        >>> ff.load_flow("mnist-28").shape
        (1, 28, 28)
    """

    device = known_device("load_flow", device)

    def make(header: dict[str, Any]) -> Flow:
        name = header["architecture"]
        if name not in ARCHITECTURES:
            raise ValueError(f"architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
        config, build = ARCHITECTURES[name]
        return build(config(**header["config"])).to(dtype)

    with torch.device("cpu"), torch.inference_mode(False):  # whatever mode the caller is in
        return _FILES.load(name_or_path, make, lambda t: t.to(dtype)).to(device)


def available_flows() -> dict[str, dict[str, Any]]:
    """Names of the shipped flows, each with its provenance (data, seed, bits per dimension).

    Example:
        >>> import flowinv_fast as ff
        >>> sorted(name for name in ff.available_flows() if name.startswith("fashion"))
        ['fashion-28', 'fashion-28-tarflow']
    """
    return _FILES.available()


def _sizes(flow: Flow) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in flow.state_dict().items()}
