"""Forward operators f: images (B, C, H, W) to measurements. Any differentiable callable serves."""

from .base import Identity, LinearOperator, Scale
from .composition import Composable, Composition, composes
from .imaging import Blur, Downsample, Inpaint
from .sensing import GaussianSensing, SignSensing
from .wrapped import from_numpy, straight_through

__all__ = [
    "Blur",
    "Composable",
    "Composition",
    "Downsample",
    "GaussianSensing",
    "Identity",
    "Inpaint",
    "LinearOperator",
    "Scale",
    "SignSensing",
    "composes",
    "from_numpy",
    "straight_through",
]
