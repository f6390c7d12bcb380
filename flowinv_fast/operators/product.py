"""A product with a constant matrix whose bits can be made to depend on nothing but the numbers.

A library's product adds in an order that follows the number of threads and the size of the batch.
Sums of integers below 2^53 are exact in float64 in any order. So, where torch is asked for
deterministic algorithms, both factors are cut into slices of few bits, whose products are exact,
and their sum is rounded once (Ozaki et al., Numerical Algorithms 59, 2012).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_EXACT, _SINGLE = 53, 24  # bits of a float64 and of a float32
_CUT = WeakTensorKeyDictionary()  # matrix: (its numbers then, device, slices)


def product(x: Tensor, matrix: Tensor, transposed: bool = False) -> Tensor:
    """x (B, K) times a constant matrix (K, n), or the transpose of one (n, K): (B, n) like x.

    Under ``torch.use_deterministic_algorithms(True)`` a row of the result depends on that row of x
    and on the matrix alone, bit for bit, and is rounded once. It then takes four times as long or
    more, and the matrix is kept in five times its memory while it lives.

    >>> product(torch.ones(1, 2), torch.eye(2))
    tensor([[1., 1.]])
    """
    if torch.are_deterministic_algorithms_enabled():
        return _Exact.apply(x, matrix, transposed)
    own = matrix.to(x)
    return x @ (own.T if transposed else own)


class _Exact(torch.autograd.Function):
    """The exact product; its gradient is one with the other orientation."""

    @staticmethod
    def forward(x: Tensor, matrix: Tensor, transposed: bool) -> Tensor:
        single = x.dtype != torch.float64
        cuts = 1 if single else math.ceil(_EXACT / _SINGLE)
        parts = _slices(x.double(), x.double().abs().amax(1, keepdim=True), _SINGLE, cuts)
        own = [part.T if transposed else part for part in _cut(matrix, x.device)]
        exact = [a @ b for a in reversed(parts) for b in reversed(own)]
        return sum(exact[1:], exact[0]).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, matrix, ctx.transposed = inputs
        ctx.save_for_backward(matrix)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Exact.apply(grad, ctx.saved_tensors[0], not ctx.transposed), None, None


def _cut(matrix: Tensor, device: torch.device) -> list[Tensor]:
    """Slices of a matrix that have exact products with 24 bits, either way round; kept."""
    kept = _CUT.get(matrix)
    if kept is None or kept[1] != device or not _same(matrix, kept[0]):
        bits = _EXACT - _SINGLE - math.ceil(math.log2(max(2, *matrix.shape)))
        cuts = math.ceil((_EXACT if matrix.dtype == torch.float64 else _SINGLE) / bits)
        own = matrix.to(device, torch.float64)
        slices = _slices(own, own.abs().amax(), bits, cuts)
        kept = _CUT[matrix] = (matrix.detach().clone(), device, slices)
    return kept[2]


def _same(matrix: Tensor, before: Tensor) -> bool:
    """Whether a matrix holds the numbers that it held: writing through ``.data`` leaves no trace.

    A graph cannot hold the question; its trial runs asked it.
    """
    if matrix.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    return matrix.dtype == before.dtype and torch.equal(matrix, before)


def _slices(x: Tensor, largest: Tensor, bits: int, cuts: int) -> list[Tensor]:
    """Parts of x, |x| <= largest, that sum to it: each a multiple of 2^-bits times the one before.

    Adding 1.5 2^52 steps and taking them off again rounds to a multiple of a step.
    """
    step = torch.exp2(torch.frexp(largest).exponent.double() - bits)
    parts = []
    for _ in range(cuts):
        shift = 1.5 * 2.0**52 * step
        parts.append((x + shift).sub_(shift))
        x, step = x - parts[-1], step * 2.0**-bits
    return parts
