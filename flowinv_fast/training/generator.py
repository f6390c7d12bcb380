"""Training of a DCGAN (non-saturating loss) or a VAE (Bernoulli decoder): resumable, samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.errors import SolverError, require
from ..data.sources import Stored
from ..flows.conditioner import conditioner_precision
from ..generators.io import save_generator
from ..generators.nets import DCGAN, VAE, GeneratorConfig, companion, make
from .config import TrainConfig
from .trainer import Trainer


@dataclass(frozen=True)
class GeneratorTrainConfig(TrainConfig):
    """How to train a generator: the options of every training.

    ``epochs`` is rounded up to whole ones. ``seed`` fixes weights and latents; the order of the
    images is that of the epoch. The learning rate and Adam's betas are the DCGAN paper's for a GAN.

    >>> GeneratorTrainConfig(epochs=5).lr
    0.0002
    """

    lr: float = 2e-4


class GeneratorTrainer(Trainer):
    """Trains a DCGAN or a VAE and leaves its files in a folder.

    generator.safetensors   the weights, ready for ``load_generator``
    state.safetensors       everything needed to go on where training stopped, the discriminator
                            or encoder among it
    log.jsonl               one line per evaluation: step, epoch, loss, seconds
    samples.png             samples of the latest evaluation

    ``loss`` is the mean over the steps of the epoch: of the discriminator for a DCGAN, the negative
    evidence lower bound in nats per image for a VAE. Where there are held-out images,
    ``held_out_loss`` is the same for them. Files, resuming and arguments are those of every
    ``Trainer``; one process trains.

    Args:
        images: uint8 (N, C, H, W), N at least 2, or a source of ``flowinv_fast.data``.
        held_out: uint8 (M, C, H, W), never trained on, or None.
    Raises:
        ArgumentError: images that do not fit the architecture, a folder with another
            configuration's state, or several processes.
        SolverError: a loss that is not finite.

    >>> import tempfile
    >>> images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    >>> config = GeneratorConfig((1, 8, 8), "vae", latent_dim=2, width=4)
    >>> how, folder = GeneratorTrainConfig(epochs=1, batch=8), tempfile.mkdtemp()
    >>> trainer = GeneratorTrainer(config, how, images, None, folder, progress=False)
    >>> trainer.run()["step"], trainer.model.sample(3).shape
    (4, torch.Size([3, 1, 8, 8]))
    """

    weights_file = "generator.safetensors"
    whole_epochs = True
    fewest_images = 2  # for batch normalisation
    needs_held_out = False
    config: GeneratorConfig
    train_config: GeneratorTrainConfig

    def _build(self) -> None:
        self._total, self._count = 0.0, 0  # of the losses of this epoch
        config, train_config = self.config, self.train_config
        self.generator = make(config).to(self.device)
        self.companion = companion(config).to(self.device)
        self.random = torch.Generator(self.device).manual_seed(train_config.seed)
        betas = (0.5, 0.999) if config.kind == "dcgan" else (0.9, 0.999)
        self.networks = {"generator": self.generator, "companion": self.companion}
        self.optimisers = {
            f"adam_{name}": torch.optim.Adam(network.parameters(), lr=train_config.lr, betas=betas)
            for name, network in self.networks.items()
        }

    def _prepare(self, fresh: bool) -> None:
        if self.train_config.compile:
            for network in self.networks.values():
                network.compile()

    def _stored(self, images: Tensor) -> Stored:
        return Stored(images)

    def _state(self) -> dict[str, Tensor]:
        losses = torch.tensor([self._total, self._count], dtype=torch.float64)
        return super()._state() | {"random": self.random.get_state(), "losses": losses}

    def _load_state(self, tensors: dict[str, Tensor]) -> None:
        super()._load_state(tensors)
        self.random.set_state(tensors["random"])
        total, count = tensors["losses"].tolist()
        self._total, self._count = total, int(count)

    def _update(self, images: Tensor, first: int) -> float:
        if self.step % self.steps_per_epoch == 0:
            self._total, self._count = 0.0, 0
        x = images.float() / 255
        step = _gan_step if self.config.kind == "dcgan" else _vae_step
        generator, other = self.optimisers.values()
        optimisers, precision = (generator, other), self.train_config.precision
        loss = step(self.generator, self.companion, optimisers, x, self.random, precision)
        if not math.isfinite(loss):
            epoch = self.step // self.steps_per_epoch + 1
            raise SolverError(
                f"training: the loss is not finite in epoch {epoch}; try a smaller lr"
            )
        self._total, self._count = self._total + loss, self._count + 1
        return loss

    def _measure(self, batch: int) -> dict[str, float | None]:
        loss = round(self._total / self._count, 4) if self._count else None
        found: dict[str, float | None] = {"loss": loss}
        if self.held_out is not None:
            found["held_out_loss"] = round(self._held_out_loss(self.held_out, batch), 4)
        return found

    def _held_out_loss(self, images: Tensor, batch: int) -> float:
        """The loss on images that are not trained on, by latents of a seed of its own."""
        generator, other = self.model, copy.deepcopy(self.companion).eval()
        random, total = torch.Generator(self.device).manual_seed(1), 0.0
        for part in images.split(batch):
            x = part.to(self.device).float() / 255
            z = _latents(generator, x, random)
            if self.config.kind == "dcgan":
                loss = _discriminator_loss(other(x), other(generator(z)))
            else:
                loss = _negative_bound(generator, other, x, z)
            total += loss.item() * len(x)
        return total / len(images)

    @property
    def model(self) -> DCGAN | VAE:
        """A copy of the generator as it is now."""
        model = copy.deepcopy(self.generator).eval().requires_grad_(False)
        model.info = self.facts
        return model

    def _samples(self, count: int, generator: torch.Generator) -> Tensor:
        return self.model.sample(count, generator)

    def _save_weights(self, path: Path, info: dict[str, Any]) -> None:
        save_generator(self.generator, path, info)

    def _sentence(self, result: dict[str, Any]) -> str:
        minutes = result["seconds"] / 60
        return f"epoch {result['epoch']:g}: loss {result['loss']:.4f} after {minutes:.1f} min"

    def _check_processes(self) -> None:
        require(self.world == 1, self._name, "config", "a flow's in several processes", self.config)


# --- the losses -----------------------------------------------------------------------------------

_Optimisers = tuple[torch.optim.Optimizer, torch.optim.Optimizer]


def _latents(generator: DCGAN | VAE, x: Tensor, random: torch.Generator) -> Tensor:
    """Standard normal draws (B, latent_dim), one for each image of x."""
    return torch.randn(len(x), generator.latent_dim, generator=random, device=x.device)


def _run(network: nn.Module, x: Tensor, precision: str) -> Tensor:
    """The network multiplies in this precision; what it returns, and the loss, are float32."""
    with conditioner_precision(precision, x.device):
        return network(x).float()


def _update(optimisers: Iterable[torch.optim.Optimizer], loss: Tensor, precision: str) -> None:
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    with conditioner_precision(precision, loss.device):
        loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def _discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), mean over the batch, from logits (B, 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def _gan_step(
    generator: DCGAN | VAE,
    discriminator: nn.Module,
    optimisers: _Optimisers,
    x: Tensor,
    random: torch.Generator,
    precision: str = "fp32",
) -> float:
    """One step of the discriminator, one of the generator; returns the discriminator's loss."""
    fake = _run(generator, _latents(generator, x, random), precision)
    real_logit = _run(discriminator, x, precision)
    loss = _discriminator_loss(real_logit, _run(discriminator, fake.detach(), precision))
    _update(optimisers[1:], loss, precision)
    fooled = F.softplus(-_run(discriminator, fake, precision)).mean()  # the non-saturating loss
    _update(optimisers[:1], fooled, precision)
    return loss.item()


def _negative_bound(
    decoder: nn.Module, encoder: nn.Module, x: Tensor, noise: Tensor, precision: str = "fp32"
) -> Tensor:
    """The negative evidence lower bound in nats per image, mean over the batch.

    -log p(x | z) + KL(q(z | x) || N(0, I)) with Bernoulli pixels and z = mean + std * noise; NaN
    where the decoder's image is not finite.
    """
    mean, log_variance = _run(encoder, x, precision).chunk(2, 1)
    image = _run(decoder, mean + (0.5 * log_variance).exp() * noise, precision)
    if not bool(torch.isfinite(image).all()):  # what binary_cross_entropy does not take
        return x.new_tensor(math.nan)
    likelihood = F.binary_cross_entropy(image, x, reduction="sum")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (likelihood + divergence) / len(x)


def _vae_step(
    decoder: DCGAN | VAE,
    encoder: nn.Module,
    optimisers: _Optimisers,
    x: Tensor,
    random: torch.Generator,
    precision: str = "fp32",
) -> float:
    """One step of both networks on the negative evidence lower bound; returns it."""
    loss = _negative_bound(decoder, encoder, x, _latents(decoder, x, random), precision)
    if loss.requires_grad:  # else it is not finite
        _update(optimisers, loss, precision)
    return loss.item()
