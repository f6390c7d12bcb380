"""Noise models: the law of the residual y - f(x). Anything with ``log_prob`` serves as well."""

from .digits import Digits
from .flow import Flow, PlacedFlow
from .gaussian import Gaussian
from .structured import Radial, Sinusoidal

__all__ = ["Digits", "Flow", "Gaussian", "PlacedFlow", "Radial", "Sinusoidal"]
