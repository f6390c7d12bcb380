"""The cells of a run, and which of them are done: whole, and with the contents of this run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from .._base.errors import DataError, ResultWarning
from .cells import Outdated, cell_name, load_arrays, load_keyed
from .contents import Contents, Key
from .methods import Method
from .task import Setting


@dataclass(frozen=True)
class Cell:
    """A piece of work: these images of a setting by a method at a value."""

    setting: Setting
    method: Method
    value: float
    part: str  # "test" or "tuning"
    first: int
    last: int

    @property
    def name(self) -> str:
        """File name, without suffix."""
        return cell_name(self.setting.title, self.method.name, self.value, self.part, self.first)


class Store:
    """The cells in a folder.

    Args:
        folder: of the run.
        contents: what cells of this run depend on.
    """

    def __init__(self, folder: Path, contents: Contents):
        self.folder, self.contents = folder, contents

    def path(self, cell: Cell) -> Path:
        """Of its numbers; its pictures end in .npz."""
        return self.folder / "cells" / f"{cell.name}.json"

    def key(self, cell: Cell) -> Key:
        """What its numbers depend on."""
        prior, part = cell.method.prior, cell.part
        return self.contents.of_cell(cell.setting, prior, part, cell.first, cell.last)

    def kept(self, cell: Cell) -> list[dict] | None:
        """The rows of a cell that is done; None for one that is not.

        Raises:
            Outdated: of other contents than this run's, or damaged.
        """
        rows = load_keyed(self.path(cell), self.key(cell))
        if rows is None:
            return None
        whole = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        numbers = [row.get("image") for row in rows if "psnr" in row] if whole else []
        if numbers != list(range(cell.first, cell.last)):
            raise Outdated("damaged")
        if cell.part == "test" and cell.first == 0:
            try:
                if not load_arrays(self.path(cell).with_suffix(".npz")):
                    raise Outdated("without its pictures")
            except DataError as error:
                raise Outdated("damaged in its pictures") from error
        return rows

    def left(self, cells: list[Cell]) -> list[Cell]:
        """Those that are not done; tells of those that are done again."""
        left: list[Cell] = []
        again: dict[str, list[str]] = {}
        for cell in cells:
            try:
                if self.kept(cell) is not None:
                    continue
            except Outdated as error:
                again.setdefault(str(error), []).append(cell.name)
            left.append(cell)
        for reason, names in again.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            told = f"solved again, being {reason}: {', '.join(names[:3])}{more}"
            warnings.warn(f"cells of {self.folder} are {told}", ResultWarning, stacklevel=4)
        return left
