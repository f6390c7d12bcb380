"""Choices of an affine flow and its training by held-out bits/dim at equal training time.

    python bench/affine_flows.py --mnist FOLDER --photos FOLDER [--minutes M] [--seeds 0 1]
                                 [--threads N]

Every variant of a data set and seed trains for the same wall-clock minutes, in slices that take
turns in one process, so that a busy moment hits all alike. All see the same images, and what they
share starts at the same weights. Plain is a RealNVP of the preset; a variant has these changes:

    1x1           an invertible 1x1 convolution before every channel coupling, which starts at a
                  random rotation (Kingma and Dhariwal, 2018)
    prior         mean and spread of a latent that leaves early from what stays
    alike         the width at which there are about as many parameters as in plain
    Haar          the 1x1 convolution after a squeeze starts at the Haar transform, which puts the
                  means of 2 x 2 pixels into the half that stays; the others at the identity
    early         squeezed before the first coupling, so that none is at full resolution
    variational   the noise of dequantisation from a small flow given the image, trained with the
                  other (Ho et al., 2019); bits/dim is its bound
    gain_lr 1     the couplings' gains learn at the rate of the other weights

MNIST: the folder with the four IDX files, preset mnist-28-small; held out are the first 1000 test
images. Photos: random 64 x 64 crops of the pictures in FOLDER/train, preset photo-64-small; held
out are 256 crops of FOLDER/test.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import conditions, write
from torch import Tensor, nn

from flowinv_fast.data import Crops, load_images
from flowinv_fast.flows import AffineCoupling, ChannelMixing, Flow, GlowConfig, Squeeze, glow
from flowinv_fast.flows.conditioner import ResidualNetwork
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer, pixels
from flowinv_fast.training.presets import chosen_preset


class Run(FlowTrainer):
    """A trainer that writes no files; whatever the variant, the couplings start the same.

    Args:
        haar: the 1x1 convolutions start at the Haar transform after a squeeze, else at the
            identity.
        variational: the noise of dequantisation is learnt.
    """

    def __init__(
        self,
        flow: GlowConfig,
        config: FlowTrainConfig,
        source,
        held_out: Tensor,
        haar: bool = False,
        variational: bool = False,
    ):
        with TemporaryDirectory() as folder:
            super().__init__(flow, config, source, held_out, folder, progress=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            plain = glow(replace(flow, mixing=False, conditional_prior=False))
            start_alike(self.flow, plain)
            self.bound = Bound(self.flow, Dequantiser(flow)) if variational else None
        if haar:
            start_at_haar(self.flow)
        if self.bound is not None:
            self.log_prob = self.bound
            group = {"params": list(self.bound.dequantiser.parameters())}
            self.optimisers["adam"].add_param_group(group)
        self.average.load_state_dict(self.flow.state_dict())

    def train_until(self, seconds: float) -> None:
        """Train until it has trained for so long in all."""
        while self.seconds < seconds:
            started = time.perf_counter()
            self._train_step()
            self.seconds += time.perf_counter() - started

    @torch.no_grad()
    def held_out_bits(self) -> float:
        """Mean bits/dim of the averaged weights, float32."""
        log_prob = self.average.log_prob
        if self.bound is not None:
            log_prob = Bound(self.average, self.bound.dequantiser)
        x = self.average.dequantise(pixels(self.flow, self.held_out), 1)
        bits = [self.average.bits_per_dim(log_prob(part)) for part in x.split(64)]
        return torch.cat(bits).mean().item()

    def round_trip(self) -> float:
        """Largest |decode(encode(x)) - x| of the averaged flow, over 16 held-out images."""
        with torch.no_grad():
            x = self.average.dequantise(pixels(self.flow, self.held_out[:16]), 1)
            return (self.average.decode(self.average.encode(x)[0])[0] - x).abs().max().item()


class Dequantiser(nn.Module):
    """q(u | image) of the place u of a pixel in its grey level, (0, 1): two couplings of normal
    numbers, a shift and scale, all functions of the image, then a sigmoid."""

    def __init__(self, config: GlowConfig):
        super().__init__()
        channels = config.shape[0]
        network = lambda inputs: ResidualNetwork(inputs, 2 * channels, 16, 1)
        self.networks = nn.ModuleList([network(channels), *(network(2 * channels) for _ in "ab")])
        self.couplings = nn.ModuleList(
            AffineCoupling(channels, mask=f"checkerboard_{mask}", conditioner=nn.Identity())
            for mask in ("even", "odd")
        )
        self.gain = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, C, H, W) and log q(u) (B,) of images (B, C, H, W) of about unit size."""
        noise = torch.randn_like(image)
        log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).flatten(1).sum(1)
        for coupling, network in zip(self.couplings, self.networks[1:]):
            coupling.conditioner = _Given(network, image)
            noise, log_q = coupling.decode(noise, -log_q)
            log_q = -log_q
        raw, mean = self.networks[0](image).to(image.dtype).chunk(2, 1)
        log_std = self.gain * torch.tanh(raw)
        logits = mean + noise * torch.exp(log_std)
        slope = nn.functional.logsigmoid(logits) + nn.functional.logsigmoid(-logits)
        return torch.sigmoid(logits), log_q - (log_std + slope).flatten(1).sum(1)


class _Given(nn.Module):
    """A network of what a coupling sees and of the image."""

    def __init__(self, network: nn.Module, image: Tensor):
        super().__init__()
        self._parts = [network, image]  # in a list: the network is registered elsewhere

    def forward(self, seen: Tensor) -> Tensor:
        network, image = self._parts
        return network(torch.cat([seen, image], 1))


class Bound(nn.Module):
    """log p(x) - log q(u) of the grey levels of x, a bound on their log-probability."""

    def __init__(self, flow: Flow, dequantiser: Dequantiser):
        super().__init__()
        self.flow, self.dequantiser = flow, dequantiser

    def forward(self, x: Tensor) -> Tensor:
        levels = 2**self.flow.config.bits
        grey = (x * levels).floor().clamp(0, levels - 1)
        place, log_q = self.dequantiser(4 * (grey / levels - 0.5))
        return self.flow.log_prob((grey + place) / levels) - log_q


def start_alike(flow: Flow, plain: Flow) -> None:
    """The couplings of a flow at the weights of the couplings of another."""
    couplings = ([c for c in f.layers if isinstance(c, AffineCoupling)] for f in (flow, plain))
    for coupling, other in zip(*couplings, strict=True):
        coupling.load_state_dict(other.state_dict())


@torch.no_grad()
def start_at_haar(flow: Flow) -> None:
    """See Run. The means come first among the channels, so that they stay."""
    haar = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2.0
    for before, layer in zip(flow.layers, list(flow.layers)[1:]):
        if isinstance(layer, ChannelMixing):
            count = len(layer.sign)
            start = torch.eye(count)
            if isinstance(before, Squeeze):
                bands = torch.kron(torch.eye(count // 4), haar).view(count // 4, 4, count)
                start = bands.transpose(0, 1).reshape(count, count)
            permutation, lower, upper = torch.linalg.lu(start)
            layer.permutation.copy_(permutation)
            layer.lower.copy_(lower.tril(-1))
            layer.upper.copy_(upper.triu(1))
            layer.sign.copy_(upper.diagonal().sign())
            layer.log_size.copy_(upper.diagonal().abs().log())


@dataclass
class Study:
    """A data set with its default recipe and the changes to compare."""

    flow: GlowConfig
    train: FlowTrainConfig
    images: Callable[[int], object]  # of a seed
    held_out: Tensor
    variants: dict[str, dict]


GLOW = {"mixing": True, "conditional_prior": True}
VARIANTS = {
    "plain": {},
    "1x1": {"mixing": True},
    "prior": {"conditional_prior": True},
    "1x1 + prior": GLOW,
    "1x1 + prior, alike": {**GLOW, "hidden": 0},  # the width is found by ``alike``
    "Haar + prior": {**GLOW, "haar": True},
    "early + 1x1 + prior": {**GLOW, "early_squeeze": True},
    "variational": {"variational": True},
    "gain_lr 1": {"gain_lr": 1.0},
}


def study_of(preset: str, images: Callable[[int], object], held_out: Tensor) -> Study:
    """Of a preset's RealNVP, in the words of a Glow; the learning rate stays the same."""
    chosen = chosen_preset(preset, "realnvp")
    flow = GlowConfig(**chosen.config.to_dict(), mixing=False, conditional_prior=False)
    same = {"epochs": 1e6, "schedule": "halving", "halve_every": 1e6}
    train = replace(chosen.train, **same, warmup=50, precision="bf16")
    return Study(flow, train, images, held_out, VARIANTS)


def mnist(folder: str) -> Study:
    train, test = (
        load_images(Path(folder) / f"{part}-images-idx3-ubyte.gz", (1, 28, 28))
        for part in ("train", "t10k")
    )
    return study_of("mnist-28-small", lambda seed: train, test[:1000])


def photos(folder: str) -> Study:
    crops = lambda part, seed: Crops(Path(folder) / part, (3, 64, 64), seed=seed)
    held_out = crops("test", 0).take(256, 1)
    return study_of("photo-64-small", lambda seed: crops("train", seed), held_out)


def alike(plain: GlowConfig, changes: dict) -> int:
    """The width at which a changed flow has about as many parameters as the plain one."""
    count = lambda config: sum(p.numel() for p in glow(config).parameters())
    widths = range(plain.hidden // 2, plain.hidden + 1)
    gap = lambda hidden: abs(count(replace(plain, **{**changes, "hidden": hidden})) - count(plain))
    return min(widths, key=gap)


def start(study: Study, changes: dict, seed: int) -> Run:
    in_flow = {k: v for k, v in changes.items() if hasattr(study.flow, k)}
    in_run = {k: v for k, v in changes.items() if k in ("haar", "variational")}
    in_train = {k: v for k, v in changes.items() if hasattr(study.train, k)}
    if "hidden" in in_flow:
        in_flow["hidden"] = alike(study.flow, in_flow)
    flow, train = replace(study.flow, **in_flow), replace(study.train, seed=seed, **in_train)
    return Run(flow, train, study.images(seed), study.held_out, **in_run)


def found(run: Run, study: Study, **which) -> dict:
    """A row of the results: which run it was, and what came of it."""
    return {
        **which,
        "bits_per_dim": round(run.held_out_bits(), 4),
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "bad_steps": run.bad_steps,
        "round_trip": run.round_trip(),
        "parameters": sum(p.numel() for p in run.flow.parameters()),
        "batch": study.train.batch,
        "lr": study.train.lr,
        "flow": run.flow.config.to_dict(),
        "held_out_images": len(study.held_out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", help="folder of the IDX files")
    parser.add_argument("--photos", help="folder with train and test")
    parser.add_argument("--minutes", type=float, default=3.0, help="of a variant and seed")
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--note", help="what else ran on the machine")
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    where = conditions(
        "cpu",
        dtype="conditioners bfloat16, the rest float32",
        minutes=arguments.minutes,
        slice_seconds=arguments.slice,
        note=arguments.note,
    )
    for name, made in (("mnist", mnist), ("photos", photos)):
        if not (folder := getattr(arguments, name)):
            continue
        study = made(folder)
        chosen = arguments.variants or list(study.variants)
        for seed in arguments.seeds:
            runs = {v: start(study, study.variants[v], seed) for v in chosen if v in study.variants}
            for turn in range(round(60 * arguments.minutes / arguments.slice)):
                order = list(runs.values())
                for run in order[turn % len(order) :] + order[: turn % len(order)]:
                    run.train_until((turn + 1) * arguments.slice)
            rows = []
            for variant, run in runs.items():
                rows.append(found(run, study, data=name, variant=variant, seed=seed))
                print(*list(rows[-1].values())[:8], flush=True)
            result, same = {"conditions": where, "rows": rows}, ("data", "variant", "seed")
            path = write(
                f"affine_flows-{arguments.minutes:g}min", result, arguments.out, same_row=same
            )
    print("wrote", path)


if __name__ == "__main__":
    main()
