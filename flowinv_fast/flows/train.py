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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .._files import whole_file
from ..data.images import image_grid, require_images, save_png
from ..errors import ArgumentError, SolverError, require
from .io import save_flow
from .realnvp import RealNVP, RealNVPConfig


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        epochs: passes over the training images.
        batch: images per step.
        lr: Adam learning rate, reached after ``warmup`` steps.
        halve_every: epochs after which the learning rate is halved, repeatedly.
        max_grad_norm: gradients are clipped to this norm.
        penalty: weight of the sum of squared weight-normalisation gains.
        ema: decay of the exponential moving average of the weights, which is what is saved.
        warmup: steps of linear learning-rate warm-up.
        seed: fixes initial weights, order of images and dequantisation noise.
        bf16: run the conditioners in bfloat16 (log-determinants stay in float32).
    """

    epochs: float = 10
    batch: int = 128
    lr: float = 1e-3
    halve_every: float = 40
    max_grad_norm: float = 100.0
    penalty: float = 5e-5
    ema: float = 0.999
    warmup: int = 200
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "halve_every", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, "TrainConfig", name, "a positive number", value)
        require(0 <= self.ema < 1, "TrainConfig", "ema", "a number in [0, 1)", self.ema)
        require(self.penalty >= 0, "TrainConfig", "penalty", "at least 0", self.penalty)
        require(self.warmup >= 0, "TrainConfig", "warmup", "at least 0", self.warmup)


class Trainer:
    """Trains a RealNVP and leaves its files in a folder.

    flow.safetensors    the moving average of the weights, ready for ``load_flow``
    state.safetensors   everything needed to go on where training stopped
    log.jsonl           one line per evaluation: step, epoch, bits/dim, seconds
    samples.png         samples of the latest evaluation

    Files are replaced whole, so a killed run leaves the last complete ones; a new Trainer on the
    same folder and configuration goes on from there.

    Args:
        flow_config: architecture.
        config: how to train.
        images: uint8 (N, C, H, W), the training images.
        held_out: uint8 (M, C, H, W), never trained on.
        folder: where the files go; created.
        device: where to compute.
        info: facts for the header of the weights file (name of the data, licence).
        progress: show progress bars.
    Raises:
        ArgumentError: images of another size, or a folder with another configuration's state.
        SolverError: the loss is not finite for 20 steps in a row.
    """

    def __init__(
        self,
        flow_config: RealNVPConfig,
        config: TrainConfig,
        images: Tensor,
        held_out: Tensor,
        folder: str | os.PathLike,
        device: str | torch.device = "cpu",
        info: dict | None = None,
        progress: bool = True,
    ):
        for name, data in (("images", images), ("held_out", held_out)):
            require_images("Trainer", name, data, flow_config.shape)
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.images = _reduce_depth(images, flow_config.bits)
        self.held_out = _reduce_depth(held_out, flow_config.bits)
        self.info, self.progress = dict(info or {}), progress
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.flow = RealNVP(flow_config).to(self.device)
        self.average = copy.deepcopy(self.flow).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.flow.parameters(), lr=config.lr)
        self.step, self.seconds, self.bad_steps = 0, 0.0, 0
        self.steps_per_epoch = max(1, len(self.images) // config.batch)
        self.last_step = math.ceil(config.epochs * self.steps_per_epoch)
        if (self.folder / "state.safetensors").exists():
            self._resume()
        else:
            first = self._floats(self._batch_indices(0, 4096))
            first = self.flow.dequantise(first, config.seed, 1 << 60)
            self.flow.initialise(first)
            self.average.load_state_dict(self.flow.state_dict())

    # -- the loop ----------------------------------------------------------------------------

    def run(self, minutes: float = math.inf, evaluate_every: float = 1.0) -> dict:
        """Train to the last epoch, or for this many minutes; evaluate every so many epochs.

        Returns the last evaluation. Ctrl-C stops cleanly, keeping what was learnt.
        """
        started = mark = time.perf_counter()
        period = max(1, round(evaluate_every * self.steps_per_epoch))
        bar = tqdm(total=self.last_step, initial=self.step, disable=not self.progress, unit="step")
        try:
            while self.step < self.last_step and time.perf_counter() - started < 60 * minutes:
                loss = self._train_step()
                now = time.perf_counter()
                self.seconds, mark = self.seconds + now - mark, now
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix(bits=f"{loss:.3f}", lr=f"{self._lr():.1e}")
                if self.step % period == 0:
                    bar.write(_sentence(self.evaluate()))
                    mark = time.perf_counter()
        except KeyboardInterrupt:
            bar.write("interrupted: saving")
        bar.close()
        return self.evaluate()

    def _train_step(self) -> float:
        config = self.config
        x = self._floats(self._batch_indices(self.step, config.batch))
        x = self.flow.dequantise(x, config.seed, self.step * (x[0].numel() * config.batch))
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16):
            log_prob = self.flow.log_prob(x)
        bits = self.flow.bits_per_dim(log_prob).mean()
        loss = -log_prob.mean() + config.penalty * self.flow.weight_norm_penalty()
        self.optimiser.zero_grad(set_to_none=True)
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

    def _batch_indices(self, step: int, size: int) -> Tensor:
        """Images of a step; the order is a fresh permutation per epoch, fixed by the seed."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        return order[position * self.config.batch :][:size]

    def _floats(self, indices: Tensor) -> Tensor:
        return self.images[indices].to(self.device).float() / 255

    # -- evaluation and files -----------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, batch: int = 500) -> dict:
        """Held-out bits/dim of the averaged weights; writes weights, state, samples and log."""
        bits = []
        for start in range(0, len(self.held_out), batch):
            x = self.held_out[start : start + batch].to(self.device).float() / 255
            x = self.average.dequantise(x, 1, start * x[0].numel())
            bits.append(self.average.bits_per_dim(self.average.log_prob(x)))
        bits = torch.cat(bits)
        clean = self.held_out[:1000].to(self.device).float() / 255
        peak = max(self.average.log_prob(x).max().item() for x in clean.split(batch))
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
                "train_images": len(self.images), "torch": torch.__version__}  # fmt: skip
        save_flow(self.average, self.folder / "flow.safetensors", info)
        self._save_state()
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(result) + "\n")

    def _identity(self) -> str:
        """What must agree for a state to be continued; epochs may be extended."""
        options = {k: v for k, v in asdict(self.config).items() if k != "epochs"}
        return json.dumps([self.flow.config.to_dict(), options, len(self.images)])

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


def _reduce_depth(images: Tensor, bits: int) -> Tensor:
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
