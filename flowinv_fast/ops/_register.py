"""One way to make an operation: schema, implementation, fake, autograd, and its twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._base import backend
from .._base.errors import ArgumentError
from .._base.tensors import plain
from ._kernel import Kernel, Sizes, _no_sizes, names_of, written_by

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

    A call with a forward-mode derivative raises: torch would take it for zero. Inside a transform
    of ``torch.func`` (grad, vjp, jacrev, vmap) it goes through an ``autograd.Function``, the one
    form that these take. A user's subclass of Tensor counts as the plain tensor that it is.

    Args:
        schema: "name(Tensor x, ...) -> ...".
        implementation: called with real tensors on CPU or CUDA, gradients off.
        fake: same outputs as empty tensors.
        twin: the same in plain torch, which ``twin(name)`` finds.
        setup_context, backward: as for ``torch.library.register_autograd``. An op without them
            gets an autograd formula that raises, so that a gradient can never be missing silently.
        vmap: as for ``torch.library.register_vmap``; None: one image of the batch after another.
    """
    name = schema.split("(", 1)[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)
    qualified = f"flowinv_fast::{name}"
    torch.library.register_fake(qualified, fake, lib=_library)
    op = getattr(torch.ops.flowinv_fast, name).default
    if twin is not None:
        _twins[name] = twin
    written = written_by(schema)
    if written:
        return _in_place(op, schema, written)
    if backward is None:
        setup_context, backward = no_context, _no_gradient(name)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_library)
    function = _function(op, setup_context or no_context, backward, vmap)
    torch.library.register_vmap(qualified, function.vmap, lib=_library)

    def call(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        arguments = tuple(plain(a) if isinstance(a, Tensor) else a for a in arguments)
        if in_transform():
            return function.apply(*arguments)
        return op(*arguments)

    return call


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` is at work: nothing can be written in place then.

    >>> in_transform()
    False
    """
    return torch._C._are_functorch_transforms_active()


def _function(op: Any, setup_context: Callable, backward: Callable, vmap: Callable | None) -> Any:
    """The op in the form that the transforms of ``torch.func`` take."""
    function: Any

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(f"flowinv_fast::{op._opname} has no forward-mode derivative")

    def one_by_one(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        parts = [
            function.apply(
                *(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(parts[0], Tensor):
            return torch.stack(parts), 0
        return tuple(map(torch.stack, zip(*parts))), (0,) * len(parts[0])

    members = {
        "forward": lambda *arguments: op(*arguments),
        "setup_context": setup_context,
        "backward": backward,
        "jvp": jvp,
        "vmap": vmap or one_by_one,
    }
    static = {name: staticmethod(member) for name, member in members.items()}
    function = type(op._opname, (torch.autograd.Function,), static)
    return function


def _in_place(op: Any, schema: str, written: set[str]) -> Callable:
    """What calls an op that writes, only where torch could not tell that it did wrong."""
    name, places = schema.split("(", 1)[0], []
    for place, argument in enumerate(names_of(schema)[0]):
        if argument in written:
            places.append((place, argument))

    def counted(keys: Any, *arguments: Any) -> Any:
        """Autograd sees by their versions that tensors have changed."""
        torch.autograd.graph.increment_version([arguments[place] for place, _ in places])
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *arguments)

    _library.impl(name, counted, "ADInplaceOrView", with_keyset=True)

    def call(*arguments: Any) -> None:
        arguments = tuple(plain(a) if isinstance(a, Tensor) else a for a in arguments)
        if in_transform():
            raise NotImplementedError(f"flowinv_fast::{name} writes in place: not in torch.func")
        if torch.is_grad_enabled() and any(
            isinstance(a, Tensor) and a.requires_grad for a in arguments
        ):
            wanted = "tensors that need no gradient, or a call under torch.no_grad()"
            raise ArgumentError(name, places[0][1], wanted, "one that needs a gradient")
        for place, argument in places:
            if arguments[place].is_neg():
                wanted = "a tensor of its own, tensor.resolve_neg()"
                raise ArgumentError(name, argument, wanted, "a view that negates another")
        op(*arguments)

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
        gradient = _transformed if in_transform() else _recorded
        call = lambda *inputs: function(*inputs, *ctx.rest)
        for i, grad in zip(wanted, gradient(call, ctx.saved_tensors, wanted, gradients)):
            results[i] = grad
        return tuple(results)

    return {"setup_context": setup_context, "backward": backward}


def _recorded(
    function: Callable, saved: Sequence[Tensor], wanted: list[int], gradients: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients to the wanted ones of a function's arguments, which can be differentiated again."""
    with torch.enable_grad():
        # Aliases: a saved tensor may itself depend on another one, which is not our path.
        inputs = [t.view_as(t) for t in saved]
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients) if o.requires_grad]
        return torch.autograd.grad(
            [o for o, _ in pairs],
            [inputs[i] for i in wanted],
            [g for _, g in pairs],
            allow_unused=True,
            create_graph=True,
        )


def _transformed(
    function: Callable, saved: Sequence[Tensor], wanted: list[int], gradients: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The same inside a transform of ``torch.func``."""

    def of_wanted(*given: Tensor) -> Any:
        inputs = list(saved)
        for i, tensor in zip(wanted, given):
            inputs[i] = tensor
        return function(*inputs)

    pull: Callable = torch.func.vjp(of_wanted, *(saved[i] for i in wanted))[1]
    return pull(gradients if len(gradients) > 1 else gradients[0])
