"""Operations: compiled kernels behind ``torch.library``, with fakes and autograd.

Each has a CPU kernel, a CUDA kernel and a plain-torch twin in ``ops.reference``.
"""

from . import reference
from .coupling import (
    affine_coupling_decode,
    affine_coupling_decode_,
    affine_coupling_encode,
    affine_coupling_encode_,
)
from .density import gather_patches, gaussian_log_prob, scatter_patches, standard_normal_log_prob
from .frozen_flow import (
    CouplingRecord,
    FactorOutRecord,
    FrozenEngine,
    MixingRecord,
    SqueezeRecord,
    StandardiseRecord,
    frozen_flow_decode,
    frozen_flow_encode,
)
from .layout import factor_in, factor_out, squeeze, unsqueeze
from .noise import digit_overlay, gaussian_noise, random_bits, sigma_map, structured_noise
from .optim import adam_rates, adam_step_
from .preprocess import dequantise, logit_decode, logit_encode
from .quantise import quantise_ste, sign_ste
from .reference import MASKS, SIGMA_KINDS

__all__ = [
    "MASKS",
    "SIGMA_KINDS",
    "CouplingRecord",
    "FactorOutRecord",
    "FrozenEngine",
    "MixingRecord",
    "SqueezeRecord",
    "StandardiseRecord",
    "adam_rates",
    "adam_step_",
    "affine_coupling_decode",
    "affine_coupling_decode_",
    "affine_coupling_encode",
    "affine_coupling_encode_",
    "dequantise",
    "digit_overlay",
    "factor_in",
    "factor_out",
    "frozen_flow_decode",
    "frozen_flow_encode",
    "gather_patches",
    "gaussian_log_prob",
    "gaussian_noise",
    "logit_decode",
    "logit_encode",
    "quantise_ste",
    "random_bits",
    "reference",
    "scatter_patches",
    "sigma_map",
    "sign_ste",
    "squeeze",
    "standard_normal_log_prob",
    "structured_noise",
    "unsqueeze",
]
