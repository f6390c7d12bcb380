"""One way to make an operation: schema, implementation, fake, autograd, and its twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._base import backend
from ._kernel import Kernel, Sizes, _no_sizes

_library = torch.library.Library("flowinv_fast", "FRAGMENT")
_twins: dict[str, Callable] = {}


def register(
    schema: str,
    implementation: Callable,
    fake: Callable,
    *,
    twin: Callable | None = None,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
    vmap: Callable | None = None,
) -> Callable:
    """Define ``flowinv_fast::NAME`` and return what calls it.

    A call with a forward-mode derivative raises: torch would take it for zero.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        implementation: called with real tensors on CPU or CUDA, gradients off.
        fake: same outputs as empty tensors.
        twin: the same in plain torch, which ``twin(name)`` finds.
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
    if twin is not None:
        _twins[name] = twin
    op = getattr(torch.ops.flowinv_fast, name).default

    def call(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        return op(*arguments)

    return call


def register_kernel(
    schema: str,
    kernel: str,
    twin: Callable,
    outputs: Callable,
    *,
    sizes: Sizes = _no_sizes,
    constants: dict[str, Any] | None = None,
    setup_context: Callable | None = None,
    backward: Callable | None = None,
) -> Callable:
    """An op that is one compiled kernel where there is one, and its twin elsewhere.

    Args:
        schema: "name(Tensor x, ...) -> (Tensor out, ...)", its names those of the kernel's struct.
        kernel: name of the operation in the compiled module.
        twin: the op in plain torch, with the same arguments.
        outputs: the op's results as empty tensors, or None; serves as its fake too.
        sizes, constants: what the arguments do not say of the kernel's struct, see ``Kernel``.
        setup_context, backward: as for ``register``.
    """
    call = Kernel(kernel, schema, sizes, **(constants or {}))
    first = schema.split("(", 1)[1].split(", ")
    like = next(i for i, argument in enumerate(first) if argument.startswith("Tensor"))

    def implementation(*arguments: Any) -> Any:
        if not backend.native(arguments[like]):
            return twin(*arguments)
        results = outputs(*arguments)
        if results is None:
            call(arguments, ())
        else:
            call(arguments, results if isinstance(results, tuple) else (results,))
        return results

    return register(
        schema,
        implementation,
        outputs,
        twin=twin,
        setup_context=setup_context,
        backward=backward,
    )


def twin(name: str) -> Callable:
    """The plain-torch twin of an op, by the op's name: what its kernels are tested against.

    It takes the op's own arguments, is differentiable by ordinary autograd, runs on any device and
    serves as the op where no compiled kernel does (``FLOWINV_BACKEND=torch``).

    >>> twin("squeeze")(torch.zeros(1, 1, 4, 4)).shape
    torch.Size([1, 4, 2, 2])
    """
    return _twins[name]


def _refuse_tangents(name: str, arguments: tuple) -> None:
    for tensor in arguments:
        # A batch of a vmap does not show its tangents; they are seen where it is folded.
        if not isinstance(tensor, Tensor) or torch._C._functorch.is_batchedtensor(tensor):
            continue
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"flowinv_fast::{name} has no forward-mode derivative")


def _no_gradient(name: str) -> Callable:
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(f"flowinv_fast::{name} has no gradient")

    return backward


def no_context(ctx: Any, inputs: tuple, output: Any) -> None:
    """For an op whose gradient needs nothing of its arguments."""


def differentiate(function: Callable, tensors: int) -> dict[str, Callable]:
    """Autograd of an op by differentiating its twin: for second derivatives.

    Args:
        function: the twin, called with the op's arguments.
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
                [o for o, _ in pairs],
                [inputs[i] for i in wanted],
                [g for _, g in pairs],
                allow_unused=True,
                create_graph=True,
            )
        for i, grad in zip(wanted, grads):
            results[i] = grad
        return tuple(results)

    return {"setup_context": setup_context, "backward": backward}
