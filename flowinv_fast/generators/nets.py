"""DCGAN (Radford et al., 2016) and a convolutional VAE (Kingma and Welling, 2014)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._base.errors import is_whole, require


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that fixes the shape of a generator.

    Args:
        shape: (C, H, W) of the images; H and W equal, 4 or 7 times a power of two: 28, 32, 56, 64.
        kind: "dcgan" or "vae".
        latent_dim: numbers in a latent.
        width: channels of the last hidden layer; doubled at every halving of the size.
    Raises:
        ArgumentError: a value out of its range.

    >>> GeneratorConfig((1, 28, 28), "vae").doublings
    2
    """

    shape: tuple[int, int, int]
    kind: str = "dcgan"
    latent_dim: int = 64
    width: int = 32

    def __post_init__(self) -> None:
        check = lambda ok, name, want: require(
            ok, "GeneratorConfig", name, want, getattr(self, name)
        )
        good = isinstance(self.shape, (tuple, list)) and len(self.shape) == 3
        check(good and all(is_whole(n, 1) for n in self.shape), "shape", "three positive sizes")
        object.__setattr__(self, "shape", tuple(self.shape))
        side = self.shape[1]
        doublings = math.log2(side / self.base) if side >= 8 else 0.0
        good = side == self.shape[2] and doublings >= 1 and doublings.is_integer()
        check(good, "shape", "H = W = 4 or 7 times a power of two, from 8 on")
        check(self.kind in _KINDS, "kind", "'dcgan' or 'vae'")
        check(is_whole(self.latent_dim, 1), "latent_dim", "an integer of at least 1")
        check(is_whole(self.width, 1), "width", "an integer of at least 1")

    @property
    def base(self) -> int:
        """Side of the smallest map."""
        return 7 if self.shape[1] % 7 == 0 else 4

    @property
    def doublings(self) -> int:
        """Layers that double the side."""
        return int(math.log2(self.shape[1] / self.base))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in the header of a weights file."""
        return asdict(self)


def _upward(config: GeneratorConfig) -> nn.Sequential:
    """Latent (B, latent_dim) to image (B, C, H, W) in (0, 1)."""
    channels = config.width * 2 ** (config.doublings - 1)
    layers: list[nn.Module] = [
        nn.Linear(config.latent_dim, channels * config.base**2, bias=False),
        nn.Unflatten(1, (channels, config.base, config.base)),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    for _ in range(config.doublings - 1):
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
        ]
        channels //= 2
    layers += [nn.ConvTranspose2d(channels, config.shape[0], 4, 2, 1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def _downward(config: GeneratorConfig, outputs: int, normalise: bool) -> nn.Sequential:
    """Image to numbers: the discriminator of a DCGAN, or the encoder of a VAE."""
    layers: list[nn.Module] = []
    before, channels = config.shape[0], config.width
    for i in range(config.doublings):
        layers.append(nn.Conv2d(before, channels, 4, 2, 1))
        if normalise and i > 0:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.LeakyReLU(0.2))
        before, channels = channels, 2 * channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * config.base**2, outputs))


class _Generator(nn.Module):
    """x = G(z) for latents z ~ N(0, I), which a kind of generator is trained for in its own way.

    Attributes: ``shape`` (C, H, W) of an image, ``latent_dim`` numbers in a latent, ``config`` the
    architecture, ``info`` where it comes from (filled by ``load_generator``).
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.shape, self.latent_dim = config.shape, config.latent_dim
        self.generator = _upward(config)
        self.info: dict[str, Any] = {}

    def forward(self, z: Tensor) -> Tensor:
        """G(z): latents (B, latent_dim) to images (B, C, H, W) in (0, 1)."""
        return self.generator(z)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the generator computes in."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the model: G of standard normal latents.

        Args:
            n: how many.
            generator: of the latents, on the weights' device; None: torch's own.
        Returns:
            Images (n, C, H, W) in (0, 1).
        Raises:
            ArgumentError: a generator in training mode, whose batch normalisation would mix the
                draws and learn from them.

        >>> DCGAN(GeneratorConfig((1, 8, 8), width=4)).eval().sample(3).shape
        torch.Size([3, 1, 8, 8])
        """
        wanted = "one in evaluation mode, after generator.eval()"
        require(not self.training, "sample", "generator", wanted, "one in training mode")
        z = torch.randn(
            n, self.latent_dim, generator=generator, device=self.device, dtype=self.dtype
        )
        return self(z)


class DCGAN(_Generator):
    """The generator of a DCGAN: transposed convolutions with batch normalisation.

    Called with latents (B, latent_dim), it gives images (B, C, H, W) in (0, 1).

    Args:
        config: its architecture.

    >>> generator = DCGAN(GeneratorConfig((1, 8, 8), "dcgan", latent_dim=5, width=4)).eval()
    >>> generator(torch.zeros(3, 5)).shape
    torch.Size([3, 1, 8, 8])
    """


class VAE(_Generator):
    """The decoder of a VAE: the mean image of a latent.

    Called with latents (B, latent_dim), it gives images (B, C, H, W) in (0, 1).

    Args:
        config: its architecture.

    >>> generator = VAE(GeneratorConfig((3, 8, 8), "vae", latent_dim=5, width=4)).eval()
    >>> generator(torch.zeros(2, 5)).shape
    torch.Size([2, 3, 8, 8])
    """


_KINDS: dict[str, type[DCGAN] | type[VAE]] = {"dcgan": DCGAN, "vae": VAE}


def make(config: GeneratorConfig) -> DCGAN | VAE:
    """An untrained generator of the configured kind, its weights by torch's generator."""
    return _KINDS[config.kind](config)


def companion(config: GeneratorConfig) -> nn.Sequential:
    """The second network of a training, images (B, C, H, W) to numbers.

    The discriminator of a DCGAN gives one logit (B, 1), the encoder of a VAE the mean and the
    log-variance of the latent, (B, 2 latent_dim).
    """
    if config.kind == "dcgan":
        return _downward(config, 1, normalise=True)
    return _downward(config, 2 * config.latent_dim, normalise=False)
