"""Random arguments for every operation, as the compiled op takes them.

A case gives the op, by name, and a function that draws arguments of a random shape.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flowinv_fast._base.tensors import accumulate_dtype
from flowinv_fast.ops import twin

OPS = torch.ops.flowinv_fast


@dataclass(frozen=True)
class Case:
    """One operation under test.

    Args:
        name: of the op.
        draw: (dtype, device, batch or None) to arguments; None draws the batch too.
        differentiable: whether the op has a gradient.
    """

    name: str
    draw: Callable[..., tuple]
    differentiable: bool = True

    @property
    def op(self):
        return getattr(OPS, self.name).default

    @property
    def twin(self) -> Callable:
        """The op in plain torch, of the same arguments."""
        return twin(self.name)


def size(low: int = 1, high: int = 9) -> int:
    return random.randint(low, high)


def batch_of(batch: int | None) -> int:
    return random.choice([0, 1, 2, 3, 5]) if batch is None else batch


def normal(*shape, dtype, device):
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def acc(dtype):
    return accumulate_dtype(dtype)


def coupling(mask: int):
    def draw(dtype, device, batch=None, backward=False):
        b, c, h, w = batch_of(batch), size(1, 6), size(), size(1, 20)
        c = 2 * c if mask >= 2 else c
        gains = c if mask < 2 else c // 2
        make = lambda *s: normal(*s, dtype=dtype, device=device)
        x, raw, gain = make(b, c, h, w), make(b, 2 * gains, h, w), make(gains)
        logdet = normal(b, dtype=acc(dtype), device=device)
        if backward:
            return make(b, c, h, w), logdet, x, raw, gain, mask, True
        return x, raw, gain, logdet, mask

    return draw


def images(dtype, device, batch=None, low=0.02, high=0.98):
    shape = (batch_of(batch), size(1, 4), size(), size(1, 40))
    return (low + (high - low) * torch.rand(shape, dtype=torch.float64)).to(device, dtype)


def logit(decode):
    def draw(dtype, device, batch=None, backward=False):
        x = images(dtype, device, batch)
        x = torch.logit(x) if decode else x
        logdet = normal(x.shape[0], dtype=acc(dtype), device=device)
        alpha = random.choice([1e-3, 0.05, 0.2])
        return (torch.randn_like(x), logdet, x, alpha) if backward else (x, logdet, alpha)

    return draw


def squeezable(unsqueeze):
    def draw(dtype, device, batch=None):
        b, c, h, w = batch_of(batch), size(1, 4), size(), size()
        shape = (b, 4 * c, h, w) if unsqueeze else (b, c, 2 * h, 2 * w)
        return (normal(*shape, dtype=dtype, device=device),)

    return draw


def gaussian(dtype, device, batch=None):
    b, c, h, w = batch_of(batch), size(1, 4), size(), size(1, 40)
    make = lambda *s: normal(*s, dtype=dtype, device=device)
    shapes = [
        (),
        (1, 1, 1),
        (b, 1, 1, 1),
        (c, h, w),
        (1, 1, h, 1),
        (b, c, h, w),
        (w,),
        (b, 1, h, 1),
    ]
    mean, std = make(*random.choice(shapes)), make(*random.choice(shapes)).abs() + 0.5
    return make(b, c, h, w), make(b, c, h, w), mean, std


def latents(dtype, device, batch=None):
    return (normal(batch_of(batch), size(1, 3000), dtype=dtype, device=device),)


def places_for(b, k, c, h, w, ph, pw, device):
    draw = lambda n: torch.randint(0, n, (b, k))
    return torch.stack([draw(c), draw(h - ph + 1), draw(w - pw + 1)], -1).to(device)


def patches(scatter):
    def draw(dtype, device, batch=None):
        b, k, c, h, w = batch_of(batch), size(0, 4), size(1, 3), size(2), size(2)
        ph, pw = size(1, h), size(1, w)
        places = places_for(b, k, c, h, w, ph, pw, device)
        if scatter:
            return normal(b, k, ph, pw, dtype=dtype, device=device), places, c, h, w
        return normal(b, c, h, w, dtype=dtype, device=device), places, ph, pw

    return draw


def stream():
    return random.choice([0, 1, 2**32 + 7, 2**63 - 1]), random.choice([0, 5, 2**32 - 2, 2**40])


def structured(map_only):
    def draw(dtype, device, batch=None):
        b, c, h, w = batch_of(batch), size(1, 3), size(), size(1, 20)
        level = normal(b, dtype=dtype, device=device).abs()
        kind = random.randint(0, 3)
        rate = 0.005 if kind == 3 else random.choice([3.0, 16.0])
        rest = (c, h, w, kind, rate, *random.choice([(0.0, float("inf")), (0.1, 0.5)]))
        if map_only:
            return (level, *rest)
        return (normal(b, dtype=dtype, device=device), level, *rest, *stream())

    return draw


def gaussian_noise(dtype, device, batch=None):
    _, fx, mean, std = gaussian(dtype, device, batch)
    return mean, std, list(fx.shape), *stream()


def digits(dtype, device, batch=None):
    m, ph, pw = size(), size(1, 5), size(1, 5)
    bank = normal(m, ph, pw, dtype=dtype, device=device)
    return (
        bank,
        batch_of(batch),
        size(0, 4),
        size(1, 3),
        ph + size(0, 6),
        pw + size(0, 6),
        *stream(),
    )


def with_backward(draw):
    return lambda dtype, device, batch=None: draw(dtype, device, batch, backward=True)


def dequantised(dtype, device, batch=None):
    return images(dtype, device, batch), random.choice([2, 32, 256]), *stream()


def bits(dtype, device, batch=None):
    return size(0, 100), *stream(), torch.empty(0, device=device)


def quantised(dtype, device, batch=None):
    x = images(dtype, device, batch)
    return 2 * torch.randn_like(x), random.randint(1, 8), -1.0, 1.5


CASES = [
    *(
        Case(f"affine_coupling_{direction}", coupling(mask))
        for direction in ("encode", "decode")
        for mask in range(4)
    ),
    *(
        Case(f"affine_coupling_{direction}_backward", with_backward(coupling(mask)))
        for direction in ("encode", "decode")
        for mask in range(4)
    ),
    Case("logit_encode", logit(False)),
    Case("logit_decode", logit(True)),
    Case("logit_encode_backward", with_backward(logit(False))),
    Case("logit_decode_backward", with_backward(logit(True))),
    Case("squeeze", squeezable(False)),
    Case("unsqueeze", squeezable(True)),
    Case("gaussian_log_prob", gaussian),
    Case("standard_normal_log_prob", latents),
    Case("gather_patches", patches(False)),
    Case("scatter_patches", patches(True)),
    Case("dequantise", dequantised, differentiable=False),
    Case("random_bits", bits, differentiable=False),
    Case("gaussian_noise", gaussian_noise, differentiable=False),
    Case("sigma_map", structured(True), differentiable=False),
    Case("structured_noise", structured(False), differentiable=False),
    Case("digit_overlay", digits, differentiable=False),
    Case("quantise_ste", quantised),
]
IDS = [f"{case.name}-{i}" for i, case in enumerate(CASES)]
