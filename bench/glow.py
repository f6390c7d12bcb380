"""Choices of the training recipe by held-out bits/dim at equal training time.

    python bench/glow.py --mnist FOLDER --photos FOLDER [--minutes M] [--seeds 0 1] [--threads N]

Every variant of a data set and seed trains for the same wall-clock minutes, in slices that take
turns in one process, so that a busy moment hits all alike. All start at the same weights and see
the same images. A variant is the default recipe with one change:

    1x1 rotation, identity  an invertible 1x1 convolution before every channel coupling (Kingma and
                            Dhariwal, 2018), which starts at a random rotation or at the identity
    conditional prior       mean and spread of a latent that leaves early from what stays
    gain_lr 1               the couplings' gains learn at the rate of the other weights
    alpha 0.05, 0.001       margin of the logit (MNIST), by default 1e-5

MNIST: the folder with the four IDX files; held out are the first 1000 test images. Photos: random
32 x 32 crops of the pictures in FOLDER/train, 5 bits; held out are 512 crops of FOLDER/test.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from harness import conditions, write
from torch import Tensor

from flowinv_fast.data import Crops, load_images
from flowinv_fast.flows import AffineCoupling, ChannelMixing, Flow, GlowConfig, glow
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer, pixels


class Run(FlowTrainer):
    """A trainer that writes no files; whatever the variant, the couplings start the same."""

    def __init__(
        self,
        flow: GlowConfig,
        config: FlowTrainConfig,
        source,
        held_out: Tensor,
        identity: bool = False,
    ):
        with TemporaryDirectory() as folder:
            super().__init__(flow, config, source, held_out, folder, progress=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            plain = glow(replace(flow, mixing=False, conditional_prior=False))
        start_alike(self.flow, plain)
        if identity:
            start_at_identity(self.flow)
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
        x = self.average.dequantise(pixels(self.flow, self.held_out), 1)
        bits = [self.average.bits_per_dim(self.average.log_prob(part)) for part in x.split(100)]
        return torch.cat(bits).mean().item()

    def round_trip(self) -> float:
        """Largest |decode(encode(x)) - x| of the averaged flow, over 16 held-out images."""
        with torch.no_grad():
            x = self.average.dequantise(pixels(self.flow, self.held_out[:16]), 1)
            return (self.average.decode(self.average.encode(x)[0])[0] - x).abs().max().item()


def start_alike(flow: Flow, plain: Flow) -> None:
    """The couplings of a flow at the weights of the couplings of another."""
    couplings = ([c for c in f.layers if isinstance(c, AffineCoupling)] for f in (flow, plain))
    for coupling, other in zip(*couplings, strict=True):
        coupling.load_state_dict(other.state_dict())


@torch.no_grad()
def start_at_identity(flow: Flow) -> None:
    """The 1x1 convolutions at the identity instead of a rotation."""
    for mixing in (layer for layer in flow.layers if isinstance(layer, ChannelMixing)):
        mixing.permutation.copy_(torch.eye(len(mixing.sign)))
        mixing.sign.fill_(1)
        for parameter in mixing.parameters():
            parameter.zero_()


@dataclass
class Study:
    """A data set with its default recipe and the changes to compare."""

    flow: GlowConfig
    train: FlowTrainConfig
    images: Callable[[int], object]  # of a seed
    held_out: Tensor
    variants: dict[str, dict]


MIXES = {
    "plain": {},
    "1x1 rotation": {"mixing": True},
    "1x1 identity": {"mixing": True, "identity": True},
    "conditional prior": {"conditional_prior": True},
}
GAIN = {"gain_lr 1": {"gain_lr": 1.0}}


def plain(shape: tuple[int, int, int], blocks: int, **options) -> GlowConfig:
    """Of a RealNVP, in the words of a Glow: 3 scales, hidden width 32."""
    return GlowConfig(shape, 3, 32, blocks, mixing=False, conditional_prior=False, **options)


def mnist(folder: str) -> Study:
    flow = plain((1, 28, 28), 2, support="bounded", alpha=1e-5)
    train, test = (
        load_images(Path(folder) / f"{part}-images-idx3-ubyte.gz", flow.shape)
        for part in ("train", "t10k")
    )
    recipe = FlowTrainConfig(1e6, 64, 2e-3, halve_every=1e6, warmup=50, precision="bf16")
    margins = {f"alpha {a:g}": {"alpha": a} for a in (0.05, 1e-3)}
    return Study(flow, recipe, lambda seed: train, test[:1000], {**MIXES, **GAIN, **margins})


def photos(folder: str) -> Study:
    flow = plain((3, 32, 32), 1, bits=5, smoothing=0.0)
    crops = lambda part, seed: Crops(
        Path(folder) / part, flow.shape, sides=(32, 48, 64, 96, 128), seed=seed
    )
    options = {"halve_every": 1e6, "max_grad_norm": 500, "penalty": 1e-5, "warmup": 50}
    recipe = FlowTrainConfig(1e6, 16, 1e-3, precision="bf16", **options)
    held_out = crops("test", 0).take(512, 1)
    return Study(flow, recipe, lambda seed: crops("train", seed), held_out, {**MIXES, **GAIN})


def start(study: Study, changes: dict, seed: int) -> Run:
    changes = dict(changes)
    identity = changes.pop("identity", False)
    in_flow = {k: changes.pop(k) for k in list(changes) if hasattr(study.flow, k)}
    flow, train = replace(study.flow, **in_flow), replace(study.train, seed=seed, **changes)
    return Run(flow, train, study.images(seed), study.held_out, identity)


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
    for name, study_of in (("mnist", mnist), ("photos", photos)):
        if not (folder := getattr(arguments, name)):
            continue
        study = study_of(folder)
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
            path = write(f"glow-{arguments.minutes:g}min", result, arguments.out, same_row=same)
    print("wrote", path)


if __name__ == "__main__":
    main()
