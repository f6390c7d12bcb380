"""Parameters of noise models and operators: checked, copied, fixed, and cut to the images at hand.

A parameter is a number, or a tensor that broadcasts to a batch (B, ...) from the right, as torch
does: (W,) is a value a column and (C, 1, 1) one a channel, whatever B is. Only a tensor with as
many dimensions as the batch can have a row per image: (B, 1, 1, 1) for images, (B, 1) for vectors.
How many dimensions a batch has is known when it comes, so the rows of some images are cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentError, require

# --- at construction ------------------------------------------------------------------------------


class Fixed:
    """An object whose attributes named in ``fixed`` are set once.

    What was checked, and what was computed from it, then stays true.
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed and hasattr(self, name):
            kind = type(self).__name__
            raise AttributeError(f"{kind}.{name} is fixed: make a new {kind} with another {name}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.fixed:
            raise AttributeError(f"{type(self).__name__}.{name} is fixed: it cannot be deleted")
        super().__delattr__(name)


def numbers(
    function: str,
    argument: str,
    value: Any,
    *,
    positive: bool = False,
    booleans: bool = False,
    scalar: bool = False,
) -> float | Tensor:
    """Finite numbers as the owner keeps them: a float, or a floating-point copy.

    Args:
        function, argument: named in errors.
        value: a number, or a tensor, an array or nested sequences of numbers. Integers, and what
            is no tensor, become float64; gradients are not followed.
        positive: whether every number has to be.
        booleans: whether True and False are taken, as 1 and 0.
        scalar: whether one number is wanted.
    Raises:
        ArgumentError: anything else, empty ones, NaN and infinity.

    >>> numbers("f", "x", [1, 2])
    tensor([1., 2.], dtype=torch.float64)
    """
    kind = "positive finite" if positive else "finite"
    wanted = f"a {kind} number" if scalar else f"{kind} numbers, at least one"
    tensor = _copied(value)
    good = tensor is not None and tensor.numel() > 0 and not (scalar and tensor.dim() > 0)
    if tensor is None or not good or (tensor.dtype is torch.bool and not booleans):
        raise ArgumentError(function, argument, wanted, _told(value))
    tensor = tensor if tensor.is_floating_point() else tensor.double()
    least, most = (float(bound) for bound in tensor.aminmax())
    good = np.isfinite(least) and np.isfinite(most) and (least > 0 or not positive)
    require(bool(good), function, argument, wanted, _told(value))
    return tensor.item() if tensor.dim() == 0 else tensor


def number(function: str, argument: str, value: Any, *, positive: bool = False) -> float:
    """One finite number."""
    return float(numbers(function, argument, value, positive=positive, scalar=True))


def indices(function: str, argument: str, value: Any, wanted: str) -> Tensor:
    """Integers of at least 0, at least one, as an int64 copy."""
    tensor = _copied(value)
    good = tensor is not None and tensor.numel() > 0 and tensor.dtype is not torch.bool
    good = good and not (tensor.is_floating_point() or tensor.is_complex())  # type: ignore
    if tensor is None or not good or bool((tensor < 0).any()):
        raise ArgumentError(function, argument, wanted, _told(value))
    return tensor.long()


def _copied(value: Any) -> Tensor | None:
    """A copy that nobody else holds, no inference tensor, of a plain type; None: no numbers."""
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(value, Tensor):
            usable = value.layout is torch.strided and value.device.type != "meta"
            usable = usable and not value.is_quantized and not value.is_complex()
            plain = torch.Tensor.as_subclass(value.detach(), Tensor)
            return plain.resolve_neg().clone() if usable else None
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            if "allocate memory" in str(error):
                raise
            return None  # ragged, or a tensor of another device in it
        if array.dtype.kind not in "biuf":
            return None
        if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
            return None
        array = array.astype(bool if array.dtype.kind == "b" else _WIDE[array.dtype.kind])
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


_WIDE = {"i": np.int64, "u": np.int64, "f": np.float64}


def _told(value: Any) -> str:
    """A value, in an error."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0:
        return f"{value.dtype} of shape {tuple(value.shape)} with other values, or none"
    return repr(value)[:80]


# --- at a call ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Some images of a batch, by their numbers."""

    images: range
    batch: int

    @classmethod
    def of(cls, function: str, before: Rows | None, part: slice, shape: Sequence[int]) -> Rows:
        """A part of a batch of this shape, which itself may be a part of another one.

        Raises:
            ArgumentError: a shape of another number of images than that part has.
        """
        if before is None:
            return cls(range(shape[0])[part], shape[0])
        count = len(before.images)
        require(shape[0] == count, function, "shape", f"({count}, ...)", tuple(shape))
        return cls(before.images[part], before.batch)

    def numbers(self, device: torch.device) -> Tensor:
        """The numbers of these images, int64."""
        return torch.tensor(list(self.images), dtype=torch.int64, device=device)

    def cut(self, value: Tensor) -> Tensor:
        """The rows of these images."""
        images = self.images
        return value[images.start : images.stop : images.step]


def has_rows(
    function: str, argument: str, own: Sequence[int], shape: Sequence[int], rows: Rows | None
) -> bool:
    """Whether a parameter of shape ``own`` has a row for every image of a batch (B, ...).

    Args:
        function, argument: named in errors.
        own: shape of the parameter.
        shape: of the batch, whose images may be ``rows`` of a larger one.
    Raises:
        ArgumentError: a parameter that does not broadcast to the batch, or has rows for another
            number of images.
    """
    batch = shape[0] if rows is None else rows.batch
    per_image = len(own) == len(shape) and own[0] != 1
    wanted = (batch, *shape[1:])
    good = len(own) <= len(shape) and (rows is None or len(rows.images) == shape[0])
    good = good and (not per_image or own[0] == batch)
    good = good and all(a in (1, b) for a, b in zip(reversed(own), reversed(wanted), strict=False))
    if not good:
        each = ", ".join([str(batch), *["1"] * (len(shape) - 1)])
        part = "" if rows is None else f" (images {rows.images} of {rows.batch})"
        expected = (
            f"a shape that broadcasts to {tuple(shape)}{part} from the right; one value per image "
            f"has shape ({each})"
        )
        raise ArgumentError(function, argument, expected, tuple(own))
    return per_image


def fitted(
    function: str, argument: str, value: Tensor, shape: Sequence[int], rows: Rows | None
) -> Tensor:
    """A parameter for a batch of this shape, cut to ``rows``; refused as by ``has_rows``."""
    per_image = has_rows(function, argument, value.shape, shape, rows)
    return rows.cut(value) if per_image and rows is not None else value
