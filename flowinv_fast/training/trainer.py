"""What training a flow and training a generator share: files, log, resuming, when to stop."""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .._base.backend import PRECISIONS
from .._base.errors import ArgumentError, is_whole, require
from .._base.files import whole_file
from .._base.tensors import DATA_SEEDS, check_seed
from ..data.images import image_grid, require_images, save_png
from ..data.sources import Crops, Stored
from ..flows.conditioner import conditioner_precision

# Options that may change when a run goes on: none of them changes what is learnt.
_FREE = ("epochs", "recompute", "compile")
_STATE = "state.safetensors"


class ModelConfig(Protocol):
    """What a trainer reads of an architecture: the size of its images and its plain values."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in the header of a weights file."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever is trained.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all processes together.
        lr: Adam learning rate, reached after ``warmup`` steps.
        warmup: steps of linear learning-rate warm-up.
        halve_every: epochs after which the learning rate is halved, repeatedly; None: never.
        seed: fixes everything random, 0 .. 2^40 - 1.
        precision: what the networks multiply in: fp32, tf32 (CUDA) or bf16.
        compile: pass the networks through torch.compile; pays on long runs.
    Raises:
        ArgumentError: a value out of its range.
    """

    epochs: float = 10
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    halve_every: float | None = None
    seed: int = 0
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr"):
            value = getattr(self, name)
            good = isinstance(value, (int, float)) and 0 < value < math.inf
            self._check(good, name, "a positive number")
        self._check(is_whole(self.batch, 1), "batch", "an integer of at least 1")
        self._check(self.warmup >= 0, "warmup", "at least 0")
        good = self.halve_every is None or self.halve_every > 0
        self._check(good, "halve_every", "a positive number, or None")
        check_seed(type(self).__name__, self.seed, seeds=DATA_SEEDS)
        self._check(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")

    def _check(self, good: bool, name: str, wanted: str) -> None:
        require(good, type(self).__name__, name, wanted, repr(getattr(self, name)))


class Trainer(ABC):
    """Trains a model and leaves its files in a folder: the base of both trainers.

    NAME.safetensors    the weights: ``weights_file``, what ``model`` holds
    state.safetensors   everything needed to go on where training stopped
    log.jsonl           one line per evaluation: step, epoch, what was measured, seconds
    samples.png         samples of the latest evaluation

    Files are replaced whole, so a killed run leaves the last complete ones; a new trainer on the
    same folder and configuration goes on from there, on a CPU with the bits of a run never killed.

    A kind of model supplies its networks and optimisers (``_build``), what happens before the first
    step (``_prepare``), one update of the weights (``_update``), what is measured (``_measure``),
    the model that is saved (``model``) and how it is saved (``_save_weights``).

    Args:
        config: architecture.
        train_config: how to train.
        images: uint8 (N, C, H, W), the training images, or a source of ``flowinv_fast.data``.
        held_out: uint8 (M, C, H, W), never trained on; None where ``needs_held_out`` is False.
        folder: where the files go; created.
        device: where to compute, and where the images are kept.
        info: facts for the header of the weights file (name of the data, licence).
        progress: show progress bars.
    Raises:
        ArgumentError: images of another size, a folder with another configuration's state, or a
            batch that the processes cannot share evenly.
        SolverError: training has lost its way to values that are not finite.
    """

    weights_file: ClassVar[str]
    loss_name: ClassVar[str] = "loss"  # of what a step returns, in the progress bar
    whole_epochs: ClassVar[bool] = False  # training ends at the end of an epoch only
    fewest_images: ClassVar[int] = 1
    needs_held_out: ClassVar[bool] = True

    def __init__(
        self,
        config: ModelConfig,
        train_config: TrainConfig,
        images: Tensor | Stored | Crops,
        held_out: Tensor | None,
        folder: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        info: dict[str, Any] | None = None,
        progress: bool = True,
    ):
        self.config, self.train_config = config, train_config
        self.folder, self.device = Path(folder), torch.device(device)
        self.source = self._checked_source(images).to(self.device)
        if held_out is not None or self.needs_held_out:
            require_images(self._name, "held_out", held_out, config.shape)
        self.held_out = held_out
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.world = dist.get_world_size() if self.together else 1
        self._check_processes()
        self.info, self.progress = dict(info or {}), progress and self.rank == 0
        self.facts: dict[str, Any] = {}  # in the header of the weights file, once one is written
        self.step, self.seconds = 0, 0.0
        self.steps_per_epoch = max(1, len(self.source) // train_config.batch)
        epochs = math.ceil(train_config.epochs) if self.whole_epochs else train_config.epochs
        self.last_step = math.ceil(epochs * self.steps_per_epoch)
        self._last_result: dict[str, Any] = {}
        self.networks: dict[str, nn.Module] = {}  # filled by _build; all their weights are state
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train_config.seed)
            self._build()
        fresh = not (self.folder / _STATE).exists()
        if not fresh:
            self._resume()
        self._prepare(fresh)

    # -- what a kind of model supplies ---------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Fill ``networks`` and ``optimisers``; torch's generator is seeded while this runs."""

    @abstractmethod
    def _prepare(self, fresh: bool) -> None:
        """Before the first step, weights of a state being loaded (or ``fresh``): compile, share."""

    @abstractmethod
    def _update(self, images: Tensor, first: int) -> float:
        """One update on this process's uint8 (B, C, H, W), from image ``first`` of the batch on."""

    @abstractmethod
    def _measure(self, batch: int) -> dict[str, float | None]:
        """What an evaluation finds, by name; ``batch`` images at a time."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What the weights file holds: in evaluation mode, without gradients, facts in ``info``."""

    @abstractmethod
    def _samples(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples (count, C, H, W) of the model for the picture."""

    @abstractmethod
    def _save_weights(self, path: Path, info: dict[str, Any]) -> None:
        """Write the weights file, whole or not at all."""

    @abstractmethod
    def _sentence(self, result: dict[str, Any]) -> str:
        """An evaluation in a line for the progress bar."""

    def _stored(self, images: Tensor) -> Stored:
        """A tensor of images as a source, which fixes their order."""
        return Stored(images, seed=self.train_config.seed)

    # -- the loop ------------------------------------------------------------------------------

    def run(
        self,
        minutes: float = math.inf,
        evaluate_every: float = 1.0,
        save_minutes: float = 5.0,
    ) -> dict[str, Any]:
        """Train to the last epoch, or for this many minutes.

        Args:
            minutes: stop after so long (where ``whole_epochs``, at the end of that epoch).
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
            while self.step < self.last_step and not self._stops(mark - started > 60 * minutes):
                loss = self._train_step()
                now = time.perf_counter()
                self.seconds, mark = self.seconds + now - mark, now
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix({self.loss_name: f"{loss:.3f}", "lr": f"{self._lr():.1e}"})
                if self.step % period == 0 and self.step < self.last_step:
                    result = self.evaluate()
                    mark = saved = time.perf_counter()
                    if self.rank == 0 and mark - started <= 60 * minutes:  # training goes on
                        bar.write(self._sentence(result))
                elif now - saved > 60 * save_minutes:
                    if self.rank == 0:
                        self._save_state()
                    mark = saved = time.perf_counter()
        except KeyboardInterrupt:
            if self.together:  # the others may be elsewhere: the last saved state is what stays
                raise
            bar.write("interrupted: saving")
        bar.close()
        fresh = self._last_result.get("step") == self.step
        return self._last_result if fresh else self.evaluate()

    def _stops(self, over: bool) -> bool:
        """Whether to stop here once the time is over; the first process's clock decides for all."""
        over = over and not (self.whole_epochs and self.step % self.steps_per_epoch)
        if not self.together:
            return over
        flag = torch.tensor(float(over), device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag)

    def _train_step(self) -> float:
        """One step on the next batch; returns the loss, in the units of ``loss_name``."""
        size = self.train_config.batch
        share = size // self.world
        first = self.rank * share
        images = self.source.batch(self.step, size, slice(first, first + share))
        lr = self._lr()
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group.get("lr_factor", 1.0) * lr
        loss = self._update(images, first)
        self.step += 1
        return loss

    def _lr(self) -> float:
        config = self.train_config
        every = config.halve_every or math.inf
        halvings = math.floor(self.step / self.steps_per_epoch / every)
        return config.lr * 0.5**halvings * min(1, (self.step + 1) / (config.warmup + 1))

    # -- evaluation and files ------------------------------------------------------------------

    def evaluate(self, batch: int = 250) -> dict[str, Any]:
        """Measure the model; writes weights, state, samples and a line of the log.

        Args:
            batch: held-out images at a time.
        Returns:
            step, epoch, what was measured, held_out_images and seconds of training.
        """
        results: list[Any] = [None]
        if self.rank == 0:
            with conditioner_precision("fp32", self.device), torch.no_grad():
                results = [self._evaluate(batch)]
        if self.together:
            dist.broadcast_object_list(results, 0)
        self._last_result = results[0]
        return results[0]

    def _evaluate(self, batch: int) -> dict[str, Any]:
        result: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 3),
            **self._measure(batch),
        }
        if self.held_out is not None:
            result["held_out_images"] = len(self.held_out)
        result["seconds"] = round(self.seconds, 1)
        self._save(result)
        return result

    def _save(self, result: dict[str, Any]) -> None:
        generator = torch.Generator(self.device).manual_seed(0)
        samples = self._samples(64, generator)
        save_png(image_grid(samples, 8), self.folder / "samples.png", zoom=2)
        self.facts = {
            **self.info,
            **result,
            "train_config": asdict(self.train_config),
            "train_images": len(self.source),
            "torch": torch.__version__,
        }
        self._save_weights(self.folder / self.weights_file, self.facts)
        self._save_state()
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(result) + "\n")

    def _identity(self) -> str:
        """What must agree for a state to be continued; epochs may be extended."""
        options = {k: v for k, v in asdict(self.train_config).items() if k not in _FREE}
        kind = type(self.config).__name__
        return json.dumps([kind, self.config.to_dict(), options, self.source.describe()])

    def _state(self) -> dict[str, Tensor]:
        """Every tensor that the steps to come depend on."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{k}": v for k, v in network.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{k}": v for k, v in state.items()}
        return tensors

    def _load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what ``_state`` gave."""
        for name, network in self.networks.items():
            network.load_state_dict(_part(tensors, name))
        for name, optimiser in self.optimisers.items():
            state = optimiser.state_dict()
            for key, value in _part(tensors, name).items():
                index, entry = key.split(".")
                state["state"].setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict(state)

    def _save_state(self) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self._state().items()}
        header = {"step": self.step, "seconds": self.seconds, "identity": self._identity()}
        with whole_file(self.folder / _STATE) as temporary:
            save_file(tensors, temporary, metadata={"trainer": json.dumps(header)})

    def _resume(self) -> None:
        path = self.folder / _STATE
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["trainer"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ArgumentError(
                self._name, "folder", "a whole state.safetensors", f"{path}: {error}"
            ) from None
        wanted = "a state of this same configuration and data (or an empty folder)"
        require(header["identity"] == self._identity(), self._name, "folder", wanted, str(path))
        self.step, self.seconds = header["step"], header["seconds"]
        self._load_state(tensors)

    # -- checks --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _checked_source(self, images: Tensor | Stored | Crops) -> Stored | Crops:
        shape = tuple(self.config.shape)
        if not isinstance(images, (Stored, Crops)):
            require_images(self._name, "images", images, self.config.shape, self.fewest_images)
            images = self._stored(images)
        require(images.shape == shape, self._name, "images", f"of shape {shape}", images.shape)
        enough, wanted = len(images) >= self.fewest_images, f"at least {self.fewest_images} of them"
        require(enough, self._name, "images", wanted, len(images))
        return images

    def _check_processes(self) -> None:
        """A batch is shared evenly."""
        batch, count = self.train_config.batch, len(self.source)
        even, wanted = batch % self.world == 0, f"a multiple of the {self.world} processes"
        require(even, self._name, "batch", wanted, batch)
        enough = self.world == 1 or count >= batch
        require(enough, self._name, "batch", f"at most the {count} images", batch)


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``name.``, without that beginning."""
    start = f"{name}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
