"""Templates: values, lines under conditions, holes that nothing fills."""

from __future__ import annotations

import pytest

from flowinv_fast._base.templates import filled


def test_values_and_conditions(tmp_path):
    path = tmp_path / "page"
    path.write_text("a $x\n{one}b ${y}c $$\n{two}d $none\n  {one} e\n{one}\n", "utf-8")
    assert filled(path, {"x": "$y", "y": 2, "more": 3}, {"one"}) == "a $y\nb 2c $\n  {one} e\n\n"
    assert filled(path, {"x": 1}) == "a 1\n  {one} e\n"
    with pytest.raises(KeyError, match="none"):
        filled(path, {"x": 1}, ["two"])
