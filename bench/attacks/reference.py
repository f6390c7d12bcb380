"""What results are checked against: formulas in float64 on plain torch, none of the package's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor], Tensor]
LOG_2PI = math.log(2 * math.pi)


def sums(x: Tensor) -> Tensor:
    """Over everything but the batch."""
    return x.flatten(1).sum(1)


def normal_log_prob(r: Tensor, std: float | Tensor = 1.0, mean: float | Tensor = 0.0) -> Tensor:
    """log N(r; mean, std^2), (B,)."""
    std = torch.as_tensor(std, dtype=torch.float64)
    return sums((-0.5 * ((r - mean) / std) ** 2 - std.log() - 0.5 * LOG_2PI).expand(r.shape))


# --- noise ----------------------------------------------------------------------------------------


def sinusoidal_std(level: Tensor, shape: tuple, form: str, period: float, low: float, high: float):
    """Of row k, as docs/method.md says: (B or 1, 1, H, 1) for images, (B or 1, m) for m rows."""
    rows = torch.arange(shape[1] if len(shape) == 3 else shape[0], dtype=torch.float64)
    wave = torch.exp(torch.sin(2 * math.pi * rows / period))
    wave = wave / math.e if form == "exp" else (wave - 1) / (math.e - 1)
    std = (level.double().reshape(-1, 1) * wave).clamp(low, high)
    return std[:, None, :, None] if len(shape) == 3 else std


def radial_std(level: Tensor, shape: tuple, rate: float, low: float, high: float) -> Tensor:
    """By the distance from ((H - 1) // 2, (W - 1) // 2): (B or 1, 1, H, W)."""
    height, width = shape[1:] if len(shape) == 3 else (shape[0], 1)
    row = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) // 2
    column = torch.arange(width, dtype=torch.float64) - (width - 1) // 2
    pattern = torch.exp(-rate * (row**2 + column**2))
    std = (level.double().reshape(-1, 1, 1) * pattern).clamp(low, high)
    return std[:, None] if len(shape) == 3 else std.flatten(1)


def placed_log_prob(r: Tensor, places: Tensor, flow: Function, size: int, std: float, scale: float):
    """Of patches under a flow and a Gaussian on the pixels they leave."""
    places = places.expand(len(r), -1, 3) if places.dim() == 2 else places
    total, covered = [], torch.zeros_like(r, dtype=torch.bool)
    for image, own in enumerate(places.tolist()):
        value = r.new_zeros(())
        for channel, top, left in own:
            area = (channel, slice(top, top + size), slice(left, left + size))
            patch = r[(image, *area)][None, None] / scale
            value = value + flow(patch)[0] - size**2 * math.log(scale)
            covered[(image, *area)] = True
        total.append(value)
    each = -0.5 * (r / std) ** 2 - math.log(std) - 0.5 * LOG_2PI
    return torch.stack(total) + sums(each.masked_fill(covered, 0))


# --- operators ------------------------------------------------------------------------------------


def blurred(x: Tensor, kernel: Tensor) -> Tensor:
    """True convolution with zeros outside, by shifts."""
    height, width = kernel.shape
    padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2))
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            part = padded[..., i : i + x.shape[2], j : j + x.shape[3]]
            out = out + kernel[height - 1 - i, width - 1 - j].double() * part
    return out


def block_means(x: Tensor, factor: int) -> Tensor:
    """Means over blocks."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.mean((3, 5))


# --- a RealNVP, from its weights alone ------------------------------------------------------------


class RealNVP:
    """The multi-scale RealNVP of docs/method.md, walked over a state dict in float64."""

    def __init__(self, flow: Any):
        self.config = flow.config
        self.shape = flow.config.shape
        self.state = {k: v.detach().double() for k, v in flow.state_dict().items()}

    def _weights(self, name: str) -> tuple[Tensor, Tensor]:
        direction, gain = self.state[f"{name}.direction"], self.state[f"{name}.gain"]
        norm = direction.flatten(1).square().sum(1).sqrt().clamp_min(1e-12)
        return direction * (gain / norm).view(-1, 1, 1, 1), self.state[f"{name}.bias"]

    def _network(self, name: str, x: Tensor) -> Tensor:
        layer = lambda part, h: F.conv2d(h, *self._weights(f"{name}.{part}"), padding=1)
        h = layer("first", x)
        for block in range(self.config.blocks):
            inner = layer(f"blocks.{block}.before", h.clamp_min(0))
            h = h + layer(f"blocks.{block}.after", inner.clamp_min(0))
        return layer("last", h.clamp_min(0))

    def _scale_and_shift(self, index: int, mask: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """log s and t for every element, zero where the coupling lets through."""
        gain = self.state[f"layers.{index}.gain"].view(-1, 1, 1)
        if mask in ("even", "odd"):
            row = torch.arange(x.shape[2])[:, None]
            moved = (row + torch.arange(x.shape[3])) % 2 == int(mask == "odd")
            raw, shift = self._network(f"layers.{index}.conditioner", x * ~moved).chunk(2, 1)
            return gain * raw.tanh() * moved, shift * moved
        first, second = x.chunk(2, 1)
        seen = second if mask == "first" else first
        raw, shift = self._network(f"layers.{index}.conditioner", seen).chunk(2, 1)
        halves = [(v, 0 * v) if mask == "first" else (0 * v, v) for v in (gain * raw.tanh(), shift)]
        return torch.cat(halves[0], 1), torch.cat(halves[1], 1)

    def _plan(self) -> list[str]:
        plan = ["logit"] if self.config.support == "bounded" else []
        plan.append("standardise")
        for _ in range(self.config.scales - 1):
            plan += ["even", "odd", "even", "squeeze", "first", "second", "first", "out"]
        return plan + ["even", "odd", "even", "odd"]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, N) and log|det dz/dx| (B,)."""
        logdet, latents, alpha = x.new_zeros(len(x)), [], self.config.alpha
        for index, step in enumerate(self._plan()):
            if step == "logit":
                u = alpha + (1 - 2 * alpha) * x
                x = u.log() - (1 - u).log()
                logdet = logdet + sums(math.log(1 - 2 * alpha) - u.log() - (1 - u).log())
            elif step == "standardise":
                std = self.state[f"layers.{index}.std"]
                x = (x - self.state[f"layers.{index}.mean"]) / std
                logdet = logdet - std.log().sum()
            elif step == "squeeze":
                x = F.pixel_unshuffle(x, 2)
            elif step == "out":
                x, gone = x.chunk(2, 1)
                latents.append(gone.flatten(1))
            else:
                scale, shift = self._scale_and_shift(index, step, x)
                x, logdet = x * scale.exp() + shift, logdet + sums(scale)
        return torch.cat([*latents, x.flatten(1)], 1), logdet

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) and log|det dx/dz| (B,)."""
        plan, (channels, height, width) = self._plan(), self.shape
        sizes = []
        for _ in range(self.config.scales - 1):
            channels, height, width = 2 * channels, height // 2, width // 2
            sizes.append((channels, height, width))
        rest = (channels, height, width)
        parts = z.split([*(math.prod(s) for s in sizes), math.prod(rest)], 1)
        gone = [part.view(-1, *size) for part, size in zip(parts, sizes)]
        x, logdet, alpha = parts[-1].view(-1, *rest), z.new_zeros(len(z)), self.config.alpha
        for index, step in reversed(list(enumerate(plan))):
            if step == "logit":
                u = torch.sigmoid(x)
                logdet = logdet + sums(u.log() + (1 - u).log() - math.log(1 - 2 * alpha))
                x = (u - alpha) / (1 - 2 * alpha)
            elif step == "standardise":
                std = self.state[f"layers.{index}.std"]
                x, logdet = x * std + self.state[f"layers.{index}.mean"], logdet + std.log().sum()
            elif step == "squeeze":
                x = F.pixel_shuffle(x, 2)
            elif step == "out":
                x = torch.cat([x, gone.pop()], 1)
            else:
                scale, shift = self._scale_and_shift(index, step, x)
                x, logdet = (x - shift) * (-scale).exp(), logdet - sums(scale)
        return x, logdet

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (B,)."""
        z, logdet = self.encode(x)
        return normal_log_prob(z) + logdet


class Affine:
    """x = mean + std z, elementwise."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean.double(), std.double()

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|det dx/dz|."""
        x = self.mean + self.std * z.view(-1, *self.mean.shape)
        return x, self.std.log().sum().expand(len(z))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (B,)."""
        return normal_log_prob(x, self.std, self.mean)
