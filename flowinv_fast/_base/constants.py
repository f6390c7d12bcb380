"""Numbers and names on which Python and the compiled module must agree.

The compiled module exports them (``_C.constants``), and ``backend.constants`` holds them.
Only where there is none, under ``FLOWINV_BACKEND=torch``, the copy below serves; a test compares
the two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """What C++ exports.

    Args:
        tile: elements of an image that make one partial sum (common/image_reduce.h).
        dtypes: code of each storage type, by the name that torch gives it (common/dtype.h).
        masks: code of each mask of an affine coupling, named by the elements that it transforms.
        sigma_kinds: code of each standard deviation map of the structured noises.
        precisions: code of each precision of a frozen flow's convolutions.
    """

    tile: int
    dtypes: dict[str, int]
    masks: dict[str, int]
    sigma_kinds: dict[str, int]
    precisions: dict[str, int]


def _codes(*names: str) -> dict[str, int]:
    return {name: code for code, name in enumerate(names)}


FALLBACK = Constants(
    tile=1024,
    dtypes=_codes("float32", "float64", "bfloat16", "float16", "int64", "bool"),
    masks=_codes("checkerboard_even", "checkerboard_odd", "channel_first", "channel_second"),
    sigma_kinds=_codes("constant", "sinusoidal_exp", "sinusoidal_expm1", "radial"),
    precisions=_codes("fp32", "tf32", "bf16"),
)
