"""Maximum-likelihood training of a flow: resumable, EMA weights, held-out bits/dim, samples."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .._base.errors import ArgumentError, SolverError, is_whole, require
from .._base.files import whole_file
from ..data.images import image_grid, require_images, save_png
from ..data.sources import Crops, Stored
from ..flows.conditioner import conditioner_precision
from ..flows.flow import Flow, FlowConfig
from ..flows.frozen import PRECISIONS
from ..flows.io import build_flow, save_flow


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all processes together.
        lr: Adam learning rate, reached after ``warmup`` steps.
        gain_lr: learning rate of the couplings' gains, over that of the other weights. The gains
            bound every log-scale and start at 0; at 1 they are what training waits for.
        halve_every: epochs after which the learning rate is halved, repeatedly.
        max_grad_norm: gradients are clipped to this norm.
        penalty: weight of the sum of squared weight-normalisation gains.
        ema: decay of the exponential moving average of the weights, which is what is saved.
        warmup: steps of linear learning-rate warm-up.
        seed: fixes initial weights, order of images and dequantisation noise.
        precision: of the conditioners: fp32, tf32 (CUDA) or bf16; log-determinants stay float32.
        recompute: keep no activations for the backward pass but recompute them, coupling by
            coupling: memory of one coupling at any depth, for one more evaluation of each.
        compile: pass the conditioners through torch.compile; pays on long runs.
    """

    epochs: float = 10
    batch: int = 128
    lr: float = 1e-3
    gain_lr: float = 10.0
    halve_every: float = 40
    max_grad_norm: float = 100.0
    penalty: float = 5e-5
    ema: float = 0.999
    warmup: int = 200
    seed: int = 0
    precision: str = "fp32"
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "gain_lr", "halve_every", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, "TrainConfig", name, "a positive number", value)
        require(0 <= self.ema < 1, "TrainConfig", "ema", "a number in [0, 1)", self.ema)
        require(self.penalty >= 0, "TrainConfig", "penalty", "at least 0", self.penalty)
        require(self.warmup >= 0, "TrainConfig", "warmup", "at least 0", self.warmup)
        good = is_whole(self.seed) and self.seed < 2**40
        require(good, "TrainConfig", "seed", "an integer in 0 .. 2^40 - 1", self.seed)
        require(self.precision in PRECISIONS, "TrainConfig", "precision", f"one of {PRECISIONS}",
                repr(self.precision))  # fmt: skip


class Trainer:
    """Trains a flow and leaves its files in a folder.

    flow.safetensors    the moving average of the weights, ready for ``load_flow``
    state.safetensors   everything needed to go on where training stopped
    log.jsonl           one line per evaluation: step, epoch, bits/dim, seconds
    samples.png         samples of the latest evaluation

    Files are replaced whole, so a killed run leaves the last complete ones; a new Trainer on the
    same folder and configuration goes on from there, on a CPU with the bits of a run never killed.

    Where torch.distributed is initialised, every process takes its part of each batch, gradients
    are averaged (DistributedDataParallel) and the first process alone writes files.

    Args:
        flow_config: architecture.
        config: how to train.
        images: uint8 (N, C, H, W), the training images, or a source of ``flowinv_fast.data``.
        held_out: uint8 (M, C, H, W), never trained on.
        folder: where the files go; created.
        device: where to compute, and where the images are kept.
        info: facts for the header of the weights file (name of the data, licence).
        progress: show progress bars.
        start: a flow of this architecture whose weights training starts at; None: the identity.
    Raises:
        ArgumentError: images of another size, a folder with another configuration's state, or a
            batch that the processes cannot share evenly.
        SolverError: the loss is not finite for 20 steps in a row.
    """

    def __init__(
        self,
        flow_config: FlowConfig,
        config: TrainConfig,
        images: Tensor | Stored | Crops,
        held_out: Tensor,
        folder: str | os.PathLike,
        device: str | torch.device = "cpu",
        info: dict | None = None,
        progress: bool = True,
        start: Flow | None = None,
    ):
        if not isinstance(images, (Stored, Crops)):
            require_images("Trainer", "images", images, flow_config.shape)
            images = Stored(images, seed=config.seed)
        require(images.shape == flow_config.shape, "Trainer", "images",
                f"of shape {flow_config.shape}", images.shape)  # fmt: skip
        require_images("Trainer", "held_out", held_out, flow_config.shape)
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.source, self.held_out = images.to(self.device), held_out
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.world = dist.get_world_size() if self.together else 1
        require(config.batch % self.world == 0, "Trainer", "batch",
                f"a multiple of the {self.world} processes", config.batch)  # fmt: skip
        require(self.world == 1 or len(images) >= config.batch, "Trainer", "batch",
                f"at most the {len(images)} images", config.batch)  # fmt: skip
        self.info, self.progress = dict(info or {}), progress and self.rank == 0
        if start is not None:
            self.info["start"] = start.info
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.flow = build_flow(flow_config)
        if start is not None:
            require(start.config.to_dict() | {"smoothing": 0} == flow_config.to_dict()
                    | {"smoothing": 0}, "Trainer", "start", f"a flow of {flow_config}",
                    start.config)  # fmt: skip
            self.flow.load_state_dict(start.state_dict())
        self.flow.to(self.device).recompute = config.recompute
        self.average = copy.deepcopy(self.flow).requires_grad_(False)
        gains = self.flow.gains()
        others = [p for p in self.flow.parameters() if all(p is not g for g in gains)]
        self.optimiser = torch.optim.Adam([{"params": others}, {"params": gains}], fused=True)
        self.step, self.seconds, self.bad_steps = 0, 0.0, 0
        self.steps_per_epoch = max(1, len(self.source) // config.batch)
        self.last_step = math.ceil(config.epochs * self.steps_per_epoch)
        if (self.folder / "state.safetensors").exists():
            self._resume()
        elif start is None:
            first = pixels(self.flow, self.source.batch(0, min(4096, len(self.source))))
            first = self.flow.dequantise(first, config.seed, 1 << 60)
            self.flow.initialise(first)
            self.average.load_state_dict(self.flow.state_dict())
        if config.compile:
            for conditioner in self.flow.conditioners():
                conditioner.compile()
        self.log_prob = _LogProb(self.flow)
        if self.together:
            self.log_prob = DistributedDataParallel(self.log_prob)

    # -- the loop ----------------------------------------------------------------------------

    def run(
        self,
        minutes: float = math.inf,
        evaluate_every: float = 1.0,
        save_minutes: float = 5.0,
    ) -> dict:
        """Train to the last epoch, or for this many minutes.

        Args:
            minutes: stop after so long.
            evaluate_every: epochs between evaluations.
            save_minutes: what a killed run loses at most.
        Returns:
            The last evaluation. Ctrl-C stops cleanly, keeping what was learnt; beside other
            processes what was saved last.
        """
        started = mark = saved = time.perf_counter()
        period = max(1, round(evaluate_every * self.steps_per_epoch))
        bar = tqdm(total=self.last_step, initial=self.step, disable=not self.progress, unit="step")
        try:
            while self.step < self.last_step and not self._agreed(mark - started > 60 * minutes):
                loss = self._train_step()
                now = time.perf_counter()
                self.seconds, mark = self.seconds + now - mark, now
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix(bits=f"{loss:.3f}", lr=f"{self._lr():.1e}")
                if self.step % period == 0 and self.step < self.last_step:
                    result = self.evaluate()
                    if self.rank == 0:
                        bar.write(_sentence(result))
                    mark = saved = time.perf_counter()
                elif now - saved > 60 * save_minutes:
                    if self.rank == 0:
                        self._save_state()
                    mark = saved = time.perf_counter()
        except KeyboardInterrupt:
            if self.together:  # the others may be elsewhere: the last saved state is what stays
                raise
            bar.write("interrupted: saving")
        bar.close()
        return self.evaluate()

    def _agreed(self, stop: bool) -> bool:
        """The first process's clock decides for all."""
        if not self.together:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def _train_step(self) -> float:
        config = self.config
        share = config.batch // self.world
        first = self.rank * share
        x = pixels(
            self.flow, self.source.batch(self.step, config.batch, slice(first, first + share))
        )
        # Philox blocks of four numbers, image after image: the same in any number of processes
        # where an image has a multiple of four.
        blocks = math.ceil(x[:1].numel() / 4)
        x = self.flow.dequantise(x, config.seed, (self.step * config.batch + first) * blocks)
        for group, factor in zip(self.optimiser.param_groups, (1.0, config.gain_lr)):
            group["lr"] = factor * self._lr()
        with conditioner_precision(config.precision, self.device):
            log_prob = self.log_prob(x)
        bits = self.flow.bits_per_dim(log_prob.detach()).mean()
        loss = -log_prob.mean() + config.penalty * self.flow.weight_norm_penalty()
        self.optimiser.zero_grad(set_to_none=True)
        with conditioner_precision(config.precision, self.device):
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), config.max_grad_norm)
        self.step += 1
        if not torch.isfinite(norm):
            self.bad_steps += 1
            if self.bad_steps >= 20:
                raise SolverError(
                    f"training: the gradient was not finite for 20 steps up to step {self.step}; "
                    "try a smaller lr"
                )
            return math.nan
        self.bad_steps = 0
        self.optimiser.step()
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            parameters = list(self.flow.parameters())
            torch._foreach_lerp_(list(self.average.parameters()), parameters, 1 - decay)
        return bits.item()

    def _lr(self) -> float:
        halvings = math.floor(self.step / self.steps_per_epoch / self.config.halve_every)
        return self.config.lr * 0.5**halvings * min(1, (self.step + 1) / (self.config.warmup + 1))

    # -- evaluation and files -----------------------------------------------------------------

    def evaluate(self, batch: int = 250) -> dict:
        """Held-out bits/dim of the averaged weights; writes weights, state, samples and log."""
        result = [None]
        if self.rank == 0:
            with conditioner_precision("fp32", self.device):
                result = [self._evaluate(batch)]
        if self.together:
            dist.broadcast_object_list(result, 0)
        return result[0]

    @torch.no_grad()
    def _evaluate(self, batch: int) -> dict:
        bits, peaks = [], []
        for start in range(0, len(self.held_out), batch):
            clean = pixels(self.flow, self.held_out[start : start + batch])
            x = self.average.dequantise(clean, 1, start * clean[0].numel())
            log_prob = self.average.log_prob(x)
            bits.append(self.average.bits_per_dim(log_prob))
            if start < 1000:  # a smoothed flow peaks without the noise, a bounded one with it
                peaks.append(torch.maximum(log_prob, self.average.log_prob(clean)).max().item())
        bits, peak = torch.cat(bits), max(peaks)
        result = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 3),
            "bits_per_dim": round(bits.mean().item(), 4),
            "log_prob_peak": round(peak, 1),
            "held_out_images": len(self.held_out),
            "seconds": round(self.seconds, 1),
        }
        self._save(result)
        return result

    def _save(self, result: dict) -> None:
        generator = torch.Generator(self.device).manual_seed(0)
        samples = self.average.sample(64, 0.8, generator)
        save_png(image_grid(samples, 8), self.folder / "samples.png", zoom=2)
        info = {**self.info, **result, "train_config": asdict(self.config),
                "train_images": len(self.source), "torch": torch.__version__}  # fmt: skip
        save_flow(self.average, self.folder / "flow.safetensors", info)
        self._save_state()
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(result) + "\n")

    def _identity(self) -> str:
        """What must agree for a state to be continued; epochs may be extended."""
        options = {k: v for k, v in asdict(self.config).items() if k not in _FREE}
        return json.dumps([self.flow.config.to_dict(), options, self.source.describe()])

    def _save_state(self) -> None:
        tensors = {f"flow.{k}": v for k, v in self.flow.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        header = {"step": self.step, "seconds": self.seconds, "identity": self._identity()}
        with whole_file(self.folder / "state.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"trainer": json.dumps(header)})

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["trainer"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ArgumentError(
                "Trainer", "folder", "a whole state.safetensors", f"{path}: {error}"
            ) from None
        require(
            header["identity"] == self._identity(), "Trainer", "folder",
            "a state of this same configuration and data (or an empty folder)", str(path),
        )  # fmt: skip
        self.step, self.seconds = header["step"], header["seconds"]

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.flow.load_state_dict(part("flow."))
        self.average.load_state_dict(part("average."))
        adam = self.optimiser.state_dict()
        for key, value in part("adam.").items():
            index, name = key.split(".")
            adam["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(adam)


# Options that may change when a run goes on: none of them changes what is learnt.
_FREE = ("epochs", "recompute", "compile")


class _LogProb(nn.Module):
    """A flow's log p as the forward call that DistributedDataParallel wraps."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


def pixels(flow: Flow, images: Tensor) -> Tensor:
    """uint8 images on the flow's device, at its pixel depth, in [0, 1]."""
    return reduce_depth(images.to(flow.device), flow.config.bits).float() / 255


def reduce_depth(images: Tensor, bits: int) -> Tensor:
    """8-bit images to ``bits`` bits, on the scale 0..255 (levels k * 255 / (2^bits - 1))."""
    if bits >= 8:
        return images
    levels = 2**bits - 1
    return ((images >> (8 - bits)).float() * (255 / levels)).round().to(torch.uint8)


def _sentence(result: dict) -> str:
    return (
        f"epoch {result['epoch']:g}: {result['bits_per_dim']:.3f} bits/dim on "
        f"{result['held_out_images']} held-out images after {result['seconds'] / 60:.1f} min"
    )
