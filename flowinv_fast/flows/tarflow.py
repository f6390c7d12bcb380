"""A transformer autoregressive flow (TarFlow; Zhai et al., 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._base.errors import is_real, is_whole, require
from .base import Layer, Level, Shape
from .flow import Flow, FlowConfig
from .layers import Logit, Standardise
from .levels import LevelNetwork, NoisyStandardise


@dataclass(frozen=True)
class TarFlowConfig(FlowConfig):
    """Everything that fixes the shape of a TarFlow.

    Args:
        shape: (C, H, W) of the images.
        patch: side of the square patches; divides H and W. Of a single row (H = 1) they are pieces
            of so many numbers, and patch divides W.
        width: channels inside the transformers.
        blocks: autoregressive maps one after the other, the patches' order reversed in between.
        layers: transformer layers in each.
        heads: attention heads; divides ``width``.
        levels: lowest and highest std of noise on the images (unbounded support only): one flow of
            the densities at all levels between, ``flow.at(std)``; then ``smoothing``, one of them,
            is the level of the flow itself. None: one level.
        support, bits, alpha, smoothing: see ``FlowConfig``.
    Raises:
        ArgumentError: a value out of its range.

    Example:
        >>> import flowinv_fast as ff
        >>> config = ff.TarFlowConfig((1, 28, 28))
        >>> config.patch, config.width, config.blocks, config.layers
        (4, 128, 4, 3)
    """

    patch: int = 4
    width: int = 128
    blocks: int = 4
    layers: int = 3
    heads: int = 4
    levels: tuple[float, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch", "width", "blocks", "layers", "heads"):
            self._require(is_whole(getattr(self, name), 1), name, "an integer of at least 1")
        _, height, width = self.shape
        fits = height in (1, height // self.patch * self.patch) and width % self.patch == 0
        self._require(fits, "patch", f"a divisor of {height} and {width}")
        self._require(self.width % self.heads == 0, "heads", f"a divisor of {self.width}")
        if self.levels is not None:
            self._check_levels()

    def _check_levels(self) -> None:
        found: Any = self.levels
        good = isinstance(found, (tuple, list)) and len(found) == 2 and all(map(is_real, found))
        good = good and 0 < found[0] < found[1]
        self._require(good, "levels", "two numbers, 0 < lowest < highest")
        low, high = map(float, found)
        object.__setattr__(self, "levels", (low, high))
        inside = is_real(self.smoothing) and low <= self.smoothing <= high
        self._require(inside, "smoothing", f"one of the levels {low:g} .. {high:g}")
        unbounded = self.support == "unbounded"
        self._require(unbounded, "support", "'unbounded', with levels")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without ``levels`` where there are none, as in files from before them."""
        values = super().to_dict()
        if self.levels is None:
            del values["levels"]
        return values


def tarflow(config: TarFlowConfig) -> Flow:
    """A TarFlow: standardisation, then autoregressive maps whose orders alternate.

    ``encode``, and with it ``log_prob`` and every solve over images, is one parallel pass;
    ``decode`` makes one patch after the other. No layer has a record of the compiled engine: it
    runs on torch, frozen too.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> config = ff.TarFlowConfig((3, 8, 8), width=16, blocks=2, layers=1)
        >>> ff.tarflow(config).log_prob(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4])
    """
    layers: list[Layer[Any]] = [Logit(config.alpha)] if config.support == "bounded" else []
    shape, levels = config.shape, config.levels
    layers.append(NoisyStandardise(shape, levels[0]) if levels else Standardise(shape))
    for index in range(config.blocks):
        sizes = config.patch, config.width, config.layers, config.heads
        layers.append(AutoregressivePatches(shape, *sizes, index % 2 == 1, levels))
    flow = Flow(layers, config)
    return flow.at_each(config.smoothing) if levels else flow


class AutoregressivePatches(Layer[Tensor]):
    """Every patch is shifted and scaled by a function of the patches before it.

        z_t = (x_t - mean_t) exp(-log_std_t),   (mean_t, log_std_t) = transformer(x_1 .. x_{t-1})

    log|det dz/dx| = -sum(log_std). It starts as the identity.

    Args:
        shape: (C, H, W) of the images.
        patch: side of the square patches, in rows from top left; of a single row, their length.
        width, layers, heads: of the transformer.
        backwards: go from the last patch to the first.
        levels: lowest and highest level of noise that the transformer sees; it is at the lowest.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.tarflow import AutoregressivePatches
        >>> layer = AutoregressivePatches((1, 4, 4), patch=2, width=8, layers=1, heads=2)
        >>> x = torch.rand(3, 1, 4, 4)
        >>> z, logdet = layer.encode(x, torch.zeros(3))
        >>> torch.allclose(layer.decode(z, logdet)[0], x)
        True
    """

    def __init__(
        self,
        shape: Shape,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        backwards: bool = False,
        levels: tuple[float, float] | None = None,
    ):
        super().__init__()
        channels, height, columns = shape
        self.sides = (1 if height == 1 else patch, patch)
        fits = height % self.sides[0] == 0 and columns % patch == 0
        wanted = f"a divisor of {height} and {columns}"
        require(fits, "AutoregressivePatches", "patch", wanted, patch)
        self.shape, self.patch, self.backwards = shape, patch, backwards
        self.size = channels * math.prod(self.sides)
        self.count = math.prod(shape) // self.size
        sizes = self.count, self.size, width, layers, heads
        self.conditioner = CausalTransformer(*sizes, levels)
        self.level = None if levels is None else levels[0]

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        patches = self._patches(x)
        mean, log_std = self.conditioner(patches[:, :-1], level=self.level)
        z = (patches - mean) * torch.exp(-log_std)
        return self._image(z), logdet - log_std.flatten(1).sum(1).to(logdet.dtype)

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        latents = self._patches(z)
        known, past = latents[:, :0], self.conditioner.no_past()
        for t in range(self.count):
            mean, log_std = self.conditioner(known, past, self.level)
            patch = latents[:, t : t + 1] * torch.exp(log_std) + mean
            known = torch.cat([known, patch], 1)
            logdet = logdet + log_std.flatten(1).sum(1).to(logdet.dtype)
        return self._image(known), logdet

    def shape_after(self, shape: Shape) -> Shape:
        require(self.shape == shape, "AutoregressivePatches", "shape", f"{shape}", self.shape)
        return shape

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, T, C p p), in our order."""
        # What F.pixel_unshuffle does, which leaves an empty batch as it is.
        channels, height, width = self.shape
        down, across = self.sides
        rows = x.reshape(len(x), channels, height // down, down, width // across, across)
        patches = rows.permute(0, 2, 4, 1, 3, 5).reshape(len(x), self.count, self.size)
        return patches.flip(1) if self.backwards else patches

    def _image(self, patches: Tensor) -> Tensor:
        """Inverse of ``_patches``."""
        channels, height, width = self.shape
        down, across = self.sides
        patches = patches.flip(1) if self.backwards else patches
        sizes = height // down, width // across, channels, down, across
        rows = patches.reshape(len(patches), *sizes)
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(len(rows), *self.shape)

    def extra_repr(self) -> str:
        return f"patch={self.patch}, backwards={self.backwards}"


Past = list[list[Tensor]]  # of every layer: keys and values (B, heads, t, width / heads)


class CausalTransformer(nn.Module):
    """Mean and log-std of every patch from the patches before it; both start at zero.

    Pre-norm layers (Vaswani et al., 2017, as in GPT-2), learned positions, and a learned beginning
    in place of what comes before the first patch.

    Args:
        count: patches T of an image.
        size: numbers in a patch.
        width, layers, heads, levels: see ``TarFlowConfig``.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.tarflow import CausalTransformer
        >>> network = CausalTransformer(count=9, size=4, width=8, layers=1, heads=2)
        >>> mean, log_std = network(torch.rand(3, 8, 4))
        >>> mean.shape
        torch.Size([3, 9, 4])
    """

    def __init__(
        self,
        count: int,
        size: int,
        width: int,
        layers: int,
        heads: int,
        levels: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.beginning = nn.Parameter(torch.randn(width) / 50)
        self.positions = nn.Parameter(torch.randn(count, width) / 50)
        self.embed = nn.Linear(size, width)
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        moves = 2 * width * (2 * layers + 1)  # scale and shift of every norm
        self.of_level = None if levels is None else LevelNetwork(levels, moves)
        self.last = nn.Linear(width, 2 * size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def no_past(self) -> Past:
        """What ``forward`` remembers before the first patch."""
        return [[] for _ in self.layers]

    def forward(
        self, before: Tensor, past: Past | None = None, level: Level | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of the patches 1 .. t+1 from those before, (B, t, size): mean and log-std of each.

        Args:
            before: (B, t, size), t < T.
            past: of all but the last patch, and written to: then only what comes next is computed,
                (B, 1, size) each.
            level: of the noise, or (B,) of each image's; None: without ``levels``.
        """
        t = before.shape[1]
        h = self.embed(before if past is None else before[:, -1:])
        if past is None or t == 0:
            h = torch.cat([self.beginning.expand(len(before), 1, -1), h], 1)
        h = h + self.positions[t + 1 - h.shape[1] : t + 1]
        *moves, last = self._moves(level, before)
        for index, layer in enumerate(self.layers):
            own = moves[2 * index : 2 * index + 2]
            h = layer(h, None if past is None else past[index], *own)
        with torch.autocast(h.device.type, enabled=False):
            h = moved(self.norm(h.to(before.dtype)), last)
            mean, log_std = self.last(h).chunk(2, dim=2)
        return mean, log_std

    def _moves(self, level: Level | None, like: Tensor) -> list[Tensor | None]:
        """What the level does to each norm, see ``moved``."""
        count = 2 * len(self.layers) + 1
        if self.of_level is None or level is None:
            return [None] * count
        return list(self.of_level(level, like)[:, None].chunk(count, 2))


class CausalLayer(nn.Module):
    """Attention to what came before, then a network of each place: h + proj(attention), h + mlp.

    Args:
        width: channels.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_inside = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.inside = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        h: Tensor,
        past: list[Tensor] | None = None,
        move: Tensor | None = None,
        move_inside: Tensor | None = None,
    ) -> Tensor:
        """(B, t, width) to the same shape.

        Args:
            past: keys and values of all places before the only one of h, or empty; written to.
            move, move_inside: of the norms, see ``moved``.
        """
        batch, t, width = h.shape
        sizes = batch, t, 3, self.heads, width // self.heads
        of_heads = self.queries_keys_values(moved(self.norm(h), move)).view(sizes)
        query, key, value = of_heads.permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            past[:] = key, value
        attention = attend(query, key, value, causal=past is None)
        h = h + self.projection(attention.transpose(1, 2).reshape(batch, t, width))
        return h + self.inside(moved(self.norm_inside(h), move_inside))


def moved(h: Tensor, move: Tensor | None) -> Tensor:
    """h (1 + scale) + shift of normalised h (B, t, width).

    Args:
        move: [scale | shift], (1, 1, 2 width) or (B, 1, 2 width); None: h as it is.
    """
    if move is None:
        return h
    scale, shift = move.chunk(2, 2)
    return h * (1 + scale) + shift


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, (B, heads, t, d); ``causal``: of no later place.

    On CPUs in plain matrix products: torch's fused attention is slower there, most of all its
    gradient in bf16, and has no second derivative.
    """
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    shape, size = query.shape, key.shape[2]
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    mask = query.new_full((shape[2], size), -torch.inf).triu(1) if causal else query.new_zeros(())
    weight = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=shape[3] ** -0.5)
    return (torch.softmax(weight, 2).to(value.dtype) @ value).view(shape)
