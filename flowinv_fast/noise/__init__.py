"""Noise models: densities of y - f(x), or of y given f(x). Anything that has one serves as well."""

from .compare import LawCheck, compare
from .correlated import LowRankGaussian, StationaryGaussian
from .digits import Digits
from .distributions import FromDistribution, as_noise
from .fit import NoiseFit, fit
from .flow import FlowNoise, PlacedFlowNoise
from .gaussian import Gaussian
from .signal_dependent import SignalDependent
from .structured import Radial, Sinusoidal
from .tiled import Tiled

__all__ = [
    "Digits",
    "FlowNoise",
    "FromDistribution",
    "Gaussian",
    "LawCheck",
    "LowRankGaussian",
    "NoiseFit",
    "PlacedFlowNoise",
    "Radial",
    "SignalDependent",
    "Sinusoidal",
    "StationaryGaussian",
    "Tiled",
    "as_noise",
    "compare",
    "fit",
]
