"""Weights on disk: safetensors with the architecture and its provenance in the header.

A file of a stranger may claim anything. What it claims is compared with its size, and with the
names, shapes and dtypes that its configuration stands for, before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ArgumentError, did_you_mean, require
from .files import reading, user_folder, whole_file
from .strict_json import to_json

_KEY = "flowinv_fast"
_LONGEST_HEADER = 2**24  # bytes; the header of a flow of a thousand couplings has a tenth
_LONGEST_FACTS = 2**20  # characters of configuration and provenance in it
_FLOATS = {"F16", "BF16", "F32", "F64"}
_WHOLE = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}
_CALLS_A_TENSOR = 100  # of torch, that a network makes at most while it is built
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class WeightsFiles(Generic[Module]):
    """Files of one kind of module.

    Args:
        kind: format, named in every header.
        folder: where the shipped ones lie.
        saver, loader: names of the public functions, for messages.
        trained: name of the weights file in a folder of training.
    """

    kind: str
    folder: Path
    saver: str
    loader: str
    trained: str

    def save(
        self,
        module: Module,
        path: str | os.PathLike,
        header: dict[str, Any],
        stored: Callable[[str, Tensor], Tensor],
    ) -> None:
        """Write a module, whole or not at all.

        ``header`` holds what is needed to build it again, as plain values, and its ``info``;
        ``stored`` makes of (name, weight) what is kept.
        """
        tensors = {
            name: stored(name, weight).detach().cpu().contiguous()
            for name, weight in module.state_dict().items()
        }
        for name, tensor in tensors.items():
            got = f"{name}, which is not, kept as {tensor.dtype}"
            require(_finite(tensor), self.saver, "weights", "finite ones", got)
        text = to_json({"format": self.kind, **header})
        short = len(text) <= _LONGEST_FACTS
        wanted = f"at most {_LONGEST_FACTS:,} characters as JSON"
        require(short, self.saver, "info", wanted, f"{len(text):,}")
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={_KEY: text})

    def load(
        self,
        name_or_path: str | os.PathLike,
        make: Callable[[dict[str, Any]], Module],
        loaded: Callable[[Tensor], Tensor],
    ) -> Module:
        """A shipped or a user's own module by name, or that of a file; weights without gradients.

        ``make`` builds it from its header, ``loaded`` turns a stored weight into its own. Nothing
        is unpickled. A file that is missing, damaged or of another kind is a DataError.
        """
        path = self._find(name_or_path)
        with reading(self.loader, "name_or_path", path), open_tensors(path, _KEY) as (file, header):
            self._check(header)
            names = list(file.keys())
            with torch.device("meta"), _AtMost(_CALLS_A_TENSOR * (len(names) + 10)):
                wanted = make(header).state_dict()  # names, shapes and dtypes, without memory
            _require_same_tensors(wanted, file, names)
            tensors = {name: _checked(name, loaded(stored_tensor(file, name))) for name in names}
            with torch.device("cpu"):
                module = make(header)
            module.load_state_dict(tensors)
            module.info = header["info"]
        return module.eval().requires_grad_(False)

    def available(self) -> dict[str, dict[str, Any]]:
        """Names of the shipped ones, each with its provenance."""
        found = {}
        for path in self._shipped():
            with reading(self.loader, "name_or_path", path), open_tensors(path, _KEY) as (_, facts):
                self._check(facts)
                found[path.stem] = facts["info"]
        return found

    def _shipped(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _find(self, name_or_path: str | os.PathLike) -> Path:
        wanted = f"a file or one of: {', '.join(path.stem for path in self._shipped())}"
        named = isinstance(name_or_path, (str, os.PathLike))
        require(named, self.loader, "name_or_path", wanted, repr(name_or_path))
        places = [self.folder / f"{name_or_path}.safetensors"]
        with contextlib.suppress(ArgumentError):  # of a user without a home
            places.append(user_folder() / str(name_or_path) / self.trained)
        path = next((p for p in places if os.path.isfile(p)), Path(name_or_path))
        got = did_you_mean(name_or_path, [path.stem for path in self._shipped()])
        require(os.path.lexists(path), self.loader, "name_or_path", wanted, got)
        return path

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("format") != self.kind:
            raise ValueError(f"it is not of format {self.kind}, as {self.saver} writes it")
        if not isinstance(header["info"], dict):
            raise ValueError("its info is no JSON object")


@contextlib.contextmanager
def open_tensors(
    path: Path, key: str, longest: int = _LONGEST_FACTS
) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    """A safetensors file, of which nothing is in memory yet, and the facts in its header.

    Within ``reading``, which turns into one error whatever is wrong with the file.

    Args:
        path: the file.
        key: name in the header of a JSON object: numbers finite, names once.
        longest: characters that it may have.
    Returns:
        What safe_open gives, and the object.
    """
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
    if length > min(_LONGEST_HEADER, os.path.getsize(path) - 8):
        raise ValueError(
            f"it is not of safetensors: a header of {length:,} bytes (at most "
            f"{_LONGEST_HEADER:,}) in a file of {os.path.getsize(path):,}"
        )
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(key)
        if text is None or len(text) > longest:
            raise ValueError(f"its header has no {key} of at most {longest:,} characters")
        facts = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        if not isinstance(facts, dict):
            raise ValueError(f"{key} in its header is no JSON object")
        yield file, facts


def stored_tensor(file: safe_open, name: str) -> Tensor:
    """A tensor of a file; ValueError where its booleans are other bytes than 0 and 1."""
    tensor = file.get_tensor(name)
    if tensor.dtype is torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError(f"its tensor {name} has booleans that are none")
    return tensor


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} in its header")


class _AtMost(TorchFunctionMode):
    """Refuses a configuration of more layers than the file can have weights for."""

    def __init__(self, calls: int):
        super().__init__()
        self.left = calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            raise ValueError("its configuration is that of a network of more tensors than it has")
        return function(*args, **(kwargs or {}))


def _require_same_tensors(wanted: dict[str, Tensor], file: safe_open, names: list[str]) -> None:
    """ValueError that names the first tensor which is missing, too many, or other than wanted."""
    there = set(names)
    for name, tensor in wanted.items():
        if name not in there:
            raise ValueError(f"it has no tensor {name}")
        found = file.get_slice(name)
        shapes = tuple(found.get_shape()), tuple(tensor.shape)
        if shapes[0] != shapes[1]:
            raise ValueError(f"its tensor {name} is of shape {shapes[0]}, not {shapes[1]}")
        kinds = _FLOATS if tensor.is_floating_point() else {_WHOLE.get(tensor.dtype)}
        if found.get_dtype() not in kinds:
            raise ValueError(f"its tensor {name} is of {found.get_dtype()}, not {tensor.dtype}")
    for name in names:
        if name not in wanted:
            raise ValueError(f"its tensor {name} is unknown to the architecture")


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _checked(name: str, tensor: Tensor) -> Tensor:
    if not _finite(tensor):
        raise ValueError(f"its tensor {name} has values that are not finite in {tensor.dtype}")
    return tensor
