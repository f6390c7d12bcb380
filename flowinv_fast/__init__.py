"""Image inverse problems with a normalizing-flow prior and a normalizing-flow noise model.

From measurements y = f(x) + noise, ``reconstruct`` finds the most probable image x, for any
differentiable f and any noise whose density can be evaluated (Whang, Lei, Dimakis, ICML 2021).
"""

from . import baselines, generators, metrics, noise, operators, ops
from ._base.backend import build_info, show_config
from ._base.errors import ArgumentError, SolverError
from ._base.version import VERSION as __version__
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
from .reconstruction import strategies
from .reconstruction.objectives import CSGM, MAP, MLE, AsimLikelihood, AsimProxy
from .reconstruction.posterior import sample_posterior
from .reconstruction.reconstruct import measure, reconstruct
from .reconstruction.recovery import recovery_bound
from .reconstruction.result import Reconstruction
from .reconstruction.separate import separate
from .reconstruction.solvers import Status
from .reconstruction.strategies import Stage, Strategy

__all__ = [
    "ArgumentError",
    "AsimLikelihood",
    "AsimProxy",
    "CSGM",
    "Flow",
    "FrozenFlow",
    "GlowConfig",
    "MAP",
    "MLE",
    "RealNVPConfig",
    "Reconstruction",
    "SolverError",
    "Stage",
    "Status",
    "Strategy",
    "__version__",
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
    "strategies",
]
