"""Configurations of a reproduction: to TOML and back, and everything that cannot be one."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import assert_names

from flowinv_fast.experiments.config import DATASETS, ReproduceConfig
from flowinv_fast.experiments.tasks import TASKS

ODD = "ab\"'\\#=[] \t\n\r\x7fé\N{BALLOON}"  # what a path may hold and TOML must escape


def some_file(folder: Path) -> str:
    path = folder / "".join(random.choices(ODD, k=12))
    path.touch()
    return str(path)


def random_config(folder: Path) -> ReproduceConfig:
    whole = lambda: random.randint(1, 10**6)
    test, tuning, digits, other = (some_file(folder) for _ in range(4))
    return ReproduceConfig(
        tuple(random.sample(list(TASKS), random.randint(1, len(TASKS)))),
        random.choice(list(DATASETS)),
        images=whole(),
        tuning_images=whole(),
        seed=random.randrange(2**31),
        steps=whole(),
        restarts=whole(),
        chunk=whole(),
        quick=random.random() < 0.5,
        test_file=test,
        tuning_file=tuning,
        digit_file=random.choice(["", digits]),
        other_file=other,
    )


def test_toml_out_and_in_is_the_same(tmp_path, seed):
    random.seed(seed)
    path = tmp_path / "config.toml"
    for config in (ReproduceConfig(images=24), *(random_config(tmp_path) for _ in range(30))):
        config.save(path)
        assert ReproduceConfig.load(path) == config
        assert ReproduceConfig.load(str(path)) == config


def test_by_hand(tmp_path):
    """A list for the tasks, comments, and defaults for all that is not there."""
    path = tmp_path / "own.toml"
    path.write_text('# mine\ntasks = ["ood", "digits"]\nimages = 3  # few\nquick = true\n')
    assert ReproduceConfig.load(path) == ReproduceConfig(("ood", "digits"), images=3, quick=True)
    assert ReproduceConfig(["ood"], images=3) == ReproduceConfig(("ood",), images=3)
    assert hash(ReproduceConfig(["ood"], images=3)) == hash(ReproduceConfig(("ood",), images=3))


@pytest.mark.parametrize(
    "text", [b"images = ", b"images", b"\xff\xfe", b"images = 3\nimages = 4", b'dataset = "a', None]
)
def test_no_toml(tmp_path, text):
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_bytes(text)
    assert_names("path", lambda: ReproduceConfig.load(path))
    assert_names("path", lambda: ReproduceConfig.load(tmp_path))


def test_unknown_keys_are_named(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("images = 3\nimage = 4\n[section]\nsteps = 3\n")
    message = assert_names("path", lambda: ReproduceConfig.load(path))
    assert "['image', 'section']" in message and "tuning_images" in message
    assert str(path) in message


BAD = {
    "tasks": ([], ["rain"], ["ood", "ood"], "ood", 3, [["ood"]], [1]),
    "dataset": ("celeba", ["mnist-28"], 28),
    "images": (0, 2.0, True, "3", 30, 33),
    "tuning_images": (0,),
    "steps": (-1,),
    "restarts": (0,),
    "chunk": (0,),
    "seed": (-1, 2**31, 0.5, True),
    "quick": (1, "no"),
    "test_file": ("none.npy",),
    "tuning_file": (3,),
    "digit_file": ("none",),
    "other_file": (True,),
}


@pytest.mark.parametrize("name, value", [(name, v) for name, bad in BAD.items() for v in bad])
def test_bad_values_are_named(tmp_path, name, value):
    """By hand in TOML, and as an argument."""
    good = {"images": 3}
    written = lambda v: repr(v).lower() if isinstance(v, bool) else repr(v)
    path = tmp_path / "own.toml"
    path.write_text("".join(f"{k} = {written(v)}\n" for k, v in {**good, name: value}.items()))
    assert_names(name, lambda: ReproduceConfig(**{**good, name: value}))
    message = assert_names("path", lambda: ReproduceConfig.load(path))
    assert str(path) in message and f": {name}: expected" in message


def test_test_and_tuning_files_come_together(tmp_path):
    file = some_file(tmp_path)
    ReproduceConfig(("digits",), images=100, test_file=file, tuning_file=file)
    assert_names("tuning_file", lambda: ReproduceConfig(images=3, test_file=file))
    assert_names("tuning_file", lambda: ReproduceConfig(images=3, tuning_file=file))


def test_shipped_images_are_32(tmp_path):
    file = some_file(tmp_path)
    files = {"test_file": file, "tuning_file": file}
    ReproduceConfig(images=24, tuning_images=8)
    assert_names("images", lambda: ReproduceConfig(images=24, tuning_images=9))
    assert_names("images", lambda: ReproduceConfig(images=100, **files))  # ood has no file
    ReproduceConfig(images=100, other_file=file, **files)
    ReproduceConfig(tuple(TASKS)[:-1], images=100, **files)  # all but ood


def test_short_form(tmp_path, seed):
    random.seed(seed)
    config = random_config(tmp_path)
    short = config.shortened()
    assert short.quick and short.steps == 60 and short.images == min(4, config.images)
    kept = ("tasks", "dataset", "seed")
    if not DATASETS[config.dataset].images:  # without shipped images its own files stay
        kept += ("test_file", "tuning_file")
    assert all(getattr(short, name) == getattr(config, name) for name in kept)
    files = {name for name in asdict(short) if name.endswith("_file")} - set(kept)
    assert len(files) >= 2 and not any(getattr(short, name) for name in files)
    assert replace(short, images=1).shortened().images == 1
