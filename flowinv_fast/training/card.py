"""Model cards: what a flow is and how it does on held-out images: facts, pictures, a page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .._base.backend import build_info
from .._base.errors import ArgumentError, is_whole, require
from .._base.files import whole_file
from ..data.images import (
    fit_images,
    image_grid,
    load_images,
    require_images,
    sample_images,
    save_png,
)
from ..data.sources import Crops
from ..flows import AffineCoupling, Flow
from ..flows.io import architecture_of
from ..metrics import interval
from .card_page import card_page
from .flow import pixels

TEMPERATURE, SAMPLES, SHOWN = 0.8, 64, 32
ROUND_TRIPS = 256
_BATCH = 64
_HELD_OUT = "held-out images"


def held_out_images(
    data: str | os.PathLike,
    shape: tuple[int, int, int],
    count: int = 10_000,
    seed: int = 0,
    crops: bool = False,
) -> Tensor:
    """Images for a card, drawn by ``seed``.

    Args:
        data: what ``load_images`` reads; with ``crops`` a folder of photographs.
        shape: (C, H, W) of the flow.
        count: how many; all of them where there are fewer.
        seed: below 2^40.
        crops: draw ``count`` random crops of the photographs.
    Returns:
        uint8 (N, C, H, W), N at most ``count``.
    Raises:
        ArgumentError: nothing readable there, images of another size, a bad count or seed.
    """
    require(is_whole(count, 1), "held_out_images", "count", "an integer of at least 1", count)
    _check_seed("held_out_images", seed)
    if crops:
        return Crops(data, shape).take(count, seed)
    images = load_images(data, shape)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:count]]


@torch.no_grad()
def write_card(
    flow: Flow,
    images: Tensor,
    out: str | os.PathLike,
    name: str,
    data: str = "",
    other: str = "",
    seed: int = 0,
    progress: bool | None = None,
) -> dict:
    """Measure a flow and leave its card in a folder.

    NAME.json           the facts
    NAME.md             the card: ``card_page`` of the facts
    NAME-samples.png    64 samples, below them 32 held-out images
    NAME-log_prob.png   bits/dim of every group of images; left out without matplotlib

    Args:
        flow: float32; its ``info`` is told as its training.
        images: uint8 (N, C, H, W), held out of training.
        out: the folder; created.
        name: of the card and its files.
        data: what the images are, in words.
        other: images of other data: shipped test images by name, or what ``load_images`` reads;
            resampled to the flow's size, at most N. "": fashion-28, for a flow of Fashion-MNIST
            mnist-28.
        seed: of dequantisation, samples, latents and noise images, below 2^40.
        progress: show a progress bar; None: only on a terminal.
    Returns:
        What NAME.json holds. log p in nats for pixels in [0, 1] units, round trips in these units;
        None where a number is not finite.
    Raises:
        ArgumentError: an argument that does not fit the flow, or that cannot be read.
    """
    require_images("write_card", "images", images, flow.shape)
    good = bool(name) and Path(name).name == name
    require(good, "write_card", "name", "a file name without folders", repr(name))
    _check_seed("write_card", seed)
    folder, device = Path(out), flow.device
    require(not folder.exists() or folder.is_dir(), "write_card", "out", "a folder", str(out))
    of_fashion = "fashion" in f"{name} {flow.info.get('data', '')}".lower()
    other = other or ("mnist-28" if of_fashion else "fashion-28")
    draws = torch.Generator().manual_seed(seed)
    groups = {
        _HELD_OUT: images,
        f"other images: {Path(other).name}": _other_images(other, flow.shape, len(images)),
        "uniform random pixels": torch.randint(0, 256, (256, *flow.shape), generator=draws),
        "constant grey": torch.arange(256)[:, None, None, None].expand(-1, *flow.shape),
    }
    log_probs = _log_probs(flow, groups, seed, progress)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _histogram(flow, log_probs, folder / f"{name}-log_prob.png")
    samples = flow.sample(SAMPLES, TEMPERATURE, torch.Generator(device).manual_seed(seed))
    shown = pixels(flow, images[:SHOWN])
    _pictures(samples, shown, folder / f"{name}-samples.png")
    bits = flow.bits_per_dim(log_probs[_HELD_OUT])
    facts = {
        "name": name,
        "architecture": {
            "name": architecture_of(flow.config),
            **flow.config.to_dict(),
            "parameters": sum(p.numel() for p in flow.parameters()),
            "couplings": sum(isinstance(layer, AffineCoupling) for layer in flow.layers),
        },
        "training": flow.info,
        "held_out": {
            "data": data,
            "images": len(images),
            "finite": int(bits.isfinite().sum()),
            "bits_per_dim": _number(bits.mean()),
            "interval": _number(interval(bits.numpy())),
        },
        "groups": _table(flow, log_probs),
        "round_trip": _round_trip(flow, images[:ROUND_TRIPS], draws, seed),
        "pictures": {
            "samples": SAMPLES, "temperature": TEMPERATURE, "held_out": len(shown),
            "histogram": drawn,
        },
        "conditions": {
            "version": build_info().get("version", ""),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "seed": seed,
        },
    }  # fmt: skip
    text = json.dumps(facts, indent=1) + "\n"
    facts = json.loads(text)
    for suffix, content in ((".json", text), (".md", card_page(facts))):
        with whole_file(folder / f"{name}{suffix}") as temporary:
            temporary.write_text(content)
    return facts


# --- pieces ---------------------------------------------------------------------------------------


def _check_seed(function: str, seed: int) -> None:
    good = is_whole(seed) and seed < 2**40
    require(good, function, "seed", "an integer in 0 .. 2^40 - 1", seed)


def _dequantised(flow: Flow, images: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of uint8 images with the noise of training."""
    blocks = math.ceil(math.prod(flow.shape) / 4)  # of the Philox stream, to an image
    for start in range(0, len(images), _BATCH):
        x = pixels(flow, images[start : start + _BATCH])
        yield flow.dequantise(x, seed, start * blocks)


def _log_probs(
    flow: Flow, groups: dict[str, Tensor], seed: int, progress: bool | None
) -> dict[str, Tensor]:
    """log p of every image of every group, float64 on the CPU."""
    frozen, found = flow.freeze(), {}
    disable = None if progress is None else not progress
    with tqdm(total=sum(map(len, groups.values())), desc="log p", disable=disable) as bar:
        for group, images in groups.items():
            parts = []
            for x in _dequantised(flow, images.to(torch.uint8), seed):
                parts.append(frozen.log_prob(x).double().cpu())
                bar.update(len(x))
            found[group] = torch.cat(parts)
    return found


def _other_images(other: str, shape: tuple[int, int, int], count: int) -> Tensor:
    """Shipped or a user's images, uint8 of this shape: resampled, grey or colour as wanted."""
    try:
        x = 255 * sample_images(other, count)
    except ArgumentError as error:  # no such name
        path = Path(other)
        require(path.exists(), "write_card", "other", "a file, a folder or a name", error)
        x = load_images(path, shape if path.is_dir() else None)[:count].float()
    x = fit_images(x, shape)
    return x.round().clamp(0, 255).to(torch.uint8)


def _table(flow: Flow, log_probs: dict[str, Tensor]) -> list[dict]:
    """A row to each group of images: medians and quantiles, and how many beat the held-out ones."""
    median = log_probs[_HELD_OUT].median()
    quantiles = lambda found: np.quantile(flow.bits_per_dim(found), (0.05, 0.5, 0.95))
    return [
        {
            "group": group,
            "images": len(found),
            "finite": int(found.isfinite().sum()),
            "log_prob": _number(np.median(found)),
            "bits_per_dim": [_number(b) for b in quantiles(found)],
            "likelier": _number((found > median).double().mean()),
        }
        for group, found in log_probs.items()
    ]


def _round_trip(flow: Flow, images: Tensor, draws: torch.Generator, seed: int) -> dict:
    """Largest errors of decode(encode(x)), and of encode(decode(z)) over the largest abs(z)."""
    errors = [
        (flow.decode(flow.encode(x)[0])[0] - x).abs().max()
        for x in _dequantised(flow, images, seed)
    ]
    z = torch.randn(64, math.prod(flow.shape), generator=draws).to(flow.device, flow.dtype)
    latent = (flow.encode(flow.decode(z)[0])[0] - z).abs().amax(1) / z.abs().amax(1)
    finite = latent.isfinite()
    return {
        "images": len(images),
        "pixels": _number(torch.stack(errors).max()),
        "latents": len(z),
        "latents_finite": int(finite.sum()),
        "latent": _number(latent[finite].max() if finite.any() else math.nan),
        "latent_median": _number(latent.nan_to_num(math.inf).median()),
    }


def _pictures(samples: Tensor, held_out: Tensor, path: Path) -> None:
    """Samples above held-out images, white between."""
    grids = [image_grid(x.cpu(), 16) for x in (samples, held_out)]
    white = grids[0].new_ones(len(grids[0]), 8, grids[0].shape[2])
    save_png(torch.cat([grids[0], white, grids[1]], 1), path, max(1, round(60 / held_out.shape[3])))


def _histogram(flow: Flow, log_probs: dict[str, Tensor], path: Path) -> bool:
    """bits/dim of every group, a row each, as a PNG; False, and no file, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    bits = {group: flow.bits_per_dim(found[found.isfinite()]) for group, found in log_probs.items()}
    every = torch.cat(list(bits.values()))
    every = every if len(every) else torch.tensor([0.0, 1.0])
    median = bits[_HELD_OUT].median()
    unit, most = max(1.0, abs(median.item())), every.abs().max()
    wide = bool(most > 20 * unit)  # then linear up to the held-out images, logarithmic beyond
    low, high = ((every / unit).asinh() if wide else every).aminmax()
    margin = max(0.02 * (high - low).item(), 1e-3)
    places = torch.linspace(low - margin, high + margin, 101)
    edges = (unit * places.sinh() if wide else places).tolist()
    figure, rows = plt.subplots(
        len(bits), 1, sharex=True, figsize=(8, 1.3 * len(bits) + 0.8), layout="constrained"
    )
    for i, (axis, (group, found)) in enumerate(zip(rows, bits.items())):
        axis.hist(
            found, edges, weights=torch.full_like(found, 100 / len(log_probs[group])), color=f"C{i}"
        )
        axis.axvline(median.item(), color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{group} ({len(log_probs[group]):,})", loc="left", fontsize=9)
        axis.set_ylabel("images, %", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    if wide:
        axis.set_xscale("asinh", linear_width=unit)
        decades = [10.0**k for k in range(1 + math.floor(math.log10(most)))]
        ticks = [n * d for d in decades for n in ((1, 2, 5) if len(decades) < 6 else (1,))]
        axis.xaxis.set_major_locator(FixedLocator([*(-t for t in ticks), 0, *ticks]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlim(edges[0], edges[-1])
    axis.set_xlabel(
        f"bits/dim, -log2 p on the scale of {2**flow.config.bits} grey levels (left: likelier); "
        "dotted: median of held-out images"
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True


def _number(value: float | Tensor) -> float | None:
    """Six digits of a number, or None for one that JSON cannot hold."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
