"""The same multi-scale RealNVP written with other libraries' couplings, for timing side by side.

Every contender hosts the very same conditioners, couplings, squeezes and splits. With frozen
weights it decodes with a true log-determinant; to be trained (``TRAINED``) it encodes with one.
The libraries have no checkerboard masks for images, so their couplings see flattened halves and a
wrapper lays these into an image for the convolutions, as a user of these libraries would write it.
Scale functions are each library's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowinv_fast.flows import (
    AffineCoupling,
    Flow,
    GlowConfig,
    Layer,
    RealNVPConfig,
    Squeeze,
    build_flow,
)
from flowinv_fast.flows.conditioner import convolutions_of
from flowinv_fast.flows.tarflow import AutoregressivePatches
from flowinv_fast.ops import transformed_map

# The table's letters: the shapes, hidden width 64 throughout.
MODELS = {
    "M": RealNVPConfig((1, 28, 28), scales=3, blocks=2),
    "C": RealNVPConfig((3, 64, 64), scales=3, blocks=2),
    "Mp": RealNVPConfig((1, 28, 28), scales=3, blocks=6),
    "Cp": RealNVPConfig((3, 64, 64), scales=6, blocks=10),
}


def random_flow(config: RealNVPConfig | GlowConfig, device: str, seed: int = 0) -> Flow:
    """A flow away from the identity, frozen: gains up to 0.2, raw scales of ordinary size."""
    torch.manual_seed(seed)
    flow = build_flow(config)
    with torch.no_grad():
        for gain, conditioner in zip(flow.gains(), flow.conditioners()):
            gain.uniform_(-0.2, 0.2)
            conditioner.last.gain.fill_(0.3)
    return flow.to(device).eval().requires_grad_(False)


class Folded(nn.Module):
    """A conditioner in plain torch: "unfolded" computes the weight normalisation at every call,
    "folded" did once, "channels-last" also keeps activations and weights in that layout,
    "unfolded channels-last" activations only."""

    def __init__(self, conditioner: nn.Module, how: str = "folded"):
        super().__init__()
        self.format = (
            torch.channels_last if how.endswith("channels-last") else torch.contiguous_format
        )
        self.convs = [self._weight(conv, how) for conv in convolutions_of(conditioner)]

    def _weight(self, conv, how: str) -> Callable[[Tensor], Tensor]:
        bias = conv.bias
        if how.startswith("unfolded"):
            return lambda x: F.conv2d(x, conv.weight(), bias, padding=1)
        weight = conv.weight().contiguous(memory_format=self.format)
        return lambda x: F.conv2d(x, weight, bias, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](x.contiguous(memory_format=self.format))
        for before, after in zip(self.convs[1:-1:2], self.convs[2:-1:2]):
            h = h + after(F.relu(before(F.relu(h))))
        return self.convs[-1](F.relu(h))


class Eager:
    """What a careful user writes: one mask, one network, a true log-determinant."""

    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int], how: str = "folded"):
        self.net, self.mask = Folded(coupling.conditioner, how), coupling.mask
        device = coupling.gain.device
        self.trained_gain = coupling.gain
        self.gain = coupling.gain.detach().view(-1, 1, 1)
        self.moved = transformed_map(*shape, self.mask, device=device).float()

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask.startswith("checkerboard"):
            raw, shift = self.net(z * (1 - self.moved)).chunk(2, 1)
            s = self.gain * raw.tanh() * self.moved
            return (z - shift * self.moved) * (-s).exp(), -s.flatten(1).sum(1)
        first = self.mask == "channel_first"
        seen, moved = z.chunk(2, 1)[::-1] if first else z.chunk(2, 1)
        raw, shift = self.net(seen).chunk(2, 1)
        s = self.gain * raw.tanh()
        moved = (moved - shift) * (-s).exp()
        return torch.cat([moved, seen] if first else [seen, moved], 1), -s.flatten(1).sum(1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gain = self.trained_gain.view(-1, 1, 1)
        if self.mask.startswith("checkerboard"):
            raw, shift = self.net(x * (1 - self.moved)).chunk(2, 1)
            s = gain * raw.tanh() * self.moved
            return x * s.exp() + shift * self.moved, s.flatten(1).sum(1)
        first = self.mask == "channel_first"
        seen, moved = x.chunk(2, 1)[::-1] if first else x.chunk(2, 1)
        raw, shift = self.net(seen).chunk(2, 1)
        s = gain * raw.tanh()
        moved = moved * s.exp() + shift
        return torch.cat([moved, seen] if first else [seen, moved], 1), s.flatten(1).sum(1)


class Flat(nn.Module):
    """A conditioner between flattened halves: (B, seen) to raw scales and shifts, (B, moved)."""

    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int], how: str = "folded"):
        super().__init__()
        self.net, self.shape = Folded(coupling.conditioner, how), shape
        moved = transformed_map(*shape, coupling.mask, device=coupling.gain.device).expand(shape)
        self.board = coupling.mask.startswith("checkerboard")
        moved = moved.flatten()
        self.seen_at, self.moved_at = (~moved).nonzero()[:, 0], moved.nonzero()[:, 0]

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        channels, height, width = self.shape
        if not self.board:
            out = self.net(seen.view(-1, channels // 2, height, width)).flatten(1)
            return out.chunk(2, 1)
        image = seen.new_zeros(len(seen), channels * height * width)
        image = image.index_copy(1, self.seen_at, seen).view(-1, *self.shape)
        raw, shift = self.net(image).chunk(2, 1)
        at = self.moved_at
        return raw.flatten(1).index_select(1, at), shift.flatten(1).index_select(1, at)


class Nflows:
    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int], how: str = "folded"):
        from nflows.transforms.coupling import AffineCouplingTransform

        self.shape, flat = shape, Flat(coupling, shape, how)
        net = nn.Module()
        net.forward = lambda seen, context=None: torch.cat(flat(seen)[::-1], 1)
        mask = torch.zeros(math.prod(shape))
        mask[flat.moved_at.cpu()] = 1
        self.transform = AffineCouplingTransform(mask, lambda *_: net).to(coupling.gain.device)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, logdet = self.transform.inverse(z.flatten(1))
        return x.view(-1, *self.shape), logdet

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = self.transform(x.flatten(1))
        return z.view(-1, *self.shape), logdet


class FrEIA:
    """Its couplings move the second half of the features, so a permutation stands around them."""

    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int]):
        from FrEIA.modules import AffineCouplingOneSided

        self.shape, flat = shape, Flat(coupling, shape)
        self.order = torch.cat([flat.seen_at, flat.moved_at])
        self.back = self.order.argsort()
        net = nn.Module()
        net.forward = lambda seen: torch.cat(flat(seen), 1)
        self.module = AffineCouplingOneSided(
            [(math.prod(shape),)],
            subnet_constructor=lambda *_: net,
            clamp_activation="TANH",
            split_len=len(flat.seen_at),
        )

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        (x,), logdet = self.module((z.flatten(1).index_select(1, self.order),), rev=True)
        return x.index_select(1, self.back).view(-1, *self.shape), logdet


class Normflows:
    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int]):
        from normflows.flows import AffineCoupling as Coupling

        self.shape, self.flat = shape, Flat(coupling, shape)
        net = nn.Module()
        net.forward = lambda seen: torch.stack(self.flat(seen)[::-1], 2).flatten(1)
        self.coupling = Coupling(net)
        self.back = torch.cat([self.flat.seen_at, self.flat.moved_at]).argsort()

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.flatten(1)
        parts = [z.index_select(1, at) for at in (self.flat.seen_at, self.flat.moved_at)]
        parts, logdet = self.coupling.inverse(parts)
        return torch.cat(parts, 1).index_select(1, self.back).view(-1, *self.shape), logdet


class Zuko:
    """Decode is its forward direction, which evaluates the network once; the inverse does twice."""

    def __init__(self, coupling: AffineCoupling, shape: tuple[int, int, int]):
        from zuko.transforms import CouplingTransform, DependentTransform, MonotonicAffineTransform

        self.shape, flat = shape, Flat(coupling, shape)

        def meta(seen: Tensor):
            raw, shift = flat(seen)
            return DependentTransform(MonotonicAffineTransform(shift, raw), 1)

        mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=coupling.gain.device)
        mask[flat.seen_at] = True
        self.transform = CouplingTransform(meta, mask)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, logdet = self.transform.call_and_ladj(z.flatten(1))
        return x.view(-1, *self.shape), logdet


COUPLINGS = {
    "eager": lambda *a: Eager(*a, how="unfolded"),
    "folded eager": Eager,
    "channels-last eager": lambda *a: Eager(*a, how="channels-last"),
    "nflows": Nflows,
    "FrEIA": FrEIA,
    "normflows": Normflows,
    "zuko": Zuko,
}
TRAINED = {
    "eager": COUPLINGS["eager"],
    "channels-last eager": lambda *a: Eager(*a, how="unfolded channels-last"),
    "nflows": lambda *a: Nflows(*a, how="unfolded"),
}


class Hosted(Layer):
    """A layer whose transform is another library's coupling."""

    def __init__(self, coupling):
        super().__init__()
        self.coupling = coupling

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        z, change = self.coupling.encode(x)
        return z, logdet + change

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        x, change = self.coupling.decode(z)
        return x, logdet + change


class PlainSqueeze(Squeeze):
    """The same map by torch's own function."""

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), logdet

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), logdet


class Peer(Flow):
    """A RealNVP whose couplings are another library's, and all else plain torch.

    It decodes with the weights that the flow has now. With ``couplings=TRAINED`` it encodes, and
    the flow's parameters are its own.
    """

    def __init__(self, flow: Flow, kind: str, couplings: dict = COUPLINGS):
        make, shape, layers = couplings[kind], flow.shape, []
        for layer in flow.layers:
            if isinstance(layer, AffineCoupling):
                layers.append(Hosted(make(layer, shape)))
            else:
                layers.append(PlainSqueeze() if isinstance(layer, Squeeze) else layer)
            shape = layer.shape_after(shape)
        super().__init__(layers, flow.config)

    def log_prob(self, x: Tensor) -> Tensor:
        z, logdet = self.encode(x)
        return -0.5 * z.square().sum(1) - 0.5 * math.log(2 * math.pi) * z.shape[1] + logdet


class TransformerPeer(nn.Module):
    """A TarFlow of torch's own transformer layers and attention, with weights of its own that are
    those the flow has now."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.config = flow.config
        self.maps = [la for la in flow.layers if isinstance(la, AutoregressivePatches)]
        self.first = flow.layers[0]
        networks = [copy.deepcopy(la.conditioner) for la in self.maps]
        for network in networks:
            network.layers = nn.ModuleList(map(self._layer, network.layers))
        self.networks = nn.ModuleList(networks)
        self.mask = nn.Transformer.generate_square_subsequent_mask(self.maps[0].count)

    def _layer(self, ours: nn.Module) -> nn.TransformerEncoderLayer:
        width, heads = self.config.width, self.config.heads
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        pairs = {
            layer.norm1: ours.norm,
            layer.norm2: ours.norm_inside,
            layer.self_attn.out_proj: ours.projection,
            layer.linear1: ours.inside[0],
            layer.linear2: ours.inside[2],
        }
        for own, other in pairs.items():
            own.load_state_dict(other.state_dict())
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(ours.queries_keys_values.weight)
            layer.self_attn.in_proj_bias.copy_(ours.queries_keys_values.bias)
        return layer.to(ours.norm.weight.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of images (B, C, H, W), (B,)."""
        patch = self.config.patch
        h = (x - self.first.mean) / self.first.std
        logdet = -self.first.std.log().sum()
        h = F.pixel_unshuffle(h, patch).flatten(2).transpose(1, 2)
        mask = self.mask.to(x.device)
        for network in self.networks:
            inside = network.embed(h[:, :-1])
            start = network.beginning.expand(len(h), 1, -1)
            inside = torch.cat([start, inside], 1) + network.positions
            for layer in network.layers:
                inside = layer(inside, mask, is_causal=True)
            with torch.autocast(x.device.type, enabled=False):
                mean, log_std = network.last(network.norm(inside.float())).chunk(2, 2)
            h = ((h - mean) * (-log_std).exp()).flip(1)
            logdet = logdet - log_std.flatten(1).sum(1)
        return -0.5 * (h.square() + math.log(2 * math.pi)).flatten(1).sum(1) + logdet
