"""The optimisation loop."""

from .gradient import Solution, Status, minimise

__all__ = ["Solution", "Status", "minimise"]
