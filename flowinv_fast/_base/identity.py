"""What something is by its content, so that another one of the same name or size is seen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DIGEST = re.compile("[0-9a-f]{64}")


def digest(value: Any) -> str:
    """The SHA-256 of tensors and plain values, the same in every process and on every device.

    Args:
        value: a tensor, or lists and mappings of tensors and of what JSON has.

    >>> digest(torch.zeros(2))[:8], digest(torch.zeros(1, 2))[:8]
    ('dd932a1a', '763cfca8')
    """
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        whole = value.detach().cpu().contiguous()
        found.update(whole.flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)}\n".encode())
        for key, each in value.items():
            _add(found, str(key))
            _add(found, each)
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)}\n".encode())
        for each in value:
            _add(found, each)
    else:
        text = json.dumps(value, default=repr)
        found.update(f"value {len(text)} {text}\n".encode())


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions of the same kind, by its names.

    >>> changes({"lr": 0.1, "data": {"images": 3}}, {"lr": 0.2, "data": {"images": 4}})
    ['lr (0.1, now 0.2)', 'data images (3, now 4)']
    >>> changes({"data": digest(1)}, {"data": digest(2)})
    ['data (other contents)']
    """
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name} {change}" for change in changes(old, new)]
        elif old != new:
            by_content = all(_DIGEST.fullmatch(str(value)) for value in (old, new))
            found.append(f"{name} (other contents)" if by_content else f"{name} ({old}, now {new})")
    return found
