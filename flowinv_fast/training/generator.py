"""Training of a DCGAN (non-saturating loss) or a VAE (Bernoulli decoder)."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .._base.errors import SolverError, is_whole, require
from ..data.images import image_grid, require_images, save_png
from ..generators.io import save_generator
from ..generators.nets import GeneratorConfig, companion, make


@dataclass(frozen=True)
class GeneratorTraining:
    """How to train; betas and step size of Adam are the DCGAN paper's for a GAN.

    Args:
        epochs: passes over the images, rounded up. batch: images per step. lr: step size of Adam.
        seed: fixes weights and latents; the order of the images is that of the epoch.
    """

    epochs: float = 10
    batch: int = 128
    lr: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr"):
            value = getattr(self, name)
            good = isinstance(value, (int, float)) and 0 < value < math.inf
            require(good, "GeneratorTraining", name, "a positive number", value)
        require(is_whole(self.batch), "GeneratorTraining", "batch", "an integer", self.batch)
        good = is_whole(self.seed) and self.seed < 2**62
        require(good, "GeneratorTraining", "seed", "an integer in 0 .. 2^62 - 1", self.seed)


def train_generator(
    config: GeneratorConfig,
    training: GeneratorTraining,
    images: Tensor,
    folder: str | os.PathLike,
    device: str | torch.device = "cpu",
    info: dict | None = None,
    progress: bool = True,
    minutes: float = float("inf"),
) -> nn.Module:
    """Train a generator and leave generator.safetensors, samples.png and log.jsonl in a folder.

    Args:
        config: architecture. training: how.
        images: uint8 (N, C, H, W).
        folder: where the files go; created; replaced whole after every epoch.
        minutes: stop after the epoch that passes them.
    Returns:
        The trained generator in evaluation mode.
    Raises:
        ArgumentError: images that do not fit the architecture.
        SolverError: a loss that is not finite.
    """
    require_images("train_generator", "images", images, config.shape, 2)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        generator, other = make(config).to(device), companion(config).to(device)
    random = torch.Generator(device).manual_seed(training.seed)
    betas = (0.5, 0.999) if config.kind == "dcgan" else (0.9, 0.999)
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=training.lr, betas=betas)
    optimisers = adam(generator), adam(other)
    step = _gan_step if config.kind == "dcgan" else _vae_step
    started, count = time.perf_counter(), len(images) // training.batch or 1
    for epoch in range(math.ceil(training.epochs)):
        generator.train(), other.train()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        total = 0.0
        for i in tqdm(range(count), f"epoch {epoch + 1}", disable=not progress, unit="step"):
            chosen = order[i * training.batch :][: training.batch]
            x = images[chosen].to(device).float() / 255
            total += step(generator, other, optimisers, x, random)
        if not total < float("inf"):
            raise SolverError(f"train_generator: the loss is not finite in epoch {epoch + 1}")
        facts = {
            **(info or {}), "epoch": epoch + 1, "images": len(images),
            "loss": round(total / count, 4), "training": asdict(training),
            "seconds": round(time.perf_counter() - started, 1), "torch": torch.__version__,
        }  # fmt: skip
        generator.eval()
        generator.info = facts
        save_generator(generator, folder / "generator.safetensors", facts)
        fixed = torch.Generator(device).manual_seed(0)
        save_png(image_grid(generator.sample(64, fixed), 8), folder / "samples.png", zoom=2)
        with open(folder / "log.jsonl", "a") as log:
            log.write(json.dumps(facts) + "\n")
        if time.perf_counter() - started > 60 * minutes:
            break
    return generator.requires_grad_(False)


def _latents(generator, x: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(len(x), generator.latent_dim, generator=random, device=x.device)


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _gan_step(generator, discriminator, optimisers, x, random) -> float:
    """One step of the discriminator, one of the generator; returns the discriminator's loss."""
    fake = generator(_latents(generator, x, random))
    loss = F.softplus(-discriminator(x)).mean() + F.softplus(discriminator(fake.detach())).mean()
    _update(optimisers[1], loss)
    _update(optimisers[0], F.softplus(-discriminator(fake)).mean())
    return loss.item()


def _vae_step(decoder, encoder, optimisers, x, random) -> float:
    """One step on the negative evidence lower bound, in nats per image."""
    mean, log_variance = encoder(x).chunk(2, 1)
    noise = _latents(decoder, x, random)
    z = mean + (0.5 * log_variance).exp() * noise
    image = decoder(z)
    if not bool(torch.isfinite(image).all()):  # what binary_cross_entropy does not take
        return math.nan
    likelihood = F.binary_cross_entropy(image, x, reduction="sum")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    loss = (likelihood + divergence) / len(x)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()
    return loss.item()
