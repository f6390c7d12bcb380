"""The optimisation loops, each called like ``common.Solver``; ``SOLVERS`` are their names."""

from .adam import minimise
from .common import Path, Solution, Solver, Status
from .lbfgs import lbfgs

SOLVERS: dict[str, Solver] = {"adam": minimise, "lbfgs": lbfgs}

__all__ = ["SOLVERS", "Path", "Solution", "Solver", "Status", "lbfgs", "minimise"]
