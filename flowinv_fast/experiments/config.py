"""Everything that fixes a reproduction: one frozen dataclass, as TOML on disk."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .._base.errors import did_you_mean, is_whole, require
from .._base.files import reading, whole_file
from .datasets import DATASETS
from .tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]

_LONGEST = 2**20  # bytes of a file
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
        wanted = f"a list of names of {tuple(TASKS)}, each once"
        unknown = (
            [t for t in self.tasks if t not in tuple(TASKS)]
            if isinstance(self.tasks, tuple)
            else []
        )
        got = did_you_mean(unknown[0], TASKS) if unknown else self.tasks
        require(once, "ReproduceConfig", "tasks", wanted, got)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        known = isinstance(self.dataset, str) and self.dataset in DATASETS
        got = did_you_mean(self.dataset, DATASETS)
        require(known, "ReproduceConfig", "dataset", f"one of {tuple(DATASETS)}", got)
        for name in ("images", "tuning_images", "steps", "restarts", "chunk"):
            self._check(name, is_whole(getattr(self, name), 1), "an integer of at least 1")
        small = is_whole(self.seed) and self.seed < 2**31
        self._check("seed", small, "an integer in 0 .. 2^31 - 1")
        self._check("quick", isinstance(self.quick, bool), "true or false")
        self._check("flow", _is_text(self.flow), "a name or a file, of whole UTF-8 characters")
        self._check_files()

    def _check(self, name: str, good: object, wanted: str) -> None:
        require(bool(good), "ReproduceConfig", name, wanted, getattr(self, name))

    def _check_files(self) -> None:
        for name in _FILES:
            value = getattr(self, name)
            good = _is_text(value) and (not value or Path(value).exists())
            wanted = "an existing file or folder of whole UTF-8 characters, or nothing"
            self._check(name, good, wanted)
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
            DataError: no such file, no TOML, an unknown key, a value out of range; the message
                names the file and the key.
        """
        with reading("ReproduceConfig", "path", path) as file:
            if file.stat().st_size > _LONGEST:
                raise ValueError(f"it is no configuration: it has more than {_LONGEST:,} bytes")
            found = tomllib.loads(file.read_text("utf-8"))
            known = {f.name for f in fields(cls)}
            unknown = sorted(set(found) - known)
            if unknown:
                raise ValueError(
                    f"it has the keys {unknown}, and may have those of {sorted(known)}"
                )
            return cls(**found)


def _is_text(value: object) -> bool:
    """Whether TOML can hold it: names of files may hold bytes that are no UTF-8."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
