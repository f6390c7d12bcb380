"""Generators on disk: safetensors with architecture and provenance in the header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .._base.tensors import known_device, stored_as
from .._base.weights import WeightsFiles
from .nets import DCGAN, VAE, GeneratorConfig, make

_FILES: WeightsFiles[DCGAN | VAE] = WeightsFiles(
    kind="flowinv_fast.generator.1",
    folder=Path(__file__).parent.parent / "data" / "generators",
    saver="save_generator",
    loader="load_generator",
    trained="generator.safetensors",
)


def save_generator(
    generator: DCGAN | VAE,
    path: str | os.PathLike,
    info: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a generator's weights, architecture and provenance, whole or not at all.

    Args:
        generator: the generator.
        path: file name, conventionally ending in .safetensors.
        info: JSON-able facts to keep.
        dtype: storage type of floating-point weights (torch.float16 halves the file); None keeps
            them as they are.
    Raises:
        ArgumentError: a dtype that is no floating-point one; weights that are not finite (in
            ``dtype``); info of more than a million characters. Nothing is written.
        OSError: the file cannot be written.
        TypeError: info that JSON cannot hold.

    >>> import tempfile
    >>> generator = make(GeneratorConfig((1, 8, 8), "vae", latent_dim=2, width=4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_generator(generator, f"{folder}/mine.safetensors", {"data": "none"})
    ...     load_generator(f"{folder}/mine.safetensors").info
    {'data': 'none'}
    """
    stored = lambda key, tensor: stored_as("save_generator", tensor, dtype)
    header = {"config": generator.config.to_dict(), "info": info or {}}
    _FILES.save(generator, path, header, stored)


def load_generator(
    name_or_path: str | os.PathLike, device: torch.device | str | None = None
) -> DCGAN | VAE:
    """Load a shipped generator by name, or a file written by ``save_generator``.

    Args:
        name_or_path: one of ``available_generators()``, the name of a folder that training left in
            the user's data folder, or a file. Nothing is unpickled.
        device: where to put it; None is the CPU.
    Returns:
        The generator in evaluation mode, float32, without weight gradients; facts in ``.info``.
    Raises:
        ArgumentError: no such generator, or no such device.
        DataError: a file that is damaged, of another kind, or of weights that are not finite.

    >>> load_generator("fashion-vae-28").sample(2).shape
    torch.Size([2, 1, 28, 28])
    """
    device = known_device("load_generator", device)
    loaded = lambda t: t.float() if t.is_floating_point() else t
    build = lambda header: make(GeneratorConfig(**header["config"])).float()
    with torch.device("cpu"), torch.inference_mode(False):  # whatever mode the caller is in
        return _FILES.load(name_or_path, build, loaded).to(device)


def available_generators() -> dict[str, dict[str, Any]]:
    """Names of the shipped generators, each with its provenance (data, epochs, seed, licence).

    >>> available_generators()["fashion-vae-28"]["data"]
    'Fashion-MNIST, 60,000 training images'
    """
    return _FILES.available()
