"""Image inverse problems with a normalizing-flow prior and a normalizing-flow noise model.

From measurements y = f(x) + noise, ``reconstruct`` finds the most probable image x, for any
differentiable f and any noise whose density can be evaluated (Whang, Lei, Dimakis, ICML 2021).
"""

from . import baselines, generators, metrics, noise, operators, ops
from ._base.backend import build_info, show_config
from ._base.errors import ArgumentError, DataError, ResultWarning, SolverError
from ._base.version import VERSION as __version__
from .flows import (
    Flow,
    FrozenFlow,
    GlowConfig,
    PatchPrior,
    RealNVPConfig,
    TarFlowConfig,
    available_flows,
    check_flow,
    glow,
    load_flow,
    realnvp,
    save_flow,
    tarflow,
)
from .reconstruction import strategies
from .reconstruction.objectives import CSGM, MAP, MLE, AsimLikelihood, AsimProxy
from .reconstruction.posterior import PosteriorSamples, sample_posterior
from .reconstruction.posterior_mean import PosteriorMean
from .reconstruction.reconstruct import measure, reconstruct
from .reconstruction.recovery import recovery_bound
from .reconstruction.result import Reconstruction
from .reconstruction.separate import separate
from .reconstruction.solvers import Status
from .reconstruction.strategies import Stage, Strategy
from .training.laws import load_noise, save_noise

__all__ = [
    "ArgumentError",
    "AsimLikelihood",
    "AsimProxy",
    "CSGM",
    "DataError",
    "Flow",
    "FrozenFlow",
    "GlowConfig",
    "MAP",
    "MLE",
    "PatchPrior",
    "PosteriorMean",
    "PosteriorSamples",
    "RealNVPConfig",
    "Reconstruction",
    "ResultWarning",
    "SolverError",
    "Stage",
    "Status",
    "Strategy",
    "TarFlowConfig",
    "__version__",
    "available_flows",
    "baselines",
    "build_info",
    "check_flow",
    "generators",
    "glow",
    "load_flow",
    "load_noise",
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
    "save_noise",
    "separate",
    "show_config",
    "strategies",
    "tarflow",
]
