"""One way to make an operation: schema, implementation, fake, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError

_library = torch.library.Library("flowinv_fast", "FRAGMENT")


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    vmap: Callable | None = None,
) -> Callable:
    """Define ``flowinv_fast::NAME`` and return its overload packet's default overload.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        implementation: called with real tensors on CPU or CUDA, gradients off.
        fake: same outputs as empty tensors.
        setup_context, backward: as for ``torch.library.register_autograd``. An op without them
            gets an autograd formula that raises, so that a gradient can never be missing silently.
        vmap: as for ``torch.library.register_vmap``.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    qualified = f"flowinv_fast::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is None:
        mutates = "!" in schema
        if not mutates:
            torch.library.register_autograd(qualified, _no_gradient(name), lib=_library)
    else:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_library
        )
    if vmap is not None:
        torch.library.register_vmap(qualified, vmap, lib=_library)
    return getattr(torch.ops.flowinv_fast, name).default


def _no_gradient(name: str) -> Callable:
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(f"flowinv_fast::{name} has no gradient")

    return backward


def differentiate(function: Callable, tensors: int) -> dict[str, Callable]:
    """Autograd of an op by differentiating its reference: for second derivatives.

    Args:
        function: the reference twin, called with the op's arguments.
        tensors: how many leading arguments are tensors; the others get no gradient.
    Returns:
        setup_context and backward, as ``register`` takes them.
    """

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.rest = inputs[tensors:]

    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        wanted = [i for i in range(tensors) if ctx.needs_input_grad[i]]
        results: list[Tensor | None] = [None] * (tensors + len(ctx.rest))
        with torch.enable_grad():
            # Aliases: a saved tensor may itself depend on another one, which is not our path.
            inputs = [t.view_as(t) for t in ctx.saved_tensors]
            outputs = function(*inputs, *ctx.rest)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, gradients) if o.requires_grad]
            grads = torch.autograd.grad(
                [o for o, _ in pairs], [inputs[i] for i in wanted], [g for _, g in pairs],
                allow_unused=True, create_graph=True,
            )  # fmt: skip
        for i, grad in zip(wanted, grads):
            results[i] = grad
        return tuple(results)

    return {"setup_context": setup_context, "backward": backward}


# Conditions first, messages only where one fails: making them costs more than a small kernel.


def check_float(function: str, argument: str, tensor: Any, rank: int | None = None) -> None:
    """Refuse anything but a floating-point tensor, of this rank if given."""
    from .._base.backend import FLOATS

    wanted = "a float32, float64, bfloat16 or float16 tensor"
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, wanted, type(tensor).__name__)
    if tensor.dtype not in FLOATS:
        raise ArgumentError(function, argument, wanted, tensor.dtype)
    if rank is not None and tensor.dim() != rank:
        wanted = f"a tensor of {rank} dimensions"
        raise ArgumentError(function, argument, wanted, f"shape {tuple(tensor.shape)}")


def check_like(
    function: str,
    argument: str,
    tensor: Any,
    like: Tensor,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse a tensor on another device, or of another dtype or shape than wanted."""
    dtype = dtype or like.dtype
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, "a tensor", type(tensor).__name__)
    if tensor.dtype != dtype:
        raise ArgumentError(function, argument, f"dtype {dtype}", tensor.dtype)
    if tensor.device != like.device:
        raise ArgumentError(function, argument, f"device {like.device}", tensor.device)
    if shape is not None and tensor.shape != shape:
        wanted = f"shape {tuple(shape)}"
        raise ArgumentError(function, argument, wanted, tuple(tensor.shape))
