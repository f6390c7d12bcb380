"""Generators on disk: safetensors with the architecture and provenance in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .._files import whole_file
from ..errors import ArgumentError, require
from .nets import DCGAN, VAE, GeneratorConfig, make

_FORMAT = "flowinv_fast.generator.1"
_SHIPPED = Path(__file__).parent.parent / "data" / "generators"


def save_generator(
    generator: DCGAN | VAE,
    path: str | os.PathLike,
    info: dict | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a generator's weights, architecture and provenance, whole or not at all.

    Args:
        generator: the generator.
        path: file name, conventionally ending in .safetensors.
        info: JSON-able facts to keep.
        dtype: storage type of floating-point weights; None keeps them as they are.
    """
    header = {"format": _FORMAT, "config": generator.config.to_dict(), "info": info or {}}
    stored = lambda t: t.to(dtype) if dtype and t.is_floating_point() else t
    tensors = {k: stored(v).detach().cpu().contiguous() for k, v in generator.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"flowinv_fast": json.dumps(header)})


def load_generator(
    name_or_path: str | os.PathLike, device: torch.device | str | None = None
) -> DCGAN | VAE:
    """Load a shipped generator by name, or a file written by ``save_generator``.

    Returns:
        The generator in evaluation mode, float32, without weight gradients; facts in ``.info``.
    Raises:
        ArgumentError: no such generator, or a file that is damaged or of another kind.
    """
    shipped = _SHIPPED / f"{name_or_path}.safetensors"
    path = shipped if shipped.is_file() else Path(name_or_path)
    names = ", ".join(p.stem for p in sorted(_SHIPPED.glob("*.safetensors")))
    require(path.is_file(), "load_generator", "name_or_path", f"a file or one of: {names}",
            str(name_or_path))  # fmt: skip
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("flowinv_fast", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ValueError(f"not of format {_FORMAT}")
        generator = make(GeneratorConfig(**header["config"]))
        generator.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        )
        generator.info = header["info"]
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ArgumentError(
            "load_generator", "name_or_path", "a whole file of save_generator", f"{path}: {error}"
        ) from None
    return generator.to(device).eval().requires_grad_(False)


def available_generators() -> dict[str, dict]:
    """Names of the shipped generators, each with its provenance."""
    found = {}
    for path in sorted(_SHIPPED.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.stem] = json.loads(file.metadata()["flowinv_fast"])["info"]
    return found
