"""Operations: compiled kernels behind ``torch.library``, with fakes and autograd.

Each has a CPU kernel, a CUDA kernel and, in the same file, a twin in plain torch: the specification
that the kernels are tested against in float64, and the op itself where no kernel serves.
"""

from ._register import in_transform, twin
from .coupling import (
    MASKS,
    affine_coupling_decode,
    affine_coupling_decode_,
    affine_coupling_encode,
    affine_coupling_encode_,
    transformed_map,
)
from .density import gaussian_log_prob, standard_normal_log_prob
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
from .noise import SIGMA_KINDS, digit_overlay, sigma_map, structured_noise
from .optim import adam_rates, adam_step_
from .patches import gather_patches, scatter_patches
from .philox import gaussian_noise, random_bits
from .preprocess import dequantise, logit_decode, logit_encode
from .quantise import quantise_ste, sign_ste

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
    "in_transform",
    "logit_decode",
    "logit_encode",
    "quantise_ste",
    "random_bits",
    "scatter_patches",
    "sigma_map",
    "sign_ste",
    "squeeze",
    "standard_normal_log_prob",
    "structured_noise",
    "transformed_map",
    "twin",
    "unsqueeze",
]
