"""Noise models: densities of the residual y - f(x). Anything with ``log_prob`` serves as well."""

from .digits import Digits
from .flow import FlowNoise, PlacedFlowNoise
from .gaussian import Gaussian
from .structured import Radial, Sinusoidal

__all__ = ["Digits", "FlowNoise", "Gaussian", "PlacedFlowNoise", "Radial", "Sinusoidal"]
