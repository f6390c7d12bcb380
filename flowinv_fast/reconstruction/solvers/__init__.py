"""The optimisation loops, and plans that combine them."""

from ..strategies import STRATEGIES, Strategy
from .adam import Solution, Status, minimise
from .lbfgs import lbfgs

__all__ = ["STRATEGIES", "Solution", "Status", "Strategy", "lbfgs", "minimise"]
