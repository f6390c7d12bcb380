"""JSON as the standard has it: no NaN, no Infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON; a number that is not finite becomes null, which JSON has for what is not.

    Args:
        value: what ``json.dumps`` takes.
        indent: as there.

    >>> to_json({"psnr": [26.5, float("nan"), float("inf")]})
    '{"psnr": [26.5, null, null]}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
