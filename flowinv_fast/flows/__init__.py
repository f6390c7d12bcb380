"""Normalizing flows: image priors and noise densities."""

from .base import Layer
from .flow import Flow, FlowConfig
from .frozen import FrozenFlow
from .glow import GlowConfig, glow
from .io import available_flows, build_flow, load_flow, save_flow
from .layers import AffineCoupling, ChannelMixing, FactorOut, Logit, Squeeze, Standardise
from .realnvp import RealNVPConfig, realnvp

__all__ = [
    "AffineCoupling",
    "ChannelMixing",
    "FactorOut",
    "Flow",
    "FlowConfig",
    "FrozenFlow",
    "GlowConfig",
    "Layer",
    "Logit",
    "RealNVPConfig",
    "Squeeze",
    "Standardise",
    "available_flows",
    "build_flow",
    "glow",
    "load_flow",
    "realnvp",
    "save_flow",
]
