"""What a model card tells of a flow: densities of images, round trips."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .._base.backend import build_info
from .._base.errors import ArgumentError, is_whole, require
from .._base.tensors import DATA_SEEDS, check_seed
from ..data.images import fit_images, load_images, sample_images
from ..data.sources import Crops
from ..flows.flow import Flow
from ..flows.io import architecture_of
from ..flows.layers import AffineCoupling
from ..flows.levels import told_levels
from ..metrics import interval
from .flow import pixels

HELD_OUT = "held-out images"
ROUND_TRIPS = 256
_BATCH = 64
_OF_LEVEL = ("finite", "bits_per_dim", "interval")


def held_out_images(
    data: str | os.PathLike,
    shape: tuple[int, int, int],
    count: int = 10_000,
    seed: int = 0,
    crops: bool = False,
    patches: bool = False,
) -> Tensor:
    """Images for a card, drawn by ``seed``.

    Args:
        data: what ``load_images`` reads; with ``crops`` or ``patches`` a folder of photographs.
        shape: (C, H, W) of the flow.
        count: how many; all of them where there are fewer.
        seed: below 2^40.
        crops: draw ``count`` random crops of the photographs.
        patches: the same of the photographs as they are, not resized.
    Returns:
        uint8 (N, C, H, W), N at most ``count``.
    Raises:
        ArgumentError: nothing readable there, images of another size, a bad count or seed.
    """
    require(is_whole(count, 1), "held_out_images", "count", "an integer of at least 1", count)
    check_seed("held_out_images", seed, seeds=DATA_SEEDS)
    if crops or patches:
        return Crops(data, shape, () if patches else None).take(count, seed)
    images = load_images(data, shape)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:count]]


def image_groups(
    shape: tuple[int, int, int], images: Tensor, other: str, draws: torch.Generator
) -> dict[str, Tensor]:
    """Images (N, C, H, W) by what they are: held out, of other data, noise, constant grey."""
    return {
        HELD_OUT: images,
        f"other images: {Path(other).name}": other_images(other, shape, len(images)),
        "uniform random pixels": torch.randint(0, 256, (256, *shape), generator=draws),
        "constant grey": torch.arange(256)[:, None, None, None].expand(-1, *shape),
    }


def other_images(other: str, shape: tuple[int, int, int], count: int) -> Tensor:
    """Shipped or a user's images, uint8 of this shape: resampled, grey or colour as wanted."""
    try:
        x = 255 * sample_images(other, count)
    except ArgumentError as error:  # no such name
        path = Path(other)
        require(path.exists(), "write_card", "other", "a file, a folder or a name", error)
        x = load_images(path, shape if path.is_dir() else None)[:count].float()
    x = fit_images(x, shape)
    return x.round().clamp(0, 255).to(torch.uint8)


def dequantised(flow: Flow, images: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of uint8 images (N, C, H, W) as float32 with the noise of training."""
    blocks = math.ceil(math.prod(flow.shape) / 4)  # of the Philox stream, to an image
    for start in range(0, len(images), _BATCH):
        x = pixels(flow, images[start : start + _BATCH])
        yield flow.dequantise(x, seed, start * blocks)


def log_probs(
    flow: Flow, groups: dict[str, Tensor], seed: int, progress: bool | None
) -> dict[str, Tensor]:
    """log p in nats of every image of every group, (N,) float64 on the CPU."""
    frozen = flow.freeze()
    found: dict[str, Tensor] = {}
    disable = None if progress is None else not progress
    with tqdm(total=sum(map(len, groups.values())), desc="log p", disable=disable) as bar:
        for group, images in groups.items():
            parts = []
            for x in dequantised(flow, images.to(torch.uint8), seed):
                parts.append(frozen.log_prob(x).double().cpu())
                bar.update(len(x))
            found[group] = torch.cat(parts)
    return found


def architecture(flow: Flow) -> dict[str, Any]:
    """Name and configuration, and how many parameters and couplings it makes."""
    return {
        "name": architecture_of(flow.config),
        **flow.config.to_dict(),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "couplings": sum(isinstance(layer, AffineCoupling) for layer in flow.layers),
    }


def held_out_facts(flow: Flow, log_prob: Tensor, data: str) -> dict[str, Any]:
    """Mean bits/dim of held-out images with its 95 % interval; ``data`` says what they are."""
    bits = flow.bits_per_dim(log_prob)
    return {
        "data": data,
        "images": len(bits),
        "finite": int(bits.isfinite().sum()),
        "bits_per_dim": number(bits.mean()),
        "interval": number(interval(bits.numpy())),
    }


def level_facts(
    flow: Flow, images: Tensor, seed: int, progress: bool | None
) -> list[dict[str, Any]]:
    """The same at three levels of a flow that was trained over a range; none for another flow."""
    found = []
    for level in told_levels(flow.levels) if flow.levels else ():
        at = flow.at(level)
        facts = held_out_facts(at, log_probs(at, {HELD_OUT: images}, seed, progress)[HELD_OUT], "")
        found.append({"level": number(level), **{k: facts[k] for k in _OF_LEVEL}})
    return found


def group_table(flow: Flow, log_probs: dict[str, Tensor]) -> list[dict[str, Any]]:
    """A row to each group of images: medians and quantiles, and how many beat the held-out ones."""
    median = log_probs[HELD_OUT].median()
    quantiles = lambda found: np.quantile(flow.bits_per_dim(found), (0.05, 0.5, 0.95))
    return [
        {
            "group": group,
            "images": len(found),
            "finite": int(found.isfinite().sum()),
            "log_prob": number(np.median(found)),
            "bits_per_dim": [number(b) for b in quantiles(found)],
            "likelier": number((found > median).double().mean()),
        }
        for group, found in log_probs.items()
    ]


def round_trip(
    flow: Flow, images: Tensor, draws: torch.Generator, seed: int
) -> dict[str, float | None]:
    """Largest errors of decode(encode(x)), and of encode(decode(z)) over the largest abs(z)."""
    images = images[:ROUND_TRIPS]
    errors = [
        (flow.decode(flow.encode(x)[0])[0] - x).abs().max() for x in dequantised(flow, images, seed)
    ]
    z = torch.randn(64, math.prod(flow.shape), generator=draws).to(flow.device, flow.dtype)
    latent = (flow.encode(flow.decode(z)[0])[0] - z).abs().amax(1) / z.abs().amax(1)
    finite = latent.isfinite()
    return {
        "images": len(images),
        "pixels": number(torch.stack(errors).max()),
        "latents": len(z),
        "latents_finite": int(finite.sum()),
        "latent": number(latent[finite].max() if finite.any() else math.nan),
        "latent_median": number(latent.nan_to_num(math.inf).median()),
    }


def conditions(device: torch.device, seed: int) -> dict[str, Any]:
    """What the facts were measured with."""
    return {
        "version": build_info().get("version", ""),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def number(value: Any) -> float | None:
    """Six digits of a number, or None for one that JSON cannot hold.

    >>> number(1234567.8), number(float("inf"))
    (1234570.0, None)
    """
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
