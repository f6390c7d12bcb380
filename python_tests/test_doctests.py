"""Examples in docstrings: every one is run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import flowinv_fast as ff
from flowinv_fast import baselines, data, flows, generators, noise, operators, ops

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ff.__path__, "flowinv_fast.")
    if not module.name.endswith("._C")
)
PUBLIC = sorted(
    {
        f"{part.__name__}.{name}": getattr(part, name)
        for part in (ff, baselines, data, flows, generators, noise, operators, ops)
        for name in part.__all__
        if callable(getattr(part, name))
    }.items()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize("value", [v for _, v in PUBLIC], ids=[k for k, _ in PUBLIC])
def test_public_name_is_documented(value):
    """What it is, and one example; an error or an enumeration explains itself."""
    text = inspect.getdoc(value) or ""
    assert len(text) > 20
    explains_itself = isinstance(value, type) and issubclass(value, (Exception, ff.Status))
    assert explains_itself or ">>>" in text
