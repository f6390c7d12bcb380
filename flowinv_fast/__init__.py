"""Image inverse problems with a normalizing-flow prior and a normalizing-flow noise model.

From measurements y = f(x) + noise, ``reconstruct`` finds the most probable image x, for any
differentiable f and any noise whose density can be evaluated (Whang, Lei, Dimakis, ICML 2021).
"""

from importlib.metadata import PackageNotFoundError, version

from . import baselines, generators, metrics, noise, operators, ops
from ._base.backend import build_info, show_config
from ._base.errors import ArgumentError, SolverError
from .flows import (
    Flow,
    FrozenFlow,
    GlowConfig,
    RealNVPConfig,
    available_flows,
    glow,
    load_flow,
    realnvp,
    save_flow,
)
from .reconstruction.posterior import sample_posterior
from .reconstruction.reconstruct import Reconstruction, measure, reconstruct
from .reconstruction.recovery import recovery_bound
from .reconstruction.separate import separate
from .reconstruction.solvers import Status

try:
    __version__ = version("flowinv_fast")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Flow",
    "FrozenFlow",
    "GlowConfig",
    "RealNVPConfig",
    "Reconstruction",
    "SolverError",
    "Status",
    "available_flows",
    "baselines",
    "build_info",
    "generators",
    "glow",
    "load_flow",
    "measure",
    "metrics",
    "noise",
    "operators",
    "ops",
    "realnvp",
    "reconstruct",
    "recovery_bound",
    "sample_posterior",
    "save_flow",
    "separate",
    "show_config",
]
