"""What training a flow and training a generator share: files, log, resuming, when to stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .._base.errors import ResultWarning, SolverError, is_real, is_whole, require
from .._base.files import locked_folder, made_folder, reading, whole_file
from .._base.identity import changes, digest
from .._base.strict_json import to_json
from .._base.tensors import known_device
from .._base.version import VERSION
from .._base.weights import open_tensors
from ..data.images import image_grid, require_images, save_png
from ..data.sources import Crops, Stored
from ..flows.conditioner import conditioner_precision
from .config import ModelConfig, TrainConfig, curve_in_words

# Options that may change when a run goes on: none of them changes what is learnt.
_FREE = ("epochs", "recompute", "compile")
_STATE = "state.safetensors"


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
        images: uint8 (N, C, H, W), the training images, or a source of ``flowinv_fast.data``;
            float32 of any range for a configuration of ``bits`` 0.
        held_out: the same (M, C, H, W), never trained on; None where ``needs_held_out`` is False.
        folder: where the files go; created.
        device: where to compute, and where the images are kept.
        info: facts for the header of the weights file (name of the data, licence).
        progress: show progress bars.
    Raises:
        ArgumentError: images of another size, a folder with the state of another configuration or
            of other images, or a batch that the processes cannot share evenly.
        DataError: a state that is damaged.
        SolverError: training has lost its way to values that are not finite; the files of the last
            evaluation stay as they are, and are named.
    Warns:
        ResultWarning: images that are all the same, or a state of another version.
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
        self.folder, self.device = Path(folder), known_device(self._name, device)
        source = self._checked_source(images)
        self._data = source.describe()
        self.source = source.to(self.device)
        if held_out is not None or self.needs_held_out:
            require_images(self._name, "held_out", held_out, config.shape, dtype=self._kind)
        self.held_out = held_out
        self._tell_if_all_the_same()
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
        self._spent = 0.0  # share of the minutes that a run was given
        self._last_result: dict[str, Any] = {}
        self._saved_step = 0  # of the files in the folder; 0: there are none
        self._best = math.inf  # score of the weights in the folder, of this training
        self.networks: dict[str, nn.Module] = {}  # filled by _build; all their weights are state
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self._identity = self._described()
        made_folder(self.folder)
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

    def _score(self, result: dict[str, Any]) -> float:
        """Of an evaluation: the weights of the lowest are kept, and of equals the latest."""
        return -math.inf

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
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Train to the last epoch, or for this many minutes.

        Args:
            minutes: stop after so long (where ``whole_epochs``, at the end of that epoch). Along a
                cosine the minutes of earlier runs count, and a training that was broken off goes on
                with other bits, as its learning rate follows the clock.
            evaluate_every: epochs between evaluations.
            save_minutes: what a run that is killed, or interrupted within a step, loses at most.
            stop: asked before every step; where it says so, what was learnt is evaluated and saved
                and the run ends, so that the next one goes on with the same bits.
        Returns:
            The last evaluation.
        """
        for name, value in (("minutes", minutes), ("save_minutes", save_minutes)):
            good = isinstance(value, (int, float)) and value >= 0
            require(good, self._name, name, "a number of at least 0", value)
        good = is_real(evaluate_every) and evaluate_every > 0
        require(good, self._name, "evaluate_every", "a finite positive number", evaluate_every)
        alone = (
            locked_folder(self.folder, self._name) if self.rank == 0 else contextlib.nullcontext()
        )
        try:
            with alone:
                return self._run(minutes, evaluate_every, save_minutes, stop)
        except SolverError as error:
            raise SolverError(f"{error}; {self._kept()}") from None

    def _run(
        self,
        minutes: float,
        evaluate_every: float,
        save_minutes: float,
        stop: Callable[[], bool],
    ) -> dict[str, Any]:
        earlier = self.seconds if self.train_config.schedule == "cosine" else 0.0
        started = mark = saved = time.perf_counter()
        period = max(1, round(evaluate_every * self.steps_per_epoch))
        share = lambda: (earlier + mark - started) / max(60 * minutes, 1e-9)
        bar = tqdm(total=self.last_step, initial=self.step, disable=not self.progress, unit="step")
        with bar:
            while self.step < self.last_step:
                self._spent = self._agreed(share())
                if self._spent > 1 and not (self.whole_epochs and self.step % self.steps_per_epoch):
                    break
                if stop():
                    bar.write("stopped: saving")
                    break
                loss = self._train_step()
                now = time.perf_counter()
                self.seconds, mark = self.seconds + now - mark, now
                bar.update()
                if self.step % 20 == 0:
                    shown = {self.loss_name: f"{loss:.3f}", "lr": f"{self._lr():.1e}"}
                    if minutes < math.inf:
                        shown["minutes left"] = f"{minutes * max(0.0, 1 - self._spent):.0f}"
                    bar.set_postfix(shown)
                if self.step % period == 0 and self.step < self.last_step:
                    result = self.evaluate()
                    mark = saved = time.perf_counter()
                    if self.progress and share() <= 1:  # training goes on
                        bar.write(self._sentence(result))
                elif now - saved > 60 * save_minutes:
                    if self.rank == 0:
                        self._save_state()
                    mark = saved = time.perf_counter()
        fresh = self._last_result.get("step") == self.step
        return self._last_result if fresh else self.evaluate()

    def _agreed(self, number: float) -> float:
        """What the first process says: its clock decides for all."""
        if not self.together:
            return number
        first = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.broadcast(first, 0)
        return first.item()

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
        lr = config.lr * min(1, (self.step + 1) / (config.warmup + 1))
        if config.schedule == "cosine":
            done = min(1.0, max(self.step / self.last_step, self._spent))
            return lr * 0.5 * (1 + math.cos(math.pi * done))
        every = config.halve_every or math.inf
        return lr * 0.5 ** math.floor(self.step / self.steps_per_epoch / every)

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
        for name, value in result.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise SolverError(
                    f"training: {name} is {value} at step {self.step}; try a smaller lr, a longer "
                    "warmup, or fp32"
                )
        self._save(result)
        return result

    def _save(self, result: dict[str, Any]) -> None:
        generator = torch.Generator(self.device).manual_seed(0)
        samples = self._shown(self._samples(64, generator))
        save_png(image_grid(samples, 8), self.folder / "samples.png", zoom=2)
        self.facts = {
            **self.info,
            **result,
            "train_config": asdict(self.train_config),
            "train_images": len(self.source),
            "torch": torch.__version__,
            "curve": curve_in_words(self._log(result)),
        }
        weights, score = self.folder / self.weights_file, self._score(result)
        if score <= self._best or not weights.exists():
            self._best = score
            self._save_weights(weights, self.facts)
        self._save_state()

    def _shown(self, samples: Tensor) -> Tensor:
        """Samples in [0, 1], grey or colour: real numbers up to four standard deviations."""
        if self._kind == torch.float32:
            samples = 0.5 + (samples - samples.mean()) / (8 * samples.std() + 1e-12)
        return samples if samples.shape[1] in (1, 3) else samples[:, :1]

    def _log(self, result: dict[str, Any]) -> list[str]:
        """A line to log.jsonl, which a state comes after: lines of steps that are taken again go.

        A line that is damaged, by another program or a disk that was full, is left out and told.
        """
        path, lines, lost = self.folder / "log.jsonl", [], 0
        before = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        for line in before:
            try:
                if json.loads(line)["step"] < result["step"]:
                    lines.append(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                lost += 1
        if lost:
            warnings.warn(f"{path}: {lost} damaged lines left out", ResultWarning, stacklevel=6)
        with whole_file(path) as temporary:
            temporary.write_text("\n".join([*lines, to_json(result)]) + "\n", "utf-8")
        return [*lines, to_json(result)]

    def _kept(self) -> str:
        """What is left of a training that failed, in words."""
        path, step = self.folder / self.weights_file, self._saved_step
        if not path.exists():
            return f"no weights were saved in {self.folder}"
        return f"{path} and {_STATE} stay as they were saved, the state at step {step}"

    def _described(self) -> dict[str, Any]:
        """What must agree for a state to be continued; epochs may be extended."""
        options = {k: v for k, v in asdict(self.train_config).items() if k not in _FREE}
        held_out = None if self.held_out is None else digest(self.held_out)
        return {
            "model": type(self.config).__name__,
            **json.loads(to_json({**self.config.to_dict(), **options})),
            "training images": json.loads(to_json(self._data)),
            "held-out images": held_out,
            "start": self._start_identity(),
        }

    def _start_identity(self) -> str | None:
        """Which weights training began at, by content; None: fresh ones."""
        return None

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
            for weight, entries in optimiser.state.items():
                shapes = {entry: tuple(value.shape) for entry, value in entries.items()}
                if set(shapes.values()) - {(), tuple(weight.shape)}:
                    raise ValueError(f"{name}: {shapes} for a weight {tuple(weight.shape)}")
            if len({tuple(sorted(entries)) for entries in optimiser.state.values()}) > 1:
                raise ValueError(f"{name}: some of its values are missing")

    def _save_state(self) -> None:
        tensors = {k: v.detach().cpu().contiguous() for k, v in self._state().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise SolverError(
                    f"training: {name} is not finite at step {self.step}; try a smaller lr"
                )
        header = {
            "step": self.step,
            "seconds": self.seconds,
            "identity": self._identity,
            "versions": _versions(),
            "best": self._best if math.isfinite(self._best) else None,
        }
        with whole_file(self.folder / _STATE) as temporary:
            save_file(tensors, temporary, metadata={"trainer": to_json(header)})
        self._saved_step = self.step

    def _resume(self) -> None:
        path = self.folder / _STATE
        with reading(self._name, "folder", path), open_tensors(path, "trainer") as (file, header):
            step, seconds = header["step"], header["seconds"]
            if not is_whole(step) or not is_real(seconds):
                raise ValueError(f"its header says step {step}, {seconds} seconds")
            other = changes(header["identity"], self._identity)
            versions = changes(header["versions"], _versions())
            if not other:
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
                self._load_state(tensors)
        wanted = "a state of this same configuration and data (or an empty folder)"
        got = f"{path} with another {', another '.join(other)}"
        require(not other, self._name, "folder", wanted, got)
        best = header.get("best")
        self._best = float(best) if is_real(best) else math.inf
        self.step, self.seconds = step, float(seconds)
        self._saved_step = self.step
        if versions:
            told = "the training goes on, but not with the bits of one without a break"
            warnings.warn(
                f"{path} is of another {', another '.join(versions)}: {told}",
                ResultWarning,
                stacklevel=4,
            )

    # -- checks --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _kind(self) -> torch.dtype:
        """Of the images: bytes, or real numbers for an architecture without a pixel depth."""
        return torch.float32 if getattr(self.config, "bits", 8) == 0 else torch.uint8

    def _checked_source(self, images: Tensor | Stored | Crops) -> Stored | Crops:
        shape = tuple(self.config.shape)
        if not isinstance(images, (Stored, Crops)):
            fewest, kind = self.fewest_images, self._kind
            require_images(self._name, "images", images, self.config.shape, fewest, kind)
            images = self._stored(images)
        require(images.shape == shape, self._name, "images", f"of shape {shape}", images.shape)
        found = images.batch(0, 1).dtype
        require(found == self._kind, self._name, "images", f"of {self._kind}", found)
        enough, wanted = len(images) >= self.fewest_images, f"at least {self.fewest_images} of them"
        require(enough, self._name, "images", wanted, len(images))
        return images

    def _tell_if_all_the_same(self) -> None:
        """Images without any difference have no density to learn."""
        first = self.source.batch(0, min(64, len(self.source)))
        if len(first) > 1 and bool((first == first[:1]).all()):
            told = "the first training images are all the same: there is no density to learn"
            warnings.warn(told, ResultWarning, stacklevel=4)

    def _check_processes(self) -> None:
        """A batch is shared evenly."""
        batch, count = self.train_config.batch, len(self.source)
        even, wanted = batch % self.world == 0, f"a multiple of the {self.world} processes"
        require(even, self._name, "batch", wanted, batch)
        enough = self.world == 1 or count >= batch
        require(enough, self._name, "batch", f"at most the {count} images", batch)


def _versions() -> dict[str, str]:
    """What may change the bits of a training that goes on."""
    return {"flowinv_fast": VERSION, "torch": torch.__version__}


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``name.``, without that beginning."""
    start = f"{name}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
