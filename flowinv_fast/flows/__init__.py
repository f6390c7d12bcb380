"""Normalizing flows: image priors and noise densities."""

from .base import Layer
from .check import FlowCheck, check_flow
from .flow import Flow, FlowConfig
from .frozen import FrozenFlow
from .glow import GlowConfig, glow
from .io import available_flows, build_flow, load_flow, save_flow
from .layers import AffineCoupling, ChannelMixing, FactorOut, Logit, Squeeze, Standardise
from .patch_prior import PatchPrior
from .realnvp import RealNVPConfig, realnvp
from .tarflow import TarFlowConfig, tarflow

__all__ = [
    "AffineCoupling",
    "ChannelMixing",
    "FactorOut",
    "Flow",
    "FlowCheck",
    "FlowConfig",
    "FrozenFlow",
    "GlowConfig",
    "Layer",
    "Logit",
    "PatchPrior",
    "RealNVPConfig",
    "Squeeze",
    "Standardise",
    "TarFlowConfig",
    "available_flows",
    "build_flow",
    "check_flow",
    "glow",
    "load_flow",
    "realnvp",
    "save_flow",
    "tarflow",
]
