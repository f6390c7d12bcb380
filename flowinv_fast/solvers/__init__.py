"""The optimisation loops, and plans that combine them."""

from .gradient import Solution, Status, minimise
from .lbfgs import lbfgs
from .strategies import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Solution", "Status", "Strategy", "lbfgs", "minimise"]
