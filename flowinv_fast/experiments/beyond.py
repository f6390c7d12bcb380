"""What a report shows beyond the paper: posterior draws, and the bound of Theorem 4.1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import metrics, noise, operators
from ..flows import Flow
from ..reconstruction.posterior import sample_posterior
from ..reconstruction.reconstruct import measure, reconstruct
from ..reconstruction.recovery import recovery_bound


def posterior(flow: Flow, truth: Tensor, steps: int, seed: int) -> tuple[dict, dict]:
    """Draws of the posterior under 2-D sinusoidal noise: facts, and pictures as arrays.

    Args:
        flow: the prior.
        truth: images (B, 1, H, W).
        steps: of the solve that the chain starts at; its warm-up takes twice as many.
        seed: of the noise and the chain.
    """
    law, same = noise.Sinusoidal(level=0.2, form="exp"), operators.Identity()
    y = measure(truth, same, law, torch.Generator().manual_seed(seed))
    start = reconstruct(y, same, flow, law, lr=0.1, steps=steps, seed=seed, progress=False)
    drawn = sample_posterior(
        y, same, flow, law, 40, start=start.z, warm_up=2 * steps, thin=10, tempering=1.0, seed=seed
    )
    z = (drawn.mean - truth) / drawn.std.clamp_min(1e-3)
    facts = {
        "samples": len(drawn.x), "warm_up": 2 * steps,
        "z": round(z.square().mean().sqrt().item(), 4),
        "acceptance": round(drawn.acceptance.mean().item(), 4),
        "top": round(3 * drawn.std.mean().item(), 4),
        "psnr_of_mean": [round(v, 4) for v in metrics.psnr(drawn.mean, truth).tolist()],
    }  # fmt: skip
    pictures = {"truth": truth, "y": y, "mean": drawn.mean, "std": drawn.std}
    return facts, {k: v.numpy() for k, v in pictures.items()}


def bound(flow: Flow, truth: Tensor, steps: int, seed: int) -> dict:
    """Theorem 4.1 at reconstructions from Gaussian noise, beside the distance to the truth."""
    std, same = 0.2, operators.Identity()
    law = noise.Gaussian(std)
    y = measure(truth, same, law, torch.Generator().manual_seed(seed))
    found = reconstruct(
        y, same, flow, law, objective="map-image", steps=steps, seed=seed, progress=False
    )
    norm = lambda t: t.flatten(1).norm(dim=1)
    told = recovery_bound(flow, found.x, norm(y - truth), std, 1e-2)
    columns = {
        "mu": told.mu, "delta_norm": norm(y - truth), "bound": told.bound,
        "distance": norm(found.x - truth), "psnr": metrics.psnr(found.x, truth),
    }  # fmt: skip
    number = lambda v: round(float(v), 4) if math.isfinite(v) else None  # no bound: JSON's null
    images = [
        {"image": i, **{k: number(v[i]) for k, v in columns.items()}} for i in range(len(truth))
    ]
    return {"std": std, "images": images}
