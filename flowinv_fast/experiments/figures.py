"""Pictures of a report: curves over a sweep, and panels of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .._base.files import whole_file
from ..data import image_grid, to_picture
from ..metrics import interval
from .cells import Arrays
from .methods import MAP_METHOD, USUAL

_LABELS = 190  # pixels left of the images of a panel
_WEIGHT = "weight over its default ({})".format(
    ", ".join(f"{name} = {value:g}" for name, value in USUAL.items())
)


def psnrs(row: dict[str, Any]) -> np.ndarray:
    """PSNR of every image of a row of results.json, in their order; NaN where there is none."""
    return np.array([image["psnr"] for image in row["images"]], dtype=float)


def curves(rows: list[dict[str, Any]], axis: str, path: Path) -> bool:
    """PSNR of every method over an axis as a PNG; False, and no file, without matplotlib.

    Args:
        rows: of results.json, of one task.
        axis: a name in the rows' "at"; "" is the weight of each method over its default.
        path: of the PNG.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    rows = [row for row in rows if axis in row["at"] or not axis]
    for method in dict.fromkeys(row["method"] for row in rows):
        _curve(axes, [row for row in rows if row["method"] == method], axis)
    if axis != "c":
        axes.set_xscale("log")
        ticks = sorted({_at(row, axis) for row in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(axis or _WEIGHT)
    axes.set_ylabel("PSNR, dB")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True


def _at(row: dict[str, Any], axis: str) -> float:
    return row["at"][axis] if axis else row["value"] / USUAL[row["parameter"]]


def _curve(axes: Any, rows: list[dict[str, Any]], axis: str) -> None:
    """One method, its intervals as error bars; nothing where it has one point only."""
    if len(rows) == 1:
        return
    rows = sorted(rows, key=lambda row: _at(row, axis))
    found = [psnrs(row) for row in rows]
    axes.errorbar(
        [_at(row, axis) for row in rows],
        [values.mean() for values in found],
        [interval(values) for values in found],
        label=rows[0]["title"] + ("" if axis else f", {rows[0]['parameter']}"),
        capsize=3,
        linewidth=2.5 if rows[0]["method"] == MAP_METHOD else 1.2,
        marker="o",
        markersize=4,
    )


def panel(titles: dict[str, str], pictures: dict[str, Arrays], path: Path) -> None:
    """A row per method, truth and measurement first, columns the first test images.

    Args:
        titles: of the methods, by name.
        pictures: of each method, as cells keep them: uint8 "x", "truth" and "y".
        path: of the PNG.
    """
    any_one = next(iter(pictures.values()))
    rows = [("truth", any_one["truth"]), ("measurement", any_one["y"])]
    rows += [(titles[name], arrays["x"]) for name, arrays in pictures.items() if name != "noisy"]
    strips([(label, images / 255) for label, images in rows], path)


def strips(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Labelled rows of images (N, C, H, W) in [0, 1], as a PNG."""
    tiles = []
    for label, images in rows:
        grid = image_grid(torch.from_numpy(np.asarray(images, np.float32)), len(images))
        tiles.append((label, to_picture(grid, max(1, 64 // images.shape[-1]))))
    width, height = tiles[0][1].size
    whole = Image.new("RGB", (width + _LABELS, len(tiles) * (height + 4)), "white")
    pen = ImageDraw.Draw(whole)
    for i, (label, tile) in enumerate(tiles):
        top = i * (height + 4)
        pen.text((6, top + height // 2 - 6), label, "black")
        whole.paste(tile, (_LABELS, top))
    with whole_file(path) as temporary:
        whole.save(temporary, "PNG")
