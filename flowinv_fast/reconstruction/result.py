"""What ``reconstruct`` returns, how it is made of a solver's result, and how it is kept on disk."""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .._base.files import reading, whole_file
from .._base.strict_json import to_json
from .._base.tensors import accumulate_dtype, known_device
from .._base.weights import open_tensors, stored_tensor
from .objectives import Terms, generate, has_latents, latent_size
from .problem import Problem
from .solvers import Solution, Status

_KEY = "flowinv_fast"
_FORMAT = "flowinv_fast.reconstruction.2"
_LONGEST_FACTS = 2**24  # characters of status and config: a million images have fewer


@dataclass(frozen=True)
class Reconstruction:
    """What ``reconstruct`` returns; every field is per image and detached.

    Whether it can be trusted is told by ``status``, ``gain``, ``spread``, ``misfit``, ``outside``,
    ``prior_overshoot`` and ``prior_undershoot``; ``reconstruct`` warns (``ResultWarning``) of each,
    with the numbers of the images. N is the number of pixels C H W.

    Attributes:
        x: images (B, C, H, W), not clipped.
        z: latents (B, N) where they were optimised, else None.
        noise: the other half of the answer, the noise estimate y - f(x), shaped like y.
        loss, log_noise, log_prior: (B,) at x, in nats; a term the objective lacks is zero, and for
            the squared-error objectives log_noise is minus the squared error.
        prior_overshoot: whether log_prior passes the largest log p of held-out real images by more
            than 0.05 nats a pixel, (B,): a density that no real image has, so that a lower ``beta``
            may serve better. None where the prior's ``info`` does not tell ("log_prob_peak"), or
            where its images have any size.
        prior_undershoot: whether log_prior is below their mean by more than twice what the largest
            is above it, and 0.05 nats a pixel, (B,): an image unlike all of them. None where
            ``info`` does not tell ("log_prob_peak" and "bits_per_dim").
        misfit: z-score of the residual under the noise model, (B,):
            (log p_noise(y - f(x)) - mean) / std, mean and std over draws of the law, at f(x) where
            it depends on that, 24 in all or 12 an image where they differ, fixed by ``seed``. Below
            -6 the law finds the residual unlikely: a wrong noise level or operator, or a solve that
            is stuck. Positive is usual and not told: the image takes up some of the noise. None
            where the law cannot be drawn (``protocols.Sampled``, ``DrawnAt``), is not used by the
            objective, or where the operator has its noise inside; NaN where the solve was
            interrupted.
        outside: whether y lies outside what the operator and the noise make of images in the
            prior's range, (B,): its 5 % or 95 % quantile is farther from those of simulated
            measurements (of images 0, 1 and two draws of the prior, of uniform pixels where it has
            no latents) than a quarter of their width, three times the width where the law cannot be
            drawn. So are data in 0 .. 255 or -1 .. 1 for a prior of images in 0 .. 1. None where no
            simulation was possible.
        gain: by how much as many steps again may lower the loss, estimated from its fall over the
            last quarters of the way (``solvers.common.still_falling``), (B,). An image that took
            all steps is UNSETTLED where it is above 0.01 N nats, or, for objectives without a noise
            model, above 1 % of |loss|; or NaN, where no step was of the exact problem.
        spread: by how much the next-lowest of several starts ended above the one kept, (B,), in
            what the objective ranks by; above the bound of ``gain`` no start confirms another. None
            for one start.
        starts: how many starts ended with a finite loss, (B,).
        std: deviation of each pixel over draws of the posterior (B, C, H, W); None but for
            ``PosteriorMean``.
        history: losses (steps, B) of the restart that was kept.
        status: how each image's solve ended.
        steps: steps each image took (B,).
        config: what was done, as JSON has it: version, objective, strategy, steps, lr, start,
            restarts, precision, seed.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(2, 1, 28, 28), ff.load_flow("fashion-28")
    >>> found = ff.reconstruct(y, ff.operators.Identity(), flow, ff.noise.Gaussian(0.1), steps=2)
    >>> found.config["objective"]["name"]
    'map-image'
    """

    x: Tensor
    z: Tensor | None
    noise: Tensor
    loss: Tensor
    log_noise: Tensor
    log_prior: Tensor
    history: Tensor
    status: list[Status]
    steps: Tensor
    std: Tensor | None = None
    gain: Tensor | None = None
    spread: Tensor | None = None
    starts: Tensor | None = None
    misfit: Tensor | None = None
    outside: Tensor | None = None
    prior_overshoot: Tensor | None = None
    prior_undershoot: Tensor | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        ends = {s: self.status.count(s) for s in dict.fromkeys(self.status)}
        counts = ", ".join(f"{n} x {s.name}" for s, n in ends.items())
        told = []
        for name, of in {"loss": "mean", "gain": "largest", "spread": "largest"}.items():
            value = getattr(self, name)
            if value is not None and len(value):
                told.append(f"{of} {name} {value.mean() if of == 'mean' else value.amax():.2f}")
        if self.misfit is not None and len(self.misfit):
            told.append(f"misfit {self.misfit.amin():.1f} to {self.misfit.amax():.1f}")
        for name in ("outside", "prior_overshoot", "prior_undershoot"):
            flagged = getattr(self, name)
            if flagged is not None and flagged.any():
                told.append(f"{int(flagged.sum())} x {name}")
        return f"Reconstruction({', '.join([f'x {tuple(self.x.shape)}', *told, counts])})"

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to a safetensors file, whole or not at all; ``load`` reads it.

        The status and ``config`` are JSON in its header. Nothing is pickled.

        Args:
            path: file name, conventionally ending in .safetensors.
        """
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        tensors = {n: getattr(self, n).detach().cpu().contiguous().clone() for n in names}
        header = {
            "format": _FORMAT,
            "status": [status.name for status in self.status],
            "config": self.config,
        }
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={_KEY: to_json(header)})

    @classmethod
    def load(
        cls, path: str | os.PathLike, device: torch.device | str | None = None
    ) -> Reconstruction:
        """Read what ``save`` wrote.

        Args:
            path: file name.
            device: where the tensors go; None: the CPU.
        Raises:
            ArgumentError: no such device.
            DataError: a file that is missing, damaged, or not of ``save``.
        """
        device = known_device("Reconstruction.load", device)
        with (
            reading("Reconstruction.load", "path", path) as known,
            open_tensors(known, _KEY, _LONGEST_FACTS) as (file, header),
        ):
            if header["format"] != _FORMAT:
                raise ValueError(f"it is of format {header['format']}")
            if not (isinstance(header["config"], dict) and isinstance(header["status"], list)):
                raise ValueError("its config is no JSON object, or its status no list")
            tensors: Any = {name: stored_tensor(file, name).to(device) for name in file.keys()}  # noqa: SIM118
            status = [Status[name] for name in header["status"]]
            found = cls(**{"z": None, **tensors}, status=status, config=header["config"])
            batch = [v.shape[0] for n, v in tensors.items() if n != "history"]
            if {len(status), found.history.shape[1], *batch} != {len(status)}:
                raise ValueError("its numbers of images differ")
        return found


def plain(value: Any) -> Any:
    """A value as JSON has it: tensors as lists of numbers, dataclasses as their fields."""
    if isinstance(value, Tensor):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # JSON has no word for it
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value) if isinstance(value, numbers.Real) else repr(value)  # numpy's are Real


# --- made of a solver's result --------------------------------------------------------------------


def pack(solution: Solution, problem: Problem, scores: list[Tensor]) -> Reconstruction:
    """The result of a part of the batch; images that were not solved are zero.

    ``scores`` are those of all starts, (B,) each, infinite where one failed.
    """
    readable = problem.readable.tolist()
    status = [s if ok else Status.BAD_MEASUREMENT for s, ok in zip(solution.status, readable)]
    bad = [s in (Status.FAILED, Status.BAD_MEASUREMENT) for s in status]
    lost = torch.tensor(bad, dtype=torch.bool, device=problem.y.device)
    clear = lambda t: torch.where(lost.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t)
    best, image = clear(solution.best), problem.objective.space == "image"
    with torch.no_grad():
        x = clear(problem.images(best))
        estimate = clear(problem.y - problem.operator(x.clone()))
    terms = Terms(*(clear(t) for t in solution.terms))
    ranked = torch.stack(scores).sort(0).values if len(scores) > 1 else None
    finite = sum((s.isfinite().long() for s in scores), torch.zeros_like(solution.steps))
    return Reconstruction(
        x=x.detach(),
        z=None if image else best,
        noise=estimate,
        **terms._asdict(),
        history=torch.where(lost, torch.zeros_like(solution.history), solution.history),
        status=status,
        steps=clear(solution.steps),
        gain=clear(solution.gain),
        spread=None if ranked is None else clear(ranked[1] - ranked[0]),
        starts=finite,
    )


def empty(problem: Problem) -> Reconstruction:
    """The result for no images."""
    y, image = problem.y, problem.objective.space == "image"
    none = y.new_zeros(0, dtype=accumulate_dtype(y.dtype))
    latents = has_latents(problem.prior)
    z = y.new_zeros(0, latent_size(problem.prior) if latents else 0)
    terms = Terms(none, none, none)
    count = torch.zeros(0, dtype=torch.long, device=y.device)
    with torch.no_grad():
        x = generate(problem.prior, z) if latents else problem.first_variable(0, 1, 0)
    return Reconstruction(
        x=x,
        z=None if image else z,
        noise=y,
        **terms._asdict(),
        history=none.view(0, 0),
        status=[],
        steps=count,
        gain=none,
        starts=count,
    )


def join(parts: list[Reconstruction]) -> Reconstruction:
    """The results of the parts of a batch as one."""
    rows = max(len(part.history) for part in parts)
    others = ("history", "status", "config")
    names = [f.name for f in fields(Reconstruction) if f.name not in others]
    return Reconstruction(
        history=torch.cat([longer(part.history, rows, part.loss) for part in parts], 1),
        status=[status for part in parts for status in part.status],
        **{name: _together(name, parts) for name in names},
    )


def _together(name: str, parts: list[Reconstruction]) -> Any:
    """A field of all parts; where an interrupted one lacks it, NaN or False. None where all do."""
    values = [getattr(part, name) for part in parts]
    known = next((v for v in values if v is not None), None)
    if known is None:
        return None
    unknown = math.nan if known.is_floating_point() else 0
    blank = lambda part: known.new_full((len(part.status), *known.shape[1:]), unknown)
    return torch.cat([blank(p) if v is None else v for p, v in zip(parts, values)])


def longer(history: Tensor, rows: int, loss: Tensor) -> Tensor:
    """A history with its last row, or the loss where there is none, repeated."""
    tail = history[-1:] if len(history) else loss[None].to(history)
    return torch.cat([history, tail.expand(rows - len(history), -1)])
