"""Calls of the compiled kernels: the values of a schema in the order of a kernel's struct."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._base import backend

Sizes = Callable[..., Sequence[int]]


def names_of(schema: str) -> tuple[list[str], list[str]]:
    """Names of a schema's arguments and results: "f(Tensor x, int n) -> (Tensor out)"."""
    arguments, results = schema[schema.index("(") :].split(" -> ")
    names = lambda text: re.findall(r"(\w+)(?=,|$)", text.strip("()"))
    return names(arguments), names(results)


def written_by(schema: str) -> set[str]:
    """Names of the arguments that an op writes: "f(Tensor(a!) x, int n) -> ()"."""
    return {name for name in names_of(schema)[0] if re.search(rf"!\) {name}\b", schema)}


def _no_sizes(*arguments: Any) -> tuple[int, ...]:
    return ()


class Kernel:
    """One compiled operation, called with the arguments and results of a schema.

    The parameters of a kernel are a struct in C++ (csrc/<family>/<op>.h) that lists its fields by
    name. Each is looked for, in this order, among the constants given here, the arguments and the
    results of the schema; a field that is none of these is a size, and ``sizes`` gives those in the
    order of the struct. A field that nobody gives is an error at import.

    Args:
        name: of the operation in the compiled module.
        schema: that of the op: "name(Tensor x, ...) -> (Tensor out, ...)", results named.
        sizes: called with the op's arguments, gives the sizes that no argument says. Where the
            kernel wants workspace for sums over an image, these are (batch, ...) and the sizes of
            an image.
        constants: fields that are the same at every call.
    """

    def __init__(self, name: str, schema: str, sizes: Sizes = _no_sizes, **constants: Any):
        self.name, self._sizes = name, sizes
        arguments, results = names_of(schema)
        self._constants = tuple(constants.values())
        self._written = written_by(schema)
        self._order: list[int] = []
        self._tensors: list[int] = []  # positions of the fields of each kind
        self._images: list[int] = []
        self._broadcast: list[int] = []
        self._partials: list[int] = []
        self._in_place: list[tuple[int, str]] = []
        if backend._C is not None:
            self._plan([*constants, *arguments, *results])

    def _plan(self, known: list[str]) -> None:
        """Where in (constants, arguments, results, sizes) the value of each field is found."""
        sizes = len(known)
        kinds: dict[str, list[int]] = {
            "value": [],
            "tensor": self._tensors,
            "images": self._images,
            "broadcast": self._broadcast,
            "partials": self._partials,
        }
        for position, (field, kind) in enumerate(backend._C.fields[self.name]):
            if kind == "partials":
                self._order.append(0)
            elif field in known:
                self._order.append(known.index(field))
            elif kind == "value":
                self._order.append(sizes)
                sizes += 1
            else:
                raise TypeError(f"{self.name}: the schema has no {field}, a {kind} of the kernel")
            kinds[kind].append(position)
            if field in self._written:
                self._in_place.append((position, field))

    def __call__(self, arguments: Sequence[Any], results: Sequence[Any]) -> None:
        """Run it on the arguments of the op.

        ``results`` are written, tensors or None where the kernel allows that, and so are the
        arguments that the schema says are.
        """
        sizes = self._sizes(*arguments)
        pool = (*self._constants, *arguments, *results, *sizes)
        values: list[Any] = [pool[i] for i in self._order]
        like = results[0] if results else arguments[0]
        for position, field in self._in_place:
            if not values[position].is_contiguous():
                raise ValueError(f"{self.name}: {field} is written and must be contiguous")
        kept: list[Tensor | None] = []  # alive until the kernel has run
        for i in self._tensors:
            tensor = values[i]
            if tensor is None:
                values[i] = (0, 0, 0)
            else:
                kept.append(tensor := tensor.contiguous())
                values[i] = (tensor.data_ptr(), tensor.numel(), backend.DTYPES[tensor.dtype])
        for i in self._images:
            kept.append(tensor := dense_images(values[i]))
            values[i] = _strided_images(tensor)
        for i in self._broadcast:
            tensor, strides = flat_strides(values[i], results[-1].shape)
            kept.append(tensor)
            values[i] = (*backend.arg(tensor), *strides)
        for i in self._partials:
            workspace = backend.partials(sizes[0], math.prod(sizes[1:]), like)
            kept.append(workspace)
            values[i] = backend.arg(workspace)
        getattr(backend._C, self.name)(*values, backend.execution(like))


def images(x: Tensor, *rest: Any) -> tuple[int, int]:
    """(batch, elements of an image) of the first argument: sizes of many kernels."""
    return x.shape[0], math.prod(x.shape[1:])


def elements(x: Tensor, *rest: Any) -> tuple[int]:
    """(elements,) of the first argument."""
    return (x.numel(),)


def dense_images(x: Tensor) -> Tensor:
    """x with any stride between images and dense images: a copy only where that fails."""
    dense = x[:1].is_contiguous() if x.shape[0] > 0 else True
    return x if dense and (x.shape[0] < 2 or x.stride(0) >= x[0].numel()) else x.contiguous()


def _strided_images(x: Tensor) -> tuple[int, int, int, int]:
    """Address, elements up to the last one reached, dtype, and elements from image to image."""
    batch, n = images(x)
    stride = max(x.stride(0), n)
    if batch == 0 or n == 0:
        return (0, 0, backend.DTYPES[x.dtype], stride)
    return (x.data_ptr(), (batch - 1) * stride + n, backend.DTYPES[x.dtype], stride)


def flat_strides(tensor: Tensor, shape: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
    """A tensor that broadcasts to shape [B, ...] as (tensor, (batch stride, element stride)).

    A scalar, one value an image, one map for all images and a full tensor are read in place;
    anything between (one value a row, say) is written out once for one image, or for all.
    """
    tensor = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    batch = tensor.shape[0] != 1
    if all(size == 1 for size in tensor.shape[1:]):
        return tensor.contiguous(), (int(batch), 0)
    full = tensor.expand((tensor.shape[0],) + tuple(shape[1:])).contiguous()
    return full, (full[:1].numel() if batch else 0, 1)
