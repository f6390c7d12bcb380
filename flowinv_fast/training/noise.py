"""A noise model learnt from recordings: closed forms, then a flow of what the best one leaves."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ResultWarning
from .._base.files import whole_file
from .._base.strict_json import to_json
from ..flows import Flow, FlowConfig, RealNVPConfig, build_flow, load_flow
from ..noise import FlowNoise, LawCheck, NoiseFit, SignalDependent, compare, fit
from ..protocols import Whitening, provides
from .flow import FlowTrainConfig, FlowTrainer
from .laws import save_noise

_STEPS, _BATCH = 500, 32
_VALIDATION = 0.1  # of the recordings to fit, at which the flow's training is evaluated
_EVALUATIONS = 16


def noise_config(shape: tuple[int, int, int]) -> RealNVPConfig:
    """The flow that recordings (C, H, W) get without a word: small, as recordings are few.

    >>> noise_config((1, 28, 28)).scales, noise_config((1, 1, 50)).scales
    (2, 1)
    """
    halves = shape[1] % 2 == 0 and shape[2] % 2 == 0
    return RealNVPConfig(shape, 2 if halves else 1, 32, 1, bits=0, smoothing=0.0)


def noise_training(count: int) -> FlowTrainConfig:
    """How it is trained on so many recordings: 500 steps, whatever their number."""
    batch = min(_BATCH, count)
    epochs = _STEPS / max(1, count // batch)
    return FlowTrainConfig(epochs, batch, 3e-3, warmup=20, schedule="cosine", ema=0.99)


@torch.inference_mode(False)
def train_noise(
    samples: Tensor,
    folder: str | os.PathLike[str],
    *,
    clean: Tensor | None = None,
    config: Callable[[tuple[int, int, int]], FlowConfig] = noise_config,
    train_config: Callable[[int], FlowTrainConfig] = noise_training,
    held_out: float = 0.2,
    seed: int = 0,
    minutes: float = math.inf,
    evaluate_every: float | None = None,
    save_minutes: float = 5.0,
    device: str | torch.device = "cpu",
    info: dict[str, Any] | None = None,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[NoiseFit, LawCheck]:
    """Learn a noise model from recordings and leave it in a folder.

    The closed forms of ``noise.fit`` come first. The likeliest Gaussian among them whitens the
    recordings, and a flow is trained on what comes out: it starts as that law and learns what no
    Gaussian has. The weights are kept that a part of the recordings, kept out of its training,
    finds best. Then all are ranked on recordings that neither has seen.

    noise.safetensors   the law that was chosen, for ``load_noise``
    noise.json, .md     the table, and the check of the law against the held-out recordings
    flow.safetensors, state.safetensors, log.jsonl, samples.png    the flow's, see ``FlowTrainer``

    Args:
        samples: y - f(x), float (N, C, H, W) or (N, D), as ``noise.fit`` takes them.
        folder: created; a training that was broken off there goes on.
        clean: f(x) at which each was recorded, where the noise follows the signal, as ``noise.fit``
            takes it; the flow is then of noise on unit scale.
        config: the (C, H, W) of the recordings, (1, 1, D) of vectors, to the flow; ``bits`` 0.
        train_config: the number of recordings that it is trained on to how.
        held_out, seed: share and split of the recordings that are held out, as in ``noise.fit``.
        minutes: of training at most.
        evaluate_every: epochs between evaluations; None: sixteen of them. The first is before the
            first step, of the closed form itself.
        save_minutes: as ``Trainer.run`` takes it.
        device, info, progress: as a ``Trainer`` takes them.
        stop: as ``Trainer.run`` takes it.
    Returns:
        What ``noise.fit`` found, the flow among the rest, and how ``noise.compare`` finds the best.
    Raises:
        ArgumentError: recordings that ``noise.fit`` refuses, or a configuration that does not fit.
        SolverError: training has lost its way.
    """
    folder = Path(folder)
    own = lambda v: torch.as_tensor(v, dtype=torch.float64).detach().cpu().clone()
    x, signal = own(samples), None if clean is None else own(clean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)  # told below, of the whole table
        first = fit(x, signal, held_out=held_out, seed=seed)
    at = None if signal is None else signal.expand(x.shape)
    base, level = _whitening(first)
    kept = torch.ones(len(x), dtype=torch.bool)
    kept[first.held_out] = False
    unit = x if level is None or at is None else x / level.std_of(at)
    white = base.whiten(unit[kept])[0].float()
    white = white if white.dim() == 4 else white[:, None, None]
    count = max(1, round(_VALIDATION * len(white)))
    images, validation = white[count:].contiguous(), white[:count].contiguous()
    how, flow = train_config(len(images)), _white_flow(config(tuple(white.shape[1:])), seed)
    facts = {"kind": "noise", "whitened by": _name(first, level or base), **(info or {})}
    trainer = FlowTrainer(
        flow.config, how, images, validation, folder, device, facts, progress, flow
    )
    if trainer.step == 0:
        trainer.evaluate()
    period = how.epochs / _EVALUATIONS if evaluate_every is None else evaluate_every
    trainer.run(minutes, period, save_minutes, stop)
    law: Any = FlowNoise(load_flow(folder / FlowTrainer.weights_file), whitening=base)
    law = law if level is None else SignalDependent(law, level.signal, level.std)
    found = fit(x, at, held_out=held_out, seed=seed, flow=law)
    test = found.held_out
    check = compare(found.best, x[test], None if at is None else at[test], seed=seed)
    _write(folder, found, check, {**facts, "recordings": list(x.shape), "seed": seed})
    return found, check


def _white_flow(config: FlowConfig, seed: int) -> Flow:
    """A flow that is the standard normal law: recordings that are white need no standardisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_flow(config)


def _whitening(found: NoiseFit) -> tuple[Any, SignalDependent | None]:
    """The likeliest law that whitens; and whose part it is, where its level follows the signal."""
    for score in found.table:
        model = found.models[score.name]
        if provides(model, Whitening):
            return model, None
        if isinstance(model, SignalDependent) and provides(model.law, Whitening):
            return model.law, model
    raise AssertionError("noise.fit fits Gaussians")


def _name(found: NoiseFit, law: Any) -> str:
    return next(name for name, model in found.models.items() if model is law)


def _write(folder: Path, found: NoiseFit, check: LawCheck, facts: dict[str, Any]) -> None:
    told = {
        **facts,
        "chosen": found.name,
        "message": found.message,
        "table": [row._asdict() for row in found.table],
        "check": check.message,
        "statistics": [row._asdict() for row in check.rows],
    }
    save_noise(found.best, folder / "noise.safetensors", {**facts, "chosen": found.name})
    for name, text in (("noise.json", to_json(told, 1)), ("noise.md", _page(found, check, facts))):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text + "\n", "utf-8")


def _page(found: NoiseFit, check: LawCheck, facts: dict[str, Any]) -> str:
    lines = ["# Noise model", "", *(f"* {key}: {value}" for key, value in facts.items()), ""]
    lines += ["## Laws, by the likelihood of held-out recordings", ""]
    lines += ["```", repr(found), "```", ""]
    lines += ["## Its draws against held-out recordings", "", "```", repr(check), "```", ""]
    return "\n".join([*lines, "In Python: `flowinv_fast.load_noise(FOLDER)`."])
