"""Noise models on disk: closed forms, flows, and flows of what a closed form whitens."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributions import Laplace, StudentT

from .._base.errors import require
from .._base.files import reading
from .._base.tensors import known_device
from .._base.weights import WeightsFiles
from ..flows.flow import Flow
from ..flows.io import ARCHITECTURES, architecture_of
from ..noise import (
    FlowNoise,
    FromDistribution,
    Gaussian,
    LowRankGaussian,
    SignalDependent,
    StationaryGaussian,
)

# Names in the header of a file: the class, and its parameters that are numbers.
_LAWS: dict[str, tuple[type, tuple[str, ...]]] = {
    "gaussian": (Gaussian, ("std", "mean")),
    "stationary-gaussian": (StationaryGaussian, ("power", "mean")),
    "low-rank-gaussian": (LowRankGaussian, ("mean", "factor", "diagonal")),
    "laplace": (Laplace, ("loc", "scale")),
    "student-t": (StudentT, ("df", "loc", "scale")),
    "flow": (FlowNoise, ("scale", "shift")),
    "signal-dependent": (SignalDependent, ("signal", "std")),
}
# Parts of a law that are laws themselves, by the names of its arguments.
_INNER = ("whitening", "law")


class _Parts(nn.Module):
    """The numbers of a law as buffers, its flow, and the laws inside it.

    Args:
        spec: {"kind": name, "shapes": {parameter: shape}}, for a flow also "architecture" and
            "config", and a spec by the name of each law inside.
    """

    def __init__(self, spec: dict[str, Any], depth: int = 0):
        super().__init__()
        if spec["kind"] not in _LAWS:
            raise ValueError(f"law {spec['kind']!r} is none of {', '.join(_LAWS)}")
        if set(spec["shapes"]) != set(_LAWS[spec["kind"]][1]):
            raise ValueError(f"a {spec['kind']} of the parameters {sorted(spec['shapes'])}")
        for name, shape in spec["shapes"].items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        if "config" in spec:
            config, build = ARCHITECTURES[spec["architecture"]]
            self.flow = build(config(**spec["config"]))
        for name in (n for n in _INNER if n in spec):
            if depth > 2:
                raise ValueError("laws within laws within laws")
            self.add_module(name, _Parts(spec[name], depth + 1))
        self.spec = spec

    def model(self) -> Any:
        """The noise model."""
        kind, names = _LAWS[self.spec["kind"]]
        values = {name: self._number(name) for name in names}
        inner = {name: getattr(self, name).model() for name in _INNER if name in self.spec}
        if "config" in self.spec:
            inner["flow"] = self.flow
        made = kind(**values, **inner)
        return FromDistribution(made) if kind in (Laplace, StudentT) else made

    def _number(self, name: str) -> Any:
        value = getattr(self, name)
        return (
            value if value.dim() or self.spec["kind"] in ("laplace", "student-t") else float(value)
        )


def save_noise(model: Any, path: str | os.PathLike, info: dict[str, Any] | None = None) -> None:
    """Write a noise model, such as ``noise.fit(...).best``; the file appears whole or not at all.

    Args:
        model: ``Gaussian``, ``StationaryGaussian``, ``LowRankGaussian``, ``FromDistribution`` of
            ``Laplace`` or ``StudentT``, ``FlowNoise`` of a flow that ``save_flow`` could write,
            whitened or not, or ``SignalDependent`` of one of these.
        path: file name, conventionally ending in .safetensors.
        info: JSON-able facts to keep.
    Raises:
        ArgumentError: another noise model, or numbers that are not finite. Nothing is written.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_noise(Gaussian(0.1, 0.5), f"{folder}/noise.safetensors")
    ...     load_noise(f"{folder}/noise.safetensors").mean
    0.5
    """
    with torch.random.fork_rng(devices=[]):  # a flow that is built draws its first weights
        parts = _parts(model)
    header = {"law": parts.spec, "info": info or {}}
    _FILES.save(parts, path, header, lambda name, tensor: tensor)


def load_noise(name_or_path: str | os.PathLike, device: torch.device | str | None = None) -> Any:
    """A noise model that ``save_noise``, or ``flowinv-fast train --kind noise``, wrote.

    Args:
        name_or_path: a file, or the folder of a training. Nothing is unpickled.
        device: where its flow is put; None is the CPU.
    Returns:
        The noise model, for ``reconstruct``.
    Raises:
        ArgumentError: no such file, or no such device.
        DataError: a file that is damaged, of another kind, or of values that no law has.

    >>> import tempfile
    >>> from torch.distributions import Laplace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_noise(FromDistribution(Laplace(0.0, 0.5)), f"{folder}/noise.safetensors")
    ...     load_noise(folder)
    FromDistribution(Laplace(loc: 0.0, scale: 0.5))
    """
    path = Path(name_or_path) if isinstance(name_or_path, (str, os.PathLike)) else name_or_path
    if isinstance(path, Path) and path.is_dir():
        path = path / _FILES.trained
    device = known_device("load_noise", device)
    here = torch.device("cpu"), torch.inference_mode(False), torch.random.fork_rng(devices=[])
    with contextlib.ExitStack() as stack:  # whatever mode the caller is in
        for mode in here:
            stack.enter_context(mode)
        parts = _FILES.load(path, lambda header: _Parts(header["law"]), lambda t: t)
        with reading("load_noise", "name_or_path", path):  # numbers that no law has
            return parts.to(device).model()


def _parts(model: Any) -> _Parts:
    """A law as it is stored."""
    numbers: Any = model
    if isinstance(model, FromDistribution):
        numbers = model.distribution
    kind = next((n for n, (made, _) in _LAWS.items() if type(numbers) is made), None)
    wanted = f"a noise model of {', '.join(_LAWS)}"
    require(kind is not None, "save_noise", "model", wanted, type(numbers).__name__)
    assert kind is not None
    exact = lambda value: torch.as_tensor(value, dtype=torch.float64)
    values = {n: exact(getattr(numbers, n)) for n in _LAWS[kind][1]}
    spec: dict[str, Any] = {"kind": kind}
    spec["shapes"] = {n: list(v.shape) for n, v in values.items()}
    inner = {n: _parts(law) for n in _INNER if (law := getattr(model, n, None)) is not None}
    spec |= {n: p.spec for n, p in inner.items()}
    if kind == "flow":
        flow = model.flow
        name = architecture_of(flow.config) if isinstance(flow, Flow) else None
        wanted = f"a flow of {', '.join(ARCHITECTURES)}, not frozen"
        require(name is not None, "save_noise", "model", wanted, type(flow).__name__)
        spec |= {"architecture": name, "config": flow.config.to_dict()}
    parts = _Parts(spec)
    for n, value in values.items():
        getattr(parts, n).copy_(value)
    for n, p in inner.items():
        parts.add_module(n, p)
    if kind == "flow":
        parts.flow = model.flow
    return parts


_FILES: WeightsFiles[_Parts] = WeightsFiles(
    kind="flowinv_fast.noise.1",
    folder=Path(__file__).parent.parent / "data" / "noise",  # none are shipped
    saver="save_noise",
    loader="load_noise",
    trained="noise.safetensors",
)
