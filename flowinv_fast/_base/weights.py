"""Weights on disk: safetensors with the architecture and its provenance in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import ArgumentError, require
from .files import user_folder, whole_file

_KEY = "flowinv_fast"
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
        text = json.dumps({"format": self.kind, **header})
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
        is unpickled. A file that is missing, damaged or of another kind is an ArgumentError.
        """
        path = self._find(name_or_path)
        try:
            with safe_open(path, framework="pt") as file:
                header = self._header(file)
                tensors = {key: loaded(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            module = make(header)
            _require_same_tensors(module.state_dict(), tensors)
            module.load_state_dict(tensors)
            module.info = header["info"]
        except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            raise ArgumentError(
                self.loader, "name_or_path", f"a whole file of {self.saver}", f"{path}: {error}"
            ) from None
        return module.eval().requires_grad_(False)

    def available(self) -> dict[str, dict[str, Any]]:
        """Names of the shipped ones, each with its provenance."""
        found = {}
        for path in self._shipped():
            with safe_open(path, framework="pt") as file:
                found[path.stem] = self._header(file)["info"]
        return found

    def _shipped(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _find(self, name_or_path: str | os.PathLike) -> Path:
        shipped = self.folder / f"{name_or_path}.safetensors"
        trained = user_folder() / str(name_or_path) / self.trained
        path = next((p for p in (shipped, trained) if p.is_file()), Path(name_or_path))
        wanted = f"a file or one of: {', '.join(path.stem for path in self._shipped())}"
        require(path.is_file(), self.loader, "name_or_path", wanted, str(name_or_path))
        return path

    def _header(self, file: safe_open) -> dict[str, Any]:
        header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        if not isinstance(header, dict) or header.get("format") != self.kind:
            raise ValueError(f"not of format {self.kind}")
        return header


def _require_same_tensors(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """ValueError that names the first tensor which is missing, too many or of another shape."""
    for name, tensor in wanted.items():
        if name not in found:
            raise ValueError(f"it has no tensor {name}")
        shapes = tuple(found[name].shape), tuple(tensor.shape)
        if shapes[0] != shapes[1]:
            raise ValueError(f"its tensor {name} is of shape {shapes[0]}, not {shapes[1]}")
    for name in found:
        if name not in wanted:
            raise ValueError(f"its tensor {name} is unknown to the architecture")
