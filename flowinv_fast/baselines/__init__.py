"""Classical methods to compare with, as thin calls of other packages where there is one."""

from .bm3d import bm3d
from .lasso import lasso_dct
from .wiener import wiener

__all__ = ["bm3d", "lasso_dct", "wiener"]
