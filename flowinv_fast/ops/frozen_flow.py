"""A flow with fixed weights as one operation a direction: records of its layers, and the engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import ArgumentError, require
from .._base.tensors import check_tensor, known_device, plain
from ._register import register

MASKS, PRECISIONS = backend.constants.masks, backend.PRECISIONS

# --- layers --------------------------------------------------------------------------------------


class Packing(Protocol):
    """What a record adds its layer to: ``_C.FrozenFlow`` while it is being made."""

    state: tuple[int, int, int]

    def add_standardise(self, mean: tuple, std: tuple, /) -> None: ...
    def add_squeeze(self) -> None: ...
    def add_factor_out(self) -> None: ...
    def add_mixing(self, weight: tuple, log_size_sum: float, /) -> None: ...
    def add_coupling(self, mask: int, inverse: bool, gain: tuple, convs: list, /) -> None: ...


class Record(Protocol):
    """One layer of a flow with its weights."""

    def pack(self, plan: Packing) -> None:
        """Adds the layer to a plan, whose state has the shape (C, H, W) of the layer's input."""


def _numbers(name: str, tensor: Tensor, shape: tuple[int, ...], dtype=torch.float32) -> Tensor:
    """The tensor as the compiled module reads it; refuses another shape."""
    wanted = f"a tensor of shape {shape}"
    require(isinstance(tensor, Tensor), "FrozenEngine", name, wanted, type(tensor).__name__)
    require(tuple(tensor.shape) == shape, "FrozenEngine", name, wanted, tuple(tensor.shape))
    numbers = tensor.detach().to("cpu", dtype).resolve_neg().contiguous()
    finite = bool(torch.isfinite(numbers).all())
    require(finite, "FrozenEngine", name, "finite numbers", "some that are infinite or no numbers")
    return numbers


@dataclass(frozen=True)
class StandardiseRecord:
    """z = (x - mean) / std.

    Args:
        mean, std: (C, H, W) of the layer's input; std positive.

    >>> records = [StandardiseRecord(torch.full((1, 1, 2), 3.0), torch.full((1, 1, 2), 2.0))]
    >>> frozen_flow_encode(torch.tensor([[[[5.0, 9.0]]]]), FrozenEngine((1, 1, 2), records))[0]
    tensor([[1., 3.]])
    """

    mean: Tensor
    std: Tensor

    def pack(self, plan: Packing) -> None:
        mean = _numbers("mean", self.mean, plan.state)
        std = _numbers("std", self.std, plan.state)
        good = bool((std > 0).all()) and bool(torch.isfinite(std).all())
        require(good, "FrozenEngine", "std", "positive finite numbers", std.min().item())
        plan.add_standardise(backend.arg(mean), backend.arg(std))


@dataclass(frozen=True)
class SqueezeRecord:
    """(C, H, W) to (4C, H/2, W/2), as ``ops.squeeze``; H and W even.

    >>> engine = FrozenEngine((1, 2, 4), [SqueezeRecord()])
    >>> frozen_flow_encode(torch.arange(8.0).view(1, 1, 2, 4), engine)[0]
    tensor([[0., 2., 1., 3., 4., 6., 5., 7.]])
    """

    def pack(self, plan: Packing) -> None:
        even = plan.state[1] % 2 == 0 and plan.state[2] % 2 == 0
        wanted = "even height and width at every SqueezeRecord"
        require(even, "FrozenEngine", "records", wanted, plan.state)
        plan.add_squeeze()


@dataclass(frozen=True)
class FactorOutRecord:
    """The second half of the channels leaves as a latent; the number of channels is even.

    >>> engine = FrozenEngine((2, 1, 1), [FactorOutRecord()])
    >>> frozen_flow_encode(torch.tensor([[[[5.0]], [[7.0]]]]), engine)[0]  # it comes first
    tensor([[7., 5.]])
    """

    def pack(self, plan: Packing) -> None:
        wanted = "an even number of channels at every FactorOutRecord"
        require(plan.state[0] % 2 == 0, "FrozenEngine", "records", wanted, plan.state)
        plan.add_factor_out()


@dataclass(frozen=True)
class MixingRecord:
    """z = W x over the channels of every pixel, an invertible 1x1 convolution.

    Args:
        weight: W (C, C); its inverse is computed in float64.
        log_size_sum: log|det W|, which every pixel adds to the log-determinant.

    >>> swap = MixingRecord(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), log_size_sum=0.0)
    >>> frozen_flow_encode(torch.tensor([[[[5.0]], [[7.0]]]]), FrozenEngine((2, 1, 1), [swap]))[0]
    tensor([[7., 5.]])
    """

    weight: Tensor
    log_size_sum: float

    def pack(self, plan: Packing) -> None:
        channels = plan.state[0]
        weight = _numbers("weight", self.weight, (channels, channels), torch.float64)
        size = torch.linalg.slogdet(weight)[1].item()
        require(math.isfinite(size), "FrozenEngine", "weight", "an invertible matrix", "another")
        agree = abs(size - self.log_size_sum) <= 1e-3 * (channels + abs(size))
        wanted = f"log|det| of the weight, {size:g}"
        require(agree, "FrozenEngine", "log_size_sum", wanted, self.log_size_sum)
        plan.add_mixing(backend.arg(weight), float(self.log_size_sum))


@dataclass(frozen=True)
class CouplingRecord:
    """An affine coupling, z = x exp(s) + t on the elements of the mask, s = gain tanh(raw_s).

    (raw_s, t) come from the other elements u: h = first(u); h += after(relu(before(relu(h)))) for
    each block; last(relu(h)). The convolutions are 3x3 with zero padding.

    Args:
        mask: one of ``ops.MASKS``: the transformed elements.
        gain: bound of s per transformed channel, (C,) or (C/2,) for channel masks.
        convs: (weight, bias) of first, before and after of each block, and last; weight
            (outputs, inputs, 3, 3), bias (outputs,).
        inverse: encode by the formula of decode, z = (x - t) exp(-s), and decode by that of
            encode. Before a ``FactorOutRecord``, mask "channel_second", this is a conditional
            prior of the half that leaves, with mean t and standard deviation exp(s).

    >>> first = torch.zeros(1, 1, 3, 3), torch.zeros(1)
    >>> last = torch.zeros(2, 1, 3, 3), torch.tensor([0.0, 3.0])  # s = 0, t = 3
    >>> record = CouplingRecord("channel_first", torch.ones(1), [first, last])
    >>> frozen_flow_encode(torch.ones(1, 2, 1, 1), FrozenEngine((2, 1, 1), [record]))[0]
    tensor([[4., 1.]])
    """

    mask: str
    gain: Tensor
    convs: Sequence[tuple[Tensor, Tensor]]
    inverse: bool = False

    def pack(self, plan: Packing) -> None:
        channels = plan.state[0]
        require(self.mask in MASKS, "FrozenEngine", "mask", f"one of {list(MASKS)}", self.mask)
        halves = self.mask.startswith("channel")
        wanted = f"an even number of channels for {self.mask}"
        require(not halves or channels % 2 == 0, "FrozenEngine", "records", wanted, plan.state)
        count = len(self.convs)
        wanted = "2 + 2 blocks pairs (weight, bias)"
        require(count >= 2 and count % 2 == 0, "FrozenEngine", "convs", wanted, count)
        gains = channels // 2 if halves else channels
        hidden = len(self.convs[0][1])
        gain, kept, convs = _numbers("gain", self.gain, (gains,)), [], []
        for i, (weight, bias) in enumerate(self.convs):
            inputs, outputs = hidden if i else gains, hidden if i + 1 < count else 2 * gains
            numbers = (
                _numbers("convs", weight, (outputs, inputs, 3, 3)),
                _numbers("convs", bias, (outputs,)),
            )
            kept.append(numbers)  # alive until the plan has read them
            convs.append((*map(backend.arg, numbers), inputs, outputs))
        plan.add_coupling(MASKS[self.mask], self.inverse, backend.arg(gain), convs)


# --- the engine ----------------------------------------------------------------------------------

_engines: WeakValueDictionary[int, FrozenEngine] = WeakValueDictionary()
_handles = itertools.count(1)


class FrozenEngine:
    """The weights of a flow, packed for the compiled engine. Immutable; any thread may use it.

    A pickle holds the records, and packs them again where it is read. A copy is the engine itself.

    Args:
        shape: (C, H, W) of the images.
        records: layers in the order of encode.
        precision: "fp32", "tf32" (CUDA: conditioners multiply with 10 bits of mantissa; elsewhere
            the same as fp32) or "bf16" (7 bits). All else is float32 in every precision.
        device: where it will run; None is the CPU.
    Attributes:
        weight_bytes: size of the packed weights.
        saved_bytes, work_bytes: per image, kept for the backward pass, and used during a call on a
            CUDA device.
        shape, precision, device: as given.
        n: numbers of an image, C H W.
    Raises:
        ArgumentError: weights of the wrong shape, layers that do not fit the state they are
            handed, a precision or a device that is not to be had here.
        ValueError: the weight of a ``MixingRecord`` has no inverse.

    >>> FrozenEngine((1, 4, 4), [SqueezeRecord(), FactorOutRecord()])
    FrozenEngine(1 x 4 x 4, fp32 on cpu)
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        records: Sequence[Record],
        precision: str = "fp32",
        device: torch.device | str | None = None,
    ):
        wanted, got = f"one of {PRECISIONS}", repr(precision)
        require(precision in PRECISIONS, "FrozenEngine", "precision", wanted, got)
        good = len(shape) == 3 and min(shape) >= 1
        require(good, "FrozenEngine", "shape", "three positive sizes (C, H, W)", shape)
        device = known_device("FrozenEngine", device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        like = torch.empty(0, device=device)
        wanted = "a device that has compiled kernels"
        require(backend.native(like), "FrozenEngine", "device", wanted, device)
        on_device = backend.execution(like)[0] >= 0
        able = on_device or precision != "bf16" or backend._C.cpu_bf16()
        wanted = "'fp32' (this CPU has no bf16 products)"
        require(able, "FrozenEngine", "precision", wanted, "'bf16'")
        channels, height, width = map(int, shape)
        self.shape, self.n = (channels, height, width), channels * height * width
        self.precision, self.device = precision, device
        self._plan = backend._C.make_frozen_flow(
            self.shape, backend.constants.precisions[precision], on_device
        )
        self._records = [_owned(record) for record in records]  # for a pickle
        for record in self._records:
            record.pack(self._plan)
        self._plan.finish()
        self.weight_bytes, self.saved_bytes = self._plan.weight_bytes, self._plan.saved_bytes
        self.work_bytes = 4 * self._plan.workspace
        self._words: Tensor | None = None
        if on_device:
            words = torch.empty(self._plan.words, dtype=torch.float32, device="cpu")
            self._plan.copy_words(backend.arg(words))
            self._words = words.to(device)
        self.handle = next(_handles)
        _engines[self.handle] = self

    def _run(self, call: Callable, decode: bool, *tensors: Tensor | None) -> None:
        """The plan's forward or backward on these tensors, images first in each."""
        like, work = tensors[0], None
        assert like is not None
        if self._words is not None:
            size = len(like) * self._plan.workspace
            work = torch.empty(size, dtype=torch.float32, device=self.device)
        arguments = [backend.arg(t) for t in (*tensors, self._words, work)]
        call(decode, len(like), *arguments, backend.execution(like))

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEngine:
        return self

    def __reduce__(self) -> tuple:
        return FrozenEngine, (self.shape, self._records, self.precision, self.device)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        return f"FrozenEngine({size}, {self.precision} on {self.device})"


def _owned(value: Any) -> Any:
    """A record, its tensors copied to the CPU: nobody else writes them."""
    if isinstance(value, Tensor):
        return plain(value.detach()).to("cpu", copy=True)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_owned, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _owned(getattr(value, f.name)) for f in fields(value)})
    return value


# --- operations ----------------------------------------------------------------------------------
# `link` is an empty tensor that descends from the input where a backward pass may follow: then the
# signs of the conditioners are kept, and a second derivative is refused instead of being lost.

_SCHEMA = "(Tensor {0}, Tensor? link, int engine) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    "(Tensor grad_out, Tensor grad_logdet, Tensor saved, Tensor? link, int engine) -> Tensor"
)


def _engine(handle: int) -> FrozenEngine:
    engine = _engines.get(handle)
    wanted = "the handle of a FrozenEngine that still exists"
    require(engine is not None, "frozen_flow", "engine", wanted, handle)
    return engine  # type: ignore[return-value]


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The vmapped dimension merged with the batch."""
    whole = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return whole.reshape(size * whole.shape[1], *whole.shape[2:])


def _unfold(tensor: Tensor, size: int) -> Tensor:
    return tensor.reshape(size, len(tensor) // size, *tensor.shape[1:])


def _outputs(
    decode: bool, x: Tensor, link: Tensor | None, handle: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-determinant, and the words [B, saved_bytes / 8] for the backward pass."""
    engine, batch = _engine(handle), x.shape[0]
    words = 0 if link is None else engine.saved_bytes // 8
    return (
        x.new_empty(batch, *(engine.shape if decode else (engine.n,))),
        x.new_empty(batch),
        x.new_empty(batch, words, dtype=torch.int64),
    )


def _forward(
    decode: bool, x: Tensor, link: Tensor | None, handle: int
) -> tuple[Tensor, Tensor, Tensor]:
    engine = _engine(handle)
    out, logdet, saved = _outputs(decode, x, link, handle)
    kept = saved if link is not None else None
    engine._run(engine._plan.forward, decode, x.contiguous(), out, logdet, kept)
    return out, logdet, saved


def _backward_output(decode: bool, grad_out: Tensor, *rest: Any) -> Tensor:
    engine, batch = _engine(rest[-1]), grad_out.shape[0]
    return grad_out.new_empty(batch, *((engine.n,) if decode else engine.shape))


def _backward(
    decode: bool,
    grad_out: Tensor,
    grad_logdet: Tensor,
    saved: Tensor,
    link: Tensor | None,
    handle: int,
) -> Tensor:
    engine = _engine(handle)
    grad_in = _backward_output(decode, grad_out, handle)
    given = (t.contiguous() for t in (grad_out, grad_logdet, saved))
    engine._run(engine._plan.backward, decode, *given, grad_in)
    return grad_in


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, link, handle = inputs
    ctx.save_for_backward(output[2], link)
    ctx.handle = handle
    ctx.alive = _engine(handle)  # for as long as a backward pass may follow


def _make(decode: bool) -> Callable:
    """The op of one direction, and its backward op."""
    name = "frozen_flow_decode" if decode else "frozen_flow_encode"

    def backward_vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        size, (*tensors, link, handle) = info.batch_size, arguments
        folded = (_fold(t, dim, size) for t, dim in zip(tensors, in_dims))
        return _unfold(backward_op(*folded, link, handle), size), 0

    def forward_vmap(info: Any, in_dims: tuple, x: Tensor, link: Any, handle: int) -> tuple:
        folded = _fold(x, in_dims[0], info.batch_size)
        # Only here is it seen whether a batch of a vmap requires a gradient.
        results = forward_op(folded, _link(folded) if link is None else link, handle)
        return tuple(_unfold(t, info.batch_size) for t in results), (0, 0, 0)

    def differentiate(ctx: Any, grad_out: Tensor, grad_logdet: Tensor, _: Any) -> tuple:
        saved, link = ctx.saved_tensors
        if link is None:
            raise RuntimeError(f"flowinv_fast::{name} kept nothing for a backward pass")
        return backward_op(grad_out, grad_logdet, saved, link, ctx.handle), None, None

    backward_op = register(
        f"{name}_backward{_BACKWARD}",
        partial(_backward, decode),
        partial(_backward_output, decode),
        vmap=backward_vmap,
    )
    forward_op = register(
        f"{name}{_SCHEMA.format('z' if decode else 'x')}",
        partial(_forward, decode),
        partial(_outputs, decode),
        setup_context=_setup_context,
        backward=differentiate,
        vmap=forward_vmap,
    )
    return forward_op


_encode, _decode = _make(decode=False), _make(decode=True)


def _link(x: Tensor) -> Tensor | None:
    return x[:0].clone() if torch.is_grad_enabled() and x.requires_grad else None


def _check(function: str, name: str, x: Tensor, engine: FrozenEngine) -> None:
    if not isinstance(engine, FrozenEngine):
        raise ArgumentError(function, "engine", "a FrozenEngine", type(engine).__name__)
    shape = engine.shape if name == "x" else (engine.n,)
    good = isinstance(x, Tensor) and x.dtype == torch.float32 and x.device == engine.device
    good = good and x.layout is torch.strided and not x.is_nested
    if not (good and x.shape[1:] == shape):
        check_tensor(function, name, x, shape, torch.float32, engine.device)


def frozen_flow_encode(
    x: Tensor,  # [B, C, H, W]
    engine: FrozenEngine,
) -> tuple[Tensor, Tensor]:
    """Latent of an image under a frozen flow.

    Args:
        x: images (B, C, H, W), float32 on the engine's device. Its gradient is compiled too; a
            second derivative raises, and weights have no gradients.
        engine: layers with their weights.
    Returns:
        z (B, N), the latents in the order in which they leave, then what remains, each flattened
        in the order of memory; and log|det dz/dx| (B,). An image's bits depend neither on the
        batch nor on the number of threads.
    Raises:
        ArgumentError: a shape, dtype or device that is not the engine's.

    >>> engine = FrozenEngine((1, 2, 2), [SqueezeRecord(), FactorOutRecord()])
    >>> frozen_flow_encode(torch.arange(4.0).reshape(1, 1, 2, 2), engine)[0]
    tensor([[2., 3., 0., 1.]])
    """
    _check("frozen_flow_encode", "x", x, engine)
    z, logdet, _ = _encode(x, _link(x), engine.handle)
    return z, logdet


def frozen_flow_decode(
    z: Tensor,  # [B, N]
    engine: FrozenEngine,
) -> tuple[Tensor, Tensor]:
    """Image of a latent, the inverse of ``frozen_flow_encode``.

    Args:
        z: latents (B, N), float32 on the engine's device; gradients as in encode.
        engine: layers with their weights.
    Returns:
        x (B, C, H, W) and log|det dx/dz| (B,).
    Raises:
        ArgumentError: a shape, dtype or device that is not the engine's.

    >>> engine = FrozenEngine((1, 2, 2), [SqueezeRecord(), FactorOutRecord()])
    >>> frozen_flow_decode(torch.tensor([[2.0, 3.0, 0.0, 1.0]]), engine)[0]
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """
    _check("frozen_flow_decode", "z", z, engine)
    x, logdet, _ = _decode(z, _link(z), engine.handle)
    return x, logdet
