"""Forward operators f: images (B, C, H, W) to measurements. Any differentiable callable serves."""

from .base import Composition, Identity, LinearOperator, Scale
from .imaging import Blur, Downsample, Inpaint
from .sensing import GaussianSensing, SignSensing

__all__ = [
    "Blur",
    "Composition",
    "Downsample",
    "GaussianSensing",
    "Identity",
    "Inpaint",
    "LinearOperator",
    "Scale",
    "SignSensing",
]
