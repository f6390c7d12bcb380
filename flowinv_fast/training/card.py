"""Model cards: what a flow is and how it does on held-out images: facts, pictures, a page."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.files import made_folder, whole_file
from .._base.strict_json import to_json
from .._base.tensors import DATA_SEEDS, check_seed
from ..data.images import image_grid, require_images, save_png
from ..flows.flow import Flow
from . import measure
from .card_page import card_page
from .flow import FlowTrainer, pixels

TEMPERATURE, SAMPLES, SHOWN = 0.8, 64, 32


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
    _check(flow, images, out, name, seed)
    of_fashion = "fashion" in f"{name} {flow.info.get('data', '')}".lower()
    other = other or ("mnist-28" if of_fashion else "fashion-28")
    draws, folder = torch.Generator().manual_seed(seed), Path(out)
    groups = measure.image_groups(flow.shape, images, other, draws)
    found = measure.log_probs(flow, groups, seed, progress)
    made_folder(folder)
    facts = {
        "name": name,
        "architecture": measure.architecture(flow),
        "training": flow.info,
        "held_out": measure.held_out_facts(flow, found[measure.HELD_OUT], data),
        "levels": measure.level_facts(flow, images, seed, progress),
        "groups": measure.group_table(flow, found),
        "round_trip": measure.round_trip(flow, images, draws, seed),
        "pictures": _write_pictures(flow, images, found, folder, name, seed),
        "conditions": measure.conditions(flow.device, seed),
    }
    return _write_pages(facts, folder, name)


def card_name(flow: str | os.PathLike[str]) -> str:
    """What a flow's card is called: its name or file's, or its folder's after a training.

    >>> card_name("runs/digits/flow.safetensors"), card_name("mnist-28")
    ('digits', 'mnist-28')
    """
    path = Path(flow)
    if path.name == FlowTrainer.weights_file:  # what training calls it: the folder tells more
        path = path.resolve().parent
    return path.name.removesuffix(".safetensors")


def data_in_words(data: str | os.PathLike[str], crops: bool, patches: bool = False) -> str:
    """What held-out images are: the last two parts of their path, and whether they are crops."""
    source = "/".join(Path(data).resolve().parts[-2:])
    if patches:
        return f"random patches of the pictures of {source}, not resized"
    return f"random crops of the pictures of {source}" if crops else source


# --- pieces ---------------------------------------------------------------------------------------


def _check(flow: Flow, images: Tensor, out: str | os.PathLike[str], name: str, seed: int) -> None:
    require_images("write_card", "images", images, flow.shape)
    good = bool(name) and Path(name).name == name
    require(good, "write_card", "name", "a file name without folders", repr(name))
    check_seed("write_card", seed, seeds=DATA_SEEDS)
    good = not Path(out).exists() or Path(out).is_dir()
    require(good, "write_card", "out", "a folder", str(out))


def _write_pages(facts: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """NAME.json and the page of what it holds, which is returned."""
    text = to_json(facts, 1) + "\n"
    facts = json.loads(text)
    for suffix, content in ((".json", text), (".md", card_page(facts))):
        with whole_file(folder / f"{name}{suffix}") as temporary:
            temporary.write_text(content, "utf-8", "backslashreplace")
    return facts


def _write_pictures(
    flow: Flow,
    images: Tensor,
    log_probs: dict[str, Tensor],
    folder: Path,
    name: str,
    seed: int,
) -> dict[str, Any]:
    """NAME-log_prob.png and NAME-samples.png; returns what they show."""
    histogram = _histogram(flow, log_probs, folder / f"{name}-log_prob.png")
    samples = flow.sample(SAMPLES, TEMPERATURE, torch.Generator(flow.device).manual_seed(seed))
    shown = pixels(flow, images[:SHOWN])
    _pictures(samples, shown, folder / f"{name}-samples.png")
    return {
        "samples": SAMPLES,
        "temperature": TEMPERATURE,
        "held_out": len(shown),
        "histogram": histogram,
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

    bits = {group: flow.bits_per_dim(found[found.isfinite()]) for group, found in log_probs.items()}
    median = bits[measure.HELD_OUT].median()
    unit = max(1.0, abs(median.item()))
    edges, most, wide = _bins(torch.cat(list(bits.values())), unit)
    figure, rows = plt.subplots(
        len(bits), 1, sharex=True, figsize=(8, 1.3 * len(bits) + 0.8), layout="constrained"
    )
    for i, (axis, (group, found)) in enumerate(zip(rows, bits.items())):
        weights = torch.full_like(found, 100 / len(log_probs[group]))
        axis.hist(found, edges, weights=weights, color=f"C{i}")
        axis.axvline(median.item(), color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{group} ({len(log_probs[group]):,})", loc="left", fontsize=9)
        axis.set_ylabel("images, %", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    last = rows[-1]
    if wide:
        _asinh_scale(last, unit, most)
    last.set_xlim(edges[0], edges[-1])
    last.set_xlabel(
        f"bits/dim, -log2 p on the scale of {2**flow.config.bits} grey levels (left: likelier); "
        "dotted: median of held-out images"
    )
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True


def _bins(every: Tensor, unit: float) -> tuple[list[float], float, bool]:
    """Edges of the bins, the largest value, and whether the axis is logarithmic beyond ``unit``."""
    every = every if len(every) else torch.tensor([0.0, 1.0])
    most = every.abs().max()
    wide = bool(most > 20 * unit)  # then linear up to the held-out images, logarithmic beyond
    low, high = ((every / unit).asinh() if wide else every).aminmax()
    margin = max(0.02 * (high - low).item(), 1e-3)
    edges = torch.linspace((low - margin).item(), (high + margin).item(), 101)
    return (unit * edges.sinh() if wide else edges).tolist(), most.item(), wide


def _asinh_scale(axis: Any, unit: float, most: float) -> None:
    """Ticks at powers of ten, and between them where there are few, both ways from 0."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    axis.set_xscale("asinh", linear_width=unit)
    decades = [10.0**k for k in range(1 + math.floor(math.log10(most)))]
    ticks = [n * d for d in decades for n in ((1, 2, 5) if len(decades) < 6 else (1,))]
    axis.xaxis.set_major_locator(FixedLocator([*(-t for t in ticks), 0, *ticks]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
