"""Independent readings of weights and saved reconstructions, and changes that know their form."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flowinv_fast as ff
from flowinv_fast import generators
from flowinv_fast.generators.nets import GeneratorConfig, make

from .engine import Wrong

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
_WORDS = ("", "F32", "F16", "BF16", "F64", "I8", "I64", "BOOL", "F8_E4M3", "U8", "realnvp", "glow")
_JUNK = (None, True, -1, 0.5, float("nan"), 1e308, [], {}, [1], "", 10**30, "\x00", [[[]]])


def reads(wanted: object, found: object, what: str) -> None:
    """Raise Wrong where two readings differ."""
    if isinstance(wanted, np.ndarray) or isinstance(found, np.ndarray):
        a, b = np.asarray(wanted), np.asarray(found)
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        same = wanted == found
    if not same:
        raise Wrong(f"another meaning of {what}: {str(wanted)[:200]} read as {str(found)[:200]}")


# --- weights --------------------------------------------------------------------------------------

_SIZES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_SIZES |= {"I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1", "U16": "<u2", "U32": "<u4"}


def safetensors(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(our header, tensors in float64) of a file's bytes, by its specification."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size].decode())
    ours = json.loads(header.pop("__metadata__")["flowinv_fast"])
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = np.frombuffer(data[8 + size + first : 8 + size + last], _SIZES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = raw.reshape(entry["shape"]).astype(np.float64)
    return ours, tensors


def edit_weights(data: bytes, provider: Any) -> bytes:
    """Another value somewhere in the header, or another float among the weights."""
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
    except (ValueError, struct.error, RecursionError):
        return data
    rest = data[8 + size :]
    choice = provider.ConsumeIntInRange(0, 5)
    if choice == 0 and len(rest) >= 4:
        at = provider.ConsumeIntInRange(0, len(rest) // 4 - 1) * 4
        value = provider.PickValueInList([float("nan"), float("inf"), 1e38, -1e-40, 0.0, 3.5])
        rest = rest[:at] + struct.pack("<f", value) + rest[at + 4 :]
    elif choice == 1:
        number = provider.PickValueInList(list(NUMBERS))
        return struct.pack("<Q", number) + data[8:]
    elif choice == 2 and isinstance(header, dict):
        inner = header.get("__metadata__")
        try:
            text = json.loads(inner["flowinv_fast"])
            inner["flowinv_fast"] = json.dumps(_edited(text, provider))
        except (TypeError, KeyError, ValueError):
            pass
    else:
        header = _edited(header, provider)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _edited(value: Any, provider: Any, depth: int = 0) -> Any:
    """A JSON value with one change somewhere."""
    if depth < 5 and isinstance(value, dict) and value and provider.ConsumeIntInRange(0, 9):
        key = provider.PickValueInList(sorted(map(str, value)))
        how = provider.ConsumeIntInRange(0, 9)
        changed = dict(value)
        if how == 0:
            del changed[key]
        elif how == 1:
            changed[key + "x"] = changed.pop(key)
        else:
            changed[key] = _edited(value[key], provider, depth + 1)
        return changed
    if depth < 5 and isinstance(value, list) and value and provider.ConsumeIntInRange(0, 3):
        at = provider.ConsumeIntInRange(0, len(value) - 1)
        return [_edited(v, provider, depth + 1) if i == at else v for i, v in enumerate(value)]
    pool = [list(NUMBERS), list(_WORDS), list(_JUNK)][provider.ConsumeIntInRange(0, 2)]
    return provider.PickValueInList(pool)


def saved(save: Any) -> bytes:
    """The bytes of a file that ``save(path)`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "seed.safetensors")
        return (Path(folder) / "seed.safetensors").read_bytes()


@functools.cache
def flow_files() -> list[bytes]:
    """Small flows of both architectures, stored in several types."""
    configs = [
        ff.RealNVPConfig((1, 2, 2), scales=1, hidden=1, blocks=0),
        ff.RealNVPConfig((1, 2, 2), scales=1, hidden=1, blocks=0, support="bounded"),
        ff.RealNVPConfig((1, 2, 2), scales=2, hidden=1, blocks=0),
    ]
    flows = [*map(ff.realnvp, configs)]
    flows.append(ff.glow(ff.GlowConfig((1, 2, 2), scales=2, hidden=1, blocks=0, prior_hidden=1)))
    files = [saved(lambda p, f=f: ff.save_flow(f, p, {"data": "none"})) for f in flows]
    halves = (torch.float16, torch.bfloat16, torch.float64)
    return files + [saved(lambda p, d=d: ff.save_flow(flows[0], p, dtype=d)) for d in halves]


@functools.cache
def generator_files() -> list[bytes]:
    """Small generators of both kinds."""
    configs = [GeneratorConfig((1, 8, 8), kind, 2, 1) for kind in ("dcgan", "vae")]
    return [saved(lambda p, c=c: generators.save_generator(make(c), p)) for c in configs]


def check_weights(data: bytes, found: Any) -> None:
    """The module holds what the file says, and nothing that is not finite."""
    header, tensors = safetensors(data)
    config = {k: v for k, v in header["config"].items() if v is not None}
    kept = json.loads(json.dumps(found.config.to_dict()))
    reads(config, {k: kept[k] for k in config}, "the configuration")
    if not isinstance(header["info"], dict):
        raise Wrong("facts that are none taken in silence")
    reads(json.dumps(header["info"]), json.dumps(found.info), "the facts")
    state = found.state_dict()
    reads(sorted(tensors), sorted(state), "the names of the weights")
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise Wrong(f"weights that are not finite taken in silence: {name}")
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        wanted = torch.from_numpy(tensors[name]).to(dtype)
        reads(wanted.numpy(), tensor.numpy(), f"weight {name}")
    if any(p.requires_grad for p in found.parameters()) or found.training:
        raise Wrong("a module that trains: load gave one with gradients or in training mode")


@functools.cache
def results() -> list[ff.Reconstruction]:
    """Two reconstructions, over latents and over images."""
    flow = ff.realnvp(ff.RealNVPConfig((1, 2, 2), scales=1, hidden=1, blocks=0))
    given = (torch.rand(2, 1, 2, 2), ff.operators.Identity(), flow, ff.noise.Gaussian(0.1))
    options = {"steps": 2, "strategy": "adam", "progress": False}
    return [ff.reconstruct(*given, objective=o, **options) for o in ("map", "map-image")]


def check_reconstruction(data: bytes, found: ff.Reconstruction) -> None:
    """The result holds what the file says."""
    header, tensors = safetensors(data)
    reads(header["status"], [status.name for status in found.status], "the status")
    reads(json.dumps(header["config"]), json.dumps(found.config), "config")
    for name, wanted in tensors.items():
        tensor = getattr(found, name).double().numpy()
        nothing = np.isnan(wanted)  # all NaN are one
        reads(nothing, np.isnan(tensor), f"where {name} is NaN")
        reads(wanted[~nothing], tensor[~nothing], name)
