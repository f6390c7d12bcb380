"""Maximum-likelihood training of a flow: resumable, EMA weights, held-out bits/dim, samples."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import ops
from .._base.errors import SolverError, is_real, require
from .._base.identity import digest
from .._base.tensors import STANDARDISATION, Stream
from ..data.sources import Crops, Stored
from ..flows.conditioner import conditioner_precision
from ..flows.flow import Flow, FlowConfig
from ..flows.io import build_flow, save_flow
from ..flows.levels import NoisyStandardise, told_levels
from .config import TrainConfig
from .trainer import Trainer

_MOST_BAD_STEPS = 20
_AT_LEVEL = "bits_per_dim_"  # and a level: names of what is measured there
_SOME = 1000  # held-out images, where all would take too long


@dataclass(frozen=True)
class FlowTrainConfig(TrainConfig):
    """How to train a flow: the options of every training, and those below.

    ``seed`` fixes initial weights, order of images and dequantisation noise; ``precision`` is that
    of the conditioners, log-determinants stay float32.

    Args:
        gain_lr: learning rate of the couplings' gains, over that of the other weights. The gains
            bound every log-scale and start at 0; at 1 they are what training waits for.
        max_grad_norm: gradients are clipped to this norm.
        penalty: weight of the sum of squared weight-normalisation gains.
        ema: decay of the exponential moving average of the weights, which is what is saved.
        recompute: keep no activations for the backward pass but recompute them, coupling by
            coupling: memory of one coupling at any depth, for one more evaluation of each.
    Raises:
        ArgumentError: a value out of its range.

    >>> FlowTrainConfig(epochs=2, batch=64, halve_every=1).lr
    0.001
    """

    warmup: int = 200
    halve_every: float | None = 40
    gain_lr: float = 10.0
    max_grad_norm: float = 100.0
    penalty: float = 5e-5
    ema: float = 0.999
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("gain_lr", "max_grad_norm")
        good = is_real(self.ema) and 0 <= self.ema < 1
        self._check(good, "ema", "a number in [0, 1)")
        good = is_real(self.penalty) and self.penalty >= 0
        self._check(good, "penalty", "a finite number of at least 0")


class FlowTrainer(Trainer):
    """Trains a flow by maximum likelihood and leaves its files in a folder.

    flow.safetensors    the moving average of the weights, ready for ``load_flow``; trained on real
                        numbers, which may be few, at the evaluation of fewest bits/dim
    state.safetensors   everything needed to go on where training stopped
    log.jsonl           one line per evaluation: step, epoch, bits_per_dim, log_prob_peak, seconds
    samples.png         samples of the latest evaluation

    A step minimises -mean log p(x) + penalty * sum of squared weight-normalisation gains over
    dequantised images x. Files, resuming and arguments are those of every ``Trainer``.

    A flow of a range of levels sees each image with noise of a level of its own, log-uniform in the
    range; bits/dim are at the level ``smoothing``, and for the first thousand held-out images at
    the lowest, the middle and the highest, too ("bits_per_dim_0.03", ...).

    Where torch.distributed is initialised, every process takes its part of each batch, gradients
    are averaged (DistributedDataParallel) and the first process alone writes files.

    Args:
        held_out: uint8 (M, C, H, W), never trained on.
        start: a flow of this architecture whose weights training starts at; None: the identity.
            The smoothing may differ. A flow of levels also starts at one of a single level, and
            has its density at that level.
    Raises:
        ArgumentError: images of another size, a folder with another configuration's state, or a
            batch that the processes cannot share evenly.
        SolverError: the gradient is not finite for 20 steps in a row.

    >>> import tempfile
    >>> from flowinv_fast.flows import RealNVPConfig
    >>> images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    >>> config = RealNVPConfig((1, 8, 8), scales=1, hidden=4, blocks=0)
    >>> how, folder = FlowTrainConfig(epochs=1, batch=8), tempfile.mkdtemp()
    >>> trainer = FlowTrainer(config, how, images[:24], images[24:], folder, progress=False)
    >>> trainer.run()["step"]
    3
    """

    weights_file = "flow.safetensors"
    loss_name = "bits"
    config: FlowConfig
    train_config: FlowTrainConfig
    held_out: Tensor

    def __init__(
        self,
        config: FlowConfig,
        train_config: FlowTrainConfig,
        images: Tensor | Stored | Crops,
        held_out: Tensor,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        info: dict[str, Any] | None = None,
        progress: bool = True,
        start: Flow | None = None,
    ):
        self._start, self.bad_steps = start, 0
        if start is not None:
            _check_start(start, config)
            info = {**(info or {}), "start": start.info}
        super().__init__(config, train_config, images, held_out, folder, device, info, progress)

    def _build(self) -> None:
        self.flow = build_flow(self.config)
        if self._start is not None:
            _begin_at(self._start, self.flow)
        self.flow.to(self.device).recompute = self.train_config.recompute
        self.average = copy.deepcopy(self.flow).eval().requires_grad_(False)
        gains = self.flow.gains()
        others = [p for p in self.flow.parameters() if all(p is not g for g in gains)]
        groups: list[dict[str, Any]] = [{"params": others}]
        if gains:
            groups.append({"params": gains, "lr_factor": self.train_config.gain_lr})
        self.networks = {"flow": self.flow, "average": self.average}
        self.optimisers = {"adam": torch.optim.Adam(groups, fused=True)}

    def _start_identity(self) -> str | None:
        return None if self._start is None else digest(self._start.state_dict())

    def _prepare(self, fresh: bool) -> None:
        if fresh and self._start is None:
            images = self.source.batch(0, min(4096, len(self.source)))
            first = pixels(self.flow, images)
            flow = self.flow if self.flow.levels is None else self.flow.at(self.flow.levels[0])
            flow.initialise(flow.dequantise(first, self.train_config.seed, STANDARDISATION))
            self.average.load_state_dict(self.flow.state_dict())
        if self.train_config.compile:
            for conditioner in self.flow.conditioners():
                conditioner.compile()
        self.log_prob: nn.Module = _LogProb(self.flow)
        if self.together:
            self.log_prob = DistributedDataParallel(self.log_prob)

    def _update(self, images: Tensor, first: int) -> float:
        config = self.train_config
        noisy = self._noisy(pixels(self.flow, images), first)
        with conditioner_precision(config.precision, self.device):
            log_prob = self.log_prob(*noisy)
        bits = self.flow.bits_per_dim(log_prob.detach()).mean()
        loss = -log_prob.mean() + config.penalty * self.flow.weight_norm_penalty()
        (adam,) = self.optimisers.values()
        adam.zero_grad(set_to_none=True)
        with conditioner_precision(config.precision, self.device):
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            self._count_bad_step()
            return math.nan
        self.bad_steps = 0
        adam.step()
        self._move_average(min(config.ema, (self.step + 1) / (self.step + 11)))
        return bits.item()

    def _noisy(self, x: Tensor, first: int) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) with the noise of training and, for a flow of levels, those (B,)."""
        # Philox blocks of four numbers, image after image: the same in any number of processes
        # where an image has a multiple of four.
        config, blocks = self.train_config, math.ceil(x[:1].numel() / 4)
        offset = (self.step * config.batch + first) * blocks
        if self.flow.levels is None:
            return (self.flow.dequantise(x, config.seed, offset),)
        level = self._levels(len(x), first)
        std = level.view(-1, 1, 1, 1)
        return ops.gaussian_noise(x, std, list(x.shape), config.seed, offset), level

    def _levels(self, count: int, first: int) -> Tensor:
        """A level for each of ``count`` images, from image ``first`` of the batch on, (count,).

        Those of a batch are spread evenly over the logarithms of the range, from a random start
        (Kingma et al., Variational diffusion models, 2021), so each is log-uniform.
        """
        low, high = map(math.log, self.flow.levels or (1.0, 1.0))
        size, seed = self.train_config.batch, Stream.LEVELS.of(self.train_config.seed)
        start = ops.random_bits(1, seed, self.step).item() / 2**32
        place = (
            start + torch.arange(first, first + count, dtype=torch.float64, device="cpu") / size
        ) % 1
        return (low + (high - low) * place).exp().to(self.device, torch.float32)

    def _count_bad_step(self) -> None:
        self.bad_steps += 1
        if self.bad_steps >= _MOST_BAD_STEPS:
            raise SolverError(
                f"training: the gradient was not finite for {_MOST_BAD_STEPS} steps up to step "
                f"{self.step + 1}; try a smaller lr"
            )

    @torch.no_grad()
    def _move_average(self, decay: float) -> None:
        average: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(self.flow.parameters())
        torch._foreach_lerp_(average, weights, 1 - decay)

    def _measure(self, batch: int) -> dict[str, float | None]:
        bits, peaks = [], []
        for start in range(0, len(self.held_out), batch):
            clean = pixels(self.flow, self.held_out[start : start + batch])
            x = self.average.dequantise(clean, 1, start * clean[0].numel())
            log_prob = self.average.log_prob(x)
            bits.append(self.average.bits_per_dim(log_prob))
            if start < _SOME:  # a smoothed flow peaks without the noise, a bounded one with it
                peaks.append(torch.maximum(log_prob, self.average.log_prob(clean)).max().item())
        return {
            "bits_per_dim": round(torch.cat(bits).mean().item(), 4),
            "log_prob_peak": round(max(peaks), 1),
            **self._measure_levels(batch),
        }

    def _measure_levels(self, batch: int) -> dict[str, float | None]:
        """Mean bits/dim at the levels that are told, over some of the held-out images."""
        found: dict[str, float | None] = {}
        for level in told_levels(self.flow.levels) if self.flow.levels else ():
            flow, bits = self.average.at(level), []
            for start, some in enumerate(self.held_out[:_SOME].split(batch)):
                clean = pixels(flow, some)
                x = flow.dequantise(clean, 1, start * batch * clean[0].numel())
                bits.append(flow.bits_per_dim(flow.log_prob(x)))
            found[f"{_AT_LEVEL}{level:.3g}"] = round(torch.cat(bits).mean().item(), 4)
        return found

    @property
    def model(self) -> Flow:
        """The flow with the moving average of the weights."""
        self.average.info = self.facts
        return self.average

    def _samples(self, count: int, generator: torch.Generator) -> Tensor:
        return self.average.sample(count, 0.8, generator)

    def _save_weights(self, path: Path, info: dict[str, Any]) -> None:
        save_flow(self.average, path, info)

    def _score(self, result: dict[str, Any]) -> float:
        return float(result["bits_per_dim"]) if self.config.bits == 0 else -math.inf

    def _sentence(self, result: dict[str, Any]) -> str:
        told = {k.removeprefix(_AT_LEVEL): v for k, v in result.items() if k.startswith(_AT_LEVEL)}
        levels = ", ".join(f"{bits:.3f} at {level}" for level, bits in told.items())
        return (
            f"epoch {result['epoch']:g}: {result['bits_per_dim']:.3f} bits/dim on "
            f"{result['held_out_images']} held-out images{levels and f' ({levels})'} after "
            f"{result['seconds'] / 60:.1f} min"
        )


def _check_start(start: Flow, config: FlowConfig) -> None:
    """A flow to start at has the architecture that is trained, but for the smoothing.

    Levels it may lack.
    """
    same = type(start.config) is type(config)
    found, wanted = start.config.to_dict(), config.to_dict()
    if start.levels is None:
        wanted.pop("levels", None)
    same = same and found | {"smoothing": 0} == wanted | {"smoothing": 0}
    require(same, "FlowTrainer", "start", f"a flow of {config}", start.config)


def _begin_at(start: Flow, flow: Flow) -> None:
    """Copy the weights of ``start``; what a flow of one level lacks, of levels, stays as it is."""
    flow.load_state_dict({**flow.state_dict(), **start.state_dict()})
    if start.levels is None and flow.levels is not None:
        for layer in flow.at_each(start.config.smoothing).layers:
            if isinstance(layer, NoisyStandardise):
                layer.lower()


class _LogProb(nn.Module):
    """A flow's log p as the forward call that DistributedDataParallel wraps."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        flow = self.flow if level is None else self.flow.at_each(level)
        return flow.log_prob(x)


def pixels(flow: Flow, images: Tensor) -> Tensor:
    """uint8 images on the flow's device, at its pixel depth, float32 in [0, 1].

    Real numbers, of a flow without a pixel depth, stay as they are.
    """
    if flow.config.bits == 0:
        return images.to(flow.device)
    return reduce_depth(images.to(flow.device), flow.config.bits).float() / 255


def reduce_depth(images: Tensor, bits: int) -> Tensor:
    """8-bit images to ``bits`` bits, on the scale 0..255 (levels k * 255 / (2^bits - 1)).

    >>> reduce_depth(torch.tensor([0, 100, 255], dtype=torch.uint8), 1).tolist()
    [0, 0, 255]
    """
    if bits >= 8:
        return images
    levels = 2**bits - 1
    return ((images >> (8 - bits)).float() * (255 / levels)).round().to(torch.uint8)
