"""Operations of the package. (Temporary: public signatures over the reference, until _C exists.)"""

from __future__ import annotations

import torch

from . import reference as _r
from .reference import (  # noqa: F401
    MASKS,
    SIGMA_KINDS,
    dequantise,
    factor_in,
    factor_out,
    gaussian_noise,
    logit_decode,
    logit_encode,
    quantise_ste,
    squeeze,
    standard_normal_log_prob,
    unsqueeze,
)
from .reference import adam_step as adam_step_  # noqa: F401


def affine_coupling_encode(x, raw, gain, logdet, mask):
    return _r.affine_coupling_encode(x, raw, gain, logdet, MASKS[mask])


def affine_coupling_decode(z, raw, gain, logdet, mask):
    return _r.affine_coupling_decode(z, raw, gain, logdet, MASKS[mask])


def gaussian_log_prob(y, fx, mean, std):
    as_tensor = lambda v: torch.as_tensor(v, dtype=fx.dtype, device=fx.device)  # noqa: E731
    return _r.gaussian_log_prob(y, fx, as_tensor(mean), as_tensor(std))[0]


def gather_patches(image, places, size):
    return _r.gather_patches(image, places, *size)


def scatter_patches(patches, places, shape):
    return _r.scatter_patches(patches, places, *shape)


def sign_ste(x):
    return _r.quantise_ste(x, 1, -1.0, 1.0)


def sigma_map(level, shape, kind, rate=16.0, floor=0.0, ceiling=float("inf")):
    return _r.sigma_map(level, *shape, SIGMA_KINDS[kind], rate, floor, ceiling)


def structured_noise(mean, level, shape, kind, seed, offset=0, rate=16.0, floor=0.0,
                     ceiling=float("inf")):
    return _r.structured_noise(mean, level, *shape, SIGMA_KINDS[kind], rate, floor, ceiling,
                               seed, offset)


def digit_overlay(bank, shape, count, seed, offset=0):
    return _r.digit_overlay(bank, shape[0], count, *shape[1:], seed, offset)
