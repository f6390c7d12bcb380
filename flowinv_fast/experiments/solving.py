"""``reconstruct`` as the experiments call it: every setting given, and nothing half solved kept."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from .._base.errors import ResultWarning
from ..protocols import ForwardOperator
from ..reconstruction.objectives import Objective
from ..reconstruction.reconstruct import reconstruct
from ..reconstruction.result import Reconstruction
from ..reconstruction.solvers import Status
from ..reconstruction.strategies import Strategy


def solved(
    y: Tensor,
    operator: ForwardOperator,
    prior: Any,
    noise: Any = None,
    *,
    objective: Objective,
    strategy: str | Strategy,
    start: str | Tensor,
    steps: int,
    lr: float,
    seed: int,
    **options: Any,
) -> Reconstruction:
    """``reconstruct`` with nothing left to its defaults, so that numbers stay when these change.

    Args are those of ``reconstruct``. Its warnings are left out: methods that believe in another
    noise, and every value of a grid, are run on purpose; the status of each image is kept instead.

    Raises:
        KeyboardInterrupt: the solve was interrupted, so that what it returned is no answer.
    """
    given: dict[str, Any] = {"objective": objective, "strategy": strategy, "start": start}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)
        found = reconstruct(
            y,
            operator,
            prior,
            noise,
            steps=steps,
            lr=lr,
            seed=seed,
            progress=False,
            **given,
            **options,
        )
    if Status.INTERRUPTED in found.status:
        raise KeyboardInterrupt
    return found
