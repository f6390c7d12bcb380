"""Files of a run: what a cell is called, and how results and pictures are written and read.

FOLDER/config.toml      the configuration
FOLDER/results.json     all numbers; results.json.gz is read as well
FOLDER/cells/NAME.json  the numbers of one cell with the key of what they depend on, and NAME.npz
                        its pictures
"""

from __future__ import annotations

import gzip
import io
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._base.errors import ArgumentError, DataError, ResultWarning
from .._base.files import reading, whole_file
from .._base.identity import changes
from .._base.strict_json import to_json

POSTERIOR = Path("cells") / "posterior.npz"  # pictures of the posterior draws
_MOST_UNPACKED = 2**28  # bytes of a file that is read; the longest of the paper has a tenth
_PARTS = {"config": dict, "rows": list, "tuned": list, "posterior": dict, "bound": dict}
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
    """Write a value whole or not at all; numbers that are not finite become null."""
    with whole_file(path) as temporary:
        temporary.write_text(to_json(value, indent) + "\n", "utf-8")


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays as .npz, whole or not at all."""
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> Arrays:
    """What ``save_arrays`` wrote; {} where there is no such file.

    Raises:
        DataError: a file that is damaged, or unpacks to more than pictures take.
    """
    if not path.exists():
        return {}
    with reading("report", "folder", path):
        with zipfile.ZipFile(path) as packed:
            members = packed.infolist()
            size = sum(member.file_size for member in members)
            if size > _MOST_UNPACKED:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {_MOST_UNPACKED:,}")
            if any(member.compress_size > path.stat().st_size for member in members):
                raise ValueError("it is cut: an array of it is longer than the file")
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(set(names)) < len(names):
                raise ValueError("a name stands twice in it")
            # Read to the end, where the check sums are compared; numpy stops behind the numbers.
            return {name: _array(packed, m) for name, m in zip(names, members, strict=True)}


def _array(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    data = packed.read(member)
    if len(data) != member.file_size:
        raise ValueError(f"an array of it has {len(data):,} of {member.file_size:,} bytes")
    file = io.BytesIO(data)
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("an array of it goes on behind its numbers")
    return array


class Outdated(ValueError):
    """A stored result that is none for a run: of other contents, or damaged; told in words."""


def save_keyed(path: Path, key: Mapping[str, Any], value: object) -> None:
    """Write a value with the key of what it depends on, whole or not at all."""
    save_json(path, {"key": key, "value": value})


def load_keyed(path: Path, key: Mapping[str, Any]) -> Any:
    """The value that ``save_keyed`` wrote with this key; None where there is no such file.

    Raises:
        Outdated: of another key, which is told, or damaged.
    """
    if not path.exists():
        return None
    try:
        with reading("reproduce", "folder", path):
            found = json.loads(path.read_bytes())
            stored, value = found["key"], found["value"]
            changed = changes(stored, key)
    except DataError as error:
        raise Outdated("damaged") from error
    if changed:
        raise Outdated(f"of other contents: {', '.join(changed)}")
    return value


def load_result(folder: str | os.PathLike) -> dict[str, Any]:
    """What results.json, or results.json.gz, of a run's folder holds.

    Raises:
        ArgumentError: neither is there.
        DataError: a file that is damaged, holds no result, or unpacks to more than one takes.
    """
    plain = Path(folder) / "results.json"
    packed = Path(folder) / "results.json.gz"
    path = next((p for p in (plain, packed) if os.path.lexists(p)), None)
    wanted = "one with the results.json of a run"
    if path is None:
        raise ArgumentError("report", "folder", wanted, os.fspath(folder))
    with (
        reading("report", "folder", path),
        path.open("rb") if path == plain else gzip.open(path) as file,
    ):
        text = file.read(_MOST_UNPACKED + 1)
        if len(text) > _MOST_UNPACKED:
            raise ValueError(f"it unpacks to more than {_MOST_UNPACKED:,} bytes")
        found = json.loads(text)
        lacking = [name for name in _PARTS if not isinstance(found.get(name), _PARTS[name])]
        if lacking:
            raise ValueError(f"it is not the result of a run: it has no {lacking[0]}")
        return found


def load_pictures(folder: str | os.PathLike, result: dict[str, Any]) -> Pictures:
    """Pictures of the first test images, as far as their cells are there and whole."""
    found: Pictures = {}
    for row in result["rows"]:
        title = setting_title(row["task"], row["setting"])
        name = cell_name(title, row["method"], row["value"], "test", 0)
        try:
            arrays = load_arrays(Path(folder) / "cells" / f"{name}.npz")
        except DataError as error:
            warnings.warn(f"left out of the report: {error}", ResultWarning, stacklevel=3)
            continue
        if arrays:
            found[row["task"], row["setting"], row["method"]] = arrays
    return found
