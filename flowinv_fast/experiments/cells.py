"""Files of a run: what a cell is called, and how results and pictures are written and read.

FOLDER/config.toml      the configuration
FOLDER/results.json     all numbers; results.json.gz is read as well
FOLDER/cells/NAME.json  the numbers of one cell, and NAME.npz its pictures
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .._base.errors import ArgumentError
from .._base.files import whole_file

POSTERIOR = Path("cells") / "posterior.npz"  # pictures of the posterior draws
Arrays = dict[str, np.ndarray]
# Pictures by task, label of the setting, and name of the method.
Pictures = dict[tuple[str, str, str], Arrays]


def setting_title(task: str, label: str) -> str:
    """Task and label of a setting, for readers.

    >>> setting_title("cs-1bit", "m = 784"), setting_title("digits", "")
    ('cs-1bit, m = 784', 'digits')
    """
    return f"{task}, {label}" if label else task


def cell_name(title: str, method: str, value: float, part: str, first: int) -> str:
    """File name, without suffix, of a cell: setting, method, value, part, number of first image.

    >>> cell_name("cs-1bit, m = 784", "map", 0.5, "test", 0)
    'cs-1bit_m=784_map_0.5_test_0'
    """
    facts = [title, method, f"{value:g}", part, first]
    text = "_".join(str(fact).replace(" ", "").replace(",", "_") for fact in facts)
    return text.replace("/", "-")


def save_json(path: Path, value: object, indent: int | None = None) -> None:
    """Write a value whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n")


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays as .npz, whole or not at all."""
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Arrays:
    """What ``save_arrays`` wrote; {} where there is no such file."""
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def load_result(folder: str | os.PathLike) -> dict[str, Any]:
    """What results.json, or results.json.gz, of a run's folder holds.

    Raises:
        ArgumentError: neither is there, or it is not JSON.
    """
    plain = Path(folder) / "results.json"
    packed = Path(folder) / "results.json.gz"
    try:
        whole = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
        return json.loads(whole)
    except (OSError, ValueError) as error:
        wanted = "one with the results.json of a run"
        raise ArgumentError("report", "folder", wanted, str(error)) from None


def load_pictures(folder: str | os.PathLike, result: dict[str, Any]) -> Pictures:
    """Pictures of the first test images, as far as their cells are there."""
    found: Pictures = {}
    for row in result["rows"]:
        title = setting_title(row["task"], row["setting"])
        name = cell_name(title, row["method"], row["value"], "test", 0)
        arrays = load_arrays(Path(folder) / "cells" / f"{name}.npz")
        if arrays:
            found[row["task"], row["setting"], row["method"]] = arrays
    return found
