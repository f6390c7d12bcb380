"""Everything that fixes a reproduction: one frozen dataclass, as TOML on disk."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .._base.errors import ArgumentError, is_whole, require
from .._base.files import whole_file
from .datasets import DATASETS
from .tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

_FILES = ("test_file", "tuning_file", "digit_file", "other_file")


@dataclass(frozen=True)
class ReproduceConfig:
    """What is run; two runs of one configuration give the same table.

    Args:
        tasks: of TASKS.
        dataset: of DATASETS: which images, and the flow, DCGAN and VAE that are their priors.
        images: test images a task.
        tuning_images: images that hyperparameters are chosen on, outside the test set.
        seed: of noise, sensing matrices, starts.
        steps: of every gradient solve.
        restarts: of CSGM and MLE with a generator (the lowest error, or loss, is kept).
        chunk: images solved at once, and lost at most when a run is killed.
        quick: the short form of every sweep.
        test_file, tuning_file, digit_file, other_file: IDX or .npy files or folders of images;
            empty: shipped images. From test, digit and other file (images out of distribution)
            the paper's selection is taken; they hold 10,000 images, in colour 3,000. A folder of
            photo-64 holds photographs, of which 3,000 crops are drawn.
        flow: name or file of another flow as prior; empty: the data set's own.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    dataset: str = "fashion-28"
    images: int = 24
    tuning_images: int = 8
    seed: int = 0
    steps: int = 200
    restarts: int = 2
    chunk: int = 25
    quick: bool = False
    test_file: str = ""
    tuning_file: str = ""
    digit_file: str = ""
    other_file: str = ""
    flow: str = ""

    def __post_init__(self) -> None:
        names = isinstance(self.tasks, (tuple, list)) and all(t in tuple(TASKS) for t in self.tasks)
        once = names and len(self.tasks) == len(set(self.tasks)) > 0
        self._check("tasks", once, f"a list of names of {tuple(TASKS)}, each once")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        known = isinstance(self.dataset, str) and self.dataset in DATASETS
        self._check("dataset", known, f"one of {tuple(DATASETS)}")
        for name in ("images", "tuning_images", "steps", "restarts", "chunk"):
            self._check(name, is_whole(getattr(self, name), 1), "an integer of at least 1")
        small = is_whole(self.seed) and self.seed < 2**31
        self._check("seed", small, "an integer in 0 .. 2^31 - 1")
        self._check("quick", isinstance(self.quick, bool), "true or false")
        self._check("flow", isinstance(self.flow, str), "a name or a file")
        self._check_files()

    def _check(self, name: str, good: object, wanted: str) -> None:
        require(bool(good), "ReproduceConfig", name, wanted, getattr(self, name))

    def _check_files(self) -> None:
        for name in _FILES:
            value = getattr(self, name)
            good = isinstance(value, str) and (not value or Path(value).exists())
            self._check(name, good, "an existing file or folder, or nothing")
        there = DATASETS[self.dataset].images or self.test_file
        self._check("test_file", there, "a folder of faces (none are shipped)")
        both = bool(self.tuning_file) == bool(self.test_file)
        self._check("tuning_file", both, "a file with test_file, and only then")
        shipped = not self.test_file or "ood" in self.tasks and not self.other_file
        few = not shipped or self.images + self.tuning_images <= 32
        wanted = (
            "with tuning_images at most 32, the shipped ones, without test_file (and other_file "
            "for ood)"
        )
        self._check("images", few, wanted)

    def shortened(self) -> ReproduceConfig:
        """The quick form: few images and steps, short sweeps, shipped images if there are any."""
        shipped = bool(DATASETS[self.dataset].images)
        return replace(
            self,
            images=min(self.images, 4),
            tuning_images=2,
            steps=60,
            restarts=1,
            chunk=4,
            quick=True,
            test_file="" if shipped else self.test_file,
            tuning_file="" if shipped else self.tuning_file,
            digit_file="",
            other_file="",
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write as TOML."""
        lines = [f"{name} = {_toml(value)}" for name, value in asdict(self).items()]
        with whole_file(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> ReproduceConfig:
        """Read what ``save`` wrote, or what was written by hand.

        Raises:
            ArgumentError: no such file, not TOML, an unknown key, a value out of range.
        """
        try:
            found = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:  # not there; not TOML, or not UTF-8
            raise ArgumentError("ReproduceConfig", "path", "a TOML file", error) from None
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(found) - known)
        require(not unknown, "ReproduceConfig", "path", f"keys of {sorted(known)}", unknown)
        return cls(**found)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
