"""Normalizing flows: image priors and noise densities."""

from .frozen import FrozenFlow
from .io import available_flows, load_flow, save_flow
from .realnvp import RealNVP, RealNVPConfig

__all__ = ["FrozenFlow", "RealNVP", "RealNVPConfig", "available_flows", "load_flow", "save_flow"]
