"""Multi-scale RealNVP (Dinh, Sohl-Dickstein, Bengio, 2016) without batch normalisation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import require
from .._base.tensors import accumulate_dtype, check_tensor
from .coupling import AffineCoupling, encode_recomputed
from .frozen import FrozenFlow
from .nets import WeightNormConv2d


@dataclass(frozen=True)
class RealNVPConfig:
    """Everything that fixes the shape of a RealNVP.

    Args:
        shape: (C, H, W) of the images.
        scales: scales; H and W must be divisible by 2^(scales - 1).
        hidden: channels inside every conditioner.
        blocks: residual blocks of every conditioner.
        support: "bounded" (a logit first: images in [0, 1]) or "unbounded" (density on all of
            R^n, needed by noise flows and better behaved as a prior).
        bits: pixel depth of the training images, for dequantisation and bits per dimension.
        alpha: margin of the logit, bounded support only.
        smoothing: standard deviation of the Gaussian noise added to training images (in units of
            the [0, 1] range), unbounded support only; 0: uniform dequantisation instead.
        mixing: Glow's invertible 1x1 convolution before every channel coupling. Such a flow learns
            faster.
    """

    shape: tuple[int, int, int]
    scales: int = 3
    hidden: int = 64
    blocks: int = 2
    support: str = "unbounded"
    bits: int = 8
    alpha: float = 0.05
    smoothing: float = 0.08
    mixing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        check = lambda ok, name, want: require(  # noqa: E731
            ok, "RealNVPConfig", name, want, getattr(self, name)
        )
        check(len(self.shape) == 3 and min(self.shape) >= 1, "shape", "three positive sizes")
        check(self.scales >= 1, "scales", "an integer of at least 1")
        factor = 2 ** (self.scales - 1)
        divisible = self.shape[1] % factor == 0 and self.shape[2] % factor == 0
        check(divisible, "shape", f"H and W divisible by {factor} for {self.scales} scales")
        check(self.hidden >= 1, "hidden", "an integer of at least 1")
        check(self.blocks >= 0, "blocks", "an integer of at least 0")
        check(self.support in ("bounded", "unbounded"), "support", "'bounded' or 'unbounded'")
        check(1 <= self.bits <= 16, "bits", "an integer in 1..16")
        check(0 < self.alpha < 0.5, "alpha", "a number in (0, 0.5)")
        check(isinstance(self.mixing, bool), "mixing", "True or False")
        check(self.smoothing >= 0, "smoothing", "a number of at least 0")

    def to_dict(self) -> dict:
        """Plain values, as stored in the header of a weights file."""
        return asdict(self)


class RealNVP(nn.Module):
    """A normalizing flow between images x (B, C, H, W) and latents z (B, N), N = C H W.

    Per scale: three affine couplings with alternating checkerboard masks, squeeze, three with
    alternating channel masks, half of the channels factored out; the last scale has four
    checkerboard couplings. log p(x) = log N(encode(x); 0, I) + log|det dz/dx|  (METHOD eq. 2).

    The first layer standardises each pixel (after the logit, where there is one) with constants
    taken from the training data by ``initialise``; its log-determinant counts.
    """

    def __init__(self, config: RealNVPConfig):
        super().__init__()
        self.config = config
        self.shape = config.shape
        self.register_buffer("location", torch.zeros(config.shape))
        self.register_buffer("spread", torch.ones(config.shape))
        self.scales = nn.ModuleList()
        channels = config.shape[0]
        for scale in range(config.scales):
            last = scale == config.scales - 1
            layers = nn.ModuleDict({"pixel": self._couplings(channels, "checkerboard", last)})
            if not last:
                layers["channel"] = self._couplings(4 * channels, "channel", False)
                channels *= 2
            self.scales.append(layers)
        self._latent_sizes = self._sizes()
        self.info: dict = {}  # provenance, filled by load_flow
        self.recompute = False  # of encode: see ``encode_recomputed``

    def _couplings(self, channels: int, kind: str, last: bool) -> nn.ModuleList:
        names = {
            "checkerboard": ("checkerboard_even", "checkerboard_odd"),
            "channel": ("channel_first", "channel_second"),
        }[kind]
        return nn.ModuleList(
            AffineCoupling(
                channels, self.config.hidden, self.config.blocks, names[i % 2],
                self.config.mixing and kind == "channel",
            )
            for i in range(4 if last else 3)
        )  # fmt: skip

    def _sizes(self) -> list[tuple[int, int, int]]:
        """Shapes of the latents factored out at each scale; the last is what remains."""
        channels, height, width = self.shape
        shapes = []
        for _ in range(self.config.scales - 1):
            channels, height, width = 2 * channels, height // 2, width // 2
            shapes.append((channels, height, width))
        return [*shapes, (channels, height, width)]

    # -- the map -----------------------------------------------------------------------------

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of an image.

        Args:
            x: (B, C, H, W) floating point; in [0, 1] for bounded support.
        Returns:
            z (B, N) and log|det dz/dx| (B,).
        Raises:
            ArgumentError: wrong shape or dtype.
        """
        self._check(x, "encode", "x", self.shape)
        logdet = self._zero_logdet(x)
        if self.config.support == "bounded":
            x, logdet = ops.logit_encode(x, logdet, self.config.alpha)
        h = (x - self.location) / self.spread
        logdet = logdet - torch.log(self.spread).sum().to(logdet.dtype)
        latents = []
        for layers in self.scales:
            h, logdet = self._encode_run(layers["pixel"], h, logdet)
            if "channel" in layers:
                h, logdet = self._encode_run(layers["channel"], ops.squeeze(h), logdet)
                h, latent = ops.factor_out(h)
                latents.append(latent)
        return torch.cat([*latents, h.flatten(1)], 1), logdet

    def _encode_run(
        self, couplings: nn.ModuleList, h: Tensor, logdet: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.recompute and torch.is_grad_enabled():
            return encode_recomputed(couplings, h, logdet)
        for coupling in couplings:
            h, logdet = coupling.encode(h, logdet)
        return h, logdet

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent.

        Args:
            z: (B, N) floating point.
        Returns:
            x (B, C, H, W) and log|det dx/dz| (B,).
        Raises:
            ArgumentError: wrong shape or dtype.
        """
        self._check(z, "decode", "z", (math.prod(self.shape),))
        logdet = self._zero_logdet(z)
        *latents, h = z.split([math.prod(s) for s in self._latent_sizes], dim=1)
        h = h.reshape(z.shape[0], *self._latent_sizes[-1])
        if not torch.is_grad_enabled():
            h = h.clone(memory_format=torch.contiguous_format)  # couplings overwrite it
        for layers in reversed(self.scales):
            if "channel" in layers:
                h = ops.factor_in(h, latents.pop())
                for coupling in reversed(layers["channel"]):
                    h, logdet = coupling.decode(h, logdet)
                h = ops.unsqueeze(h)
            for coupling in reversed(layers["pixel"]):
                h, logdet = coupling.decode(h, logdet)
        x = h * self.spread + self.location
        logdet = logdet + torch.log(self.spread).sum().to(logdet.dtype)
        if self.config.support == "bounded":
            x, logdet = ops.logit_decode(x, logdet, self.config.alpha)
        return x, logdet

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,)."""
        z, logdet = self.encode(x)
        return ops.standard_normal_log_prob(z) + logdet

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, H, W): decode(temperature * standard normal)."""
        require(n >= 0, "RealNVP.sample", "n", "a non-negative integer", n)
        z = torch.randn(
            n, math.prod(self.shape), generator=generator, device=self.location.device,
            dtype=self.location.dtype,
        )  # fmt: skip
        return self.decode(temperature * z)[0]

    def couplings(self) -> list[AffineCoupling]:
        """All couplings in the order of encode."""
        return [
            coupling
            for layers in self.scales
            for kind in ("pixel", "channel")
            if kind in layers
            for coupling in layers[kind]
        ]

    def freeze(
        self, precision: str = "fp32", device: torch.device | str | None = None
    ) -> FrozenFlow:
        """The same map with its weights fixed now, on the compiled engine: fast and small.

        Args:
            precision: "fp32", "tf32" or "bf16", see ``FrozenFlow``.
            device: where it will run; None is where the flow is.
        Raises:
            ArgumentError: a flow that is not float32, or a precision that is not to be had here.
        """
        return FrozenFlow(self, precision, device)

    # -- training helpers --------------------------------------------------------------------

    @torch.no_grad()
    def initialise(self, x: Tensor, floor: float = 1e-3) -> None:
        """Set the per-pixel standardisation from dequantised training images (B, C, H, W).

        A spread is at least ``floor``, and for unbounded support at least the smoothing: a few
        images may agree on a pixel by chance.
        """
        if self.config.support == "bounded":
            x, _ = ops.logit_encode(x, self._zero_logdet(x), self.config.alpha)
        else:
            floor = max(floor, self.config.smoothing)
        self.location.copy_(x.mean(0))
        self.spread.copy_(x.std(0).clamp_min(floor))

    def dequantise(self, x: Tensor, seed: int, offset: int = 0) -> Tensor:
        """Training noise for images x in [0, 1] (B, C, H, W); random numbers by (seed, offset).

        Bounded support, or no smoothing: uniform over each of the 2^bits grey levels. Otherwise
        Gaussian of standard deviation ``smoothing``.
        """
        if self.config.support == "bounded" or self.config.smoothing == 0:
            return ops.dequantise(x, 2**self.config.bits, seed, offset)
        std = torch.full((), self.config.smoothing, dtype=x.dtype, device=x.device)
        return ops.gaussian_noise(x, std, list(x.shape), seed, offset)

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """log p (B,) in nats to bits per dimension of 2^bits grey levels (B,).

        For uniform dequantisation this bounds the code length of the discrete image; for Gaussian
        smoothing it is the differential code length of the smoothed image on the same scale.
        """
        return self.config.bits - log_prob / (math.log(2) * math.prod(self.shape))

    def weight_norm_penalty(self) -> Tensor:
        """Sum of squared weight-normalisation gains of every convolution."""
        return sum(
            (m.gain * m.gain).sum() for m in self.modules() if isinstance(m, WeightNormConv2d)
        )

    # -- checks ------------------------------------------------------------------------------

    def _zero_logdet(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], dtype=accumulate_dtype(x.dtype))

    def _check(self, x: Tensor, function: str, name: str, shape: tuple[int, ...]) -> None:
        like = self.location
        check_tensor(f"RealNVP.{function}", name, x, shape, like.dtype, like.device)
