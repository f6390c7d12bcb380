"""What a report shows of certainty: posterior draws, and the bound of Theorem 4.1."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from .._base.errors import ResultWarning
from ..flows import Flow
from ..noise import Gaussian, Sinusoidal
from ..operators import Identity
from ..reconstruction.objectives import MAP
from ..reconstruction.posterior import sample_posterior
from ..reconstruction.reconstruct import measure
from ..reconstruction.recovery import recovery_bound
from .cells import Arrays
from .solving import solved

_SOLVE = {"strategy": "adam", "start": "measurement", "lr": 0.1}


def posterior(flow: Flow, truth: Tensor, steps: int, seed: int) -> tuple[dict[str, Any], Arrays]:
    """Draws of the posterior under 2-D sinusoidal noise: facts, and pictures as arrays.

    Args:
        flow: the prior.
        truth: images (B, C, H, W).
        steps: paths of the chains' warm-up.
        seed: of the noise and the chains.
    """
    noise, same = Sinusoidal(level=0.2, form="exp"), Identity()
    y = measure(truth, same, noise, torch.Generator().manual_seed(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)  # "r_hat" tells it
        samples = sample_posterior(
            y, same, flow, noise, warm_up=steps, seed=seed, space="image", progress=False
        )
    z = (samples.mean - truth) / samples.std.clamp_min(1e-3)
    facts = {
        "samples": len(samples.x),
        "warm_up": steps,
        "r_hat": round(samples.r_hat.median().item(), 4),
        "z": round(z.square().mean().sqrt().item(), 4),
        "acceptance": round(samples.acceptance.mean().item(), 4),
        "top": round(3 * samples.std.mean().item(), 4),
        "psnr_of_mean": [round(v, 4) for v in metrics.psnr(samples.mean, truth).tolist()],
    }
    pictures = {"truth": truth, "y": y, "mean": samples.mean, "std": samples.std}
    return facts, {name: images.numpy() for name, images in pictures.items()}


def bound(flow: Flow, truth: Tensor, steps: int, seed: int) -> dict[str, Any]:
    """Theorem 4.1 at reconstructions from Gaussian noise, beside the distance to the truth.

    Args:
        flow: the prior, not frozen.
        truth: images (B, C, H, W).
        steps, seed: of the solve and the noise.
    """
    std, same = 0.2, Identity()
    noise = Gaussian(std)
    y = measure(truth, same, noise, torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {"steps": steps, "seed": seed, **_SOLVE}
    found = solved(y, same, flow, noise, objective=MAP(1.0, space="image"), **options)
    norm = lambda t: t.flatten(1).norm(dim=1)
    estimate = recovery_bound(flow, found.x, norm(y - truth), std, 1e-2)
    columns = {
        "mu": estimate.mu,
        "delta_norm": norm(y - truth),
        "bound": estimate.bound,
        "distance": norm(found.x - truth),
        "psnr": metrics.psnr(found.x, truth),
    }
    number = lambda v: round(float(v), 4) if math.isfinite(v) else None  # no bound: JSON's null
    images = [
        {"image": i, **{k: number(v[i]) for k, v in columns.items()}} for i in range(len(truth))
    ]
    return {"std": std, "images": images}
