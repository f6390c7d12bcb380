"""What ``reconstruct`` returns, how it is made of a solver's result, and how it is kept on disk."""

from __future__ import annotations

import json
import math
import numbers
import os
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._base.errors import ArgumentError
from .._base.files import whole_file
from .._base.tensors import accumulate_dtype
from .objectives import Terms, generate, latent_size
from .problem import Problem
from .solvers import Solution, Status

_KEY = "flowinv_fast"
_FORMAT = "flowinv_fast.reconstruction.1"
_OPTIONAL = ("z", "prior_overshoot")


@dataclass(frozen=True)
class Reconstruction:
    """What ``reconstruct`` returns; every field is per image and detached.

    Attributes:
        x: images (B, C, H, W), not clipped.
        z: latents (B, N) where they were optimised, else None.
        noise: the other half of the answer, the noise estimate y - f(x), shaped like y.
        loss, log_noise, log_prior: (B,) at x, in nats; a term the objective lacks is zero, and for
            the squared-error objectives log_noise is minus the squared error.
        prior_overshoot: whether log_prior passes the largest log p of held-out real images by more
            than 0.05 nats a pixel, (B,): a density that no real image has, so that a lower ``beta``
            may serve better. None where the prior's ``info`` does not tell ("log_prob_peak").
        history: losses (steps, B) of the restart that was kept.
        status: how each image's solve ended.
        steps: steps each image took (B,).
        config: what was done, as JSON has it: version, objective, strategy, steps, lr, start,
            restarts, precision, seed.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(2, 1, 28, 28), ff.load_flow("fashion-28")
    >>> found = ff.reconstruct(y, ff.operators.Identity(), flow, ff.noise.Gaussian(0.1), steps=2)
    >>> found.config["objective"]["name"]
    'map'
    """

    x: Tensor
    z: Tensor | None
    noise: Tensor
    loss: Tensor
    log_noise: Tensor
    log_prior: Tensor
    prior_overshoot: Tensor | None
    history: Tensor
    status: list[Status]
    steps: Tensor
    config: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        ends = {s: self.status.count(s) for s in dict.fromkeys(self.status)}
        counts = ", ".join(f"{n} x {s.name}" for s, n in ends.items())
        mean = self.loss.mean().item() if len(self.loss) else math.nan
        return f"Reconstruction(x {tuple(self.x.shape)}, mean loss {mean:.2f}, {counts})"

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
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})

    @classmethod
    def load(
        cls, path: str | os.PathLike, device: torch.device | str | None = None
    ) -> Reconstruction:
        """Read what ``save`` wrote.

        Args:
            path: file name.
            device: where the tensors go; None: the CPU.
        Raises:
            ArgumentError: a file that is missing, damaged, or not of ``save``.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
                if header["format"] != _FORMAT:
                    raise ValueError(f"of format {header['format']}")
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            given: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), **tensors}
            status = [Status[name] for name in header["status"]]
            found = cls(**given, status=status, config=dict(header["config"]))
            batch = [v.shape[0] for n, v in tensors.items() if n != "history"]
            if {len(status), found.history.shape[1], *batch} != {len(status)}:
                raise ValueError("numbers of images that differ")
        except (
            SafetensorError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
        ) as error:
            wanted = "a whole file of Reconstruction.save"
            raise ArgumentError("Reconstruction.load", "path", wanted, f"{path}: {error}") from None
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
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return float(value) if isinstance(value, numbers.Real) else repr(value)  # numpy's are Real


# --- made of a solver's result --------------------------------------------------------------------


def pack(solution: Solution, problem: Problem) -> Reconstruction:
    """The result of a part of the batch; images that were not solved are zero."""
    readable = problem.readable.tolist()
    status = [s if ok else Status.BAD_MEASUREMENT for s, ok in zip(solution.status, readable)]
    bad = [s in (Status.FAILED, Status.BAD_MEASUREMENT) for s in status]
    lost = torch.tensor(bad, dtype=torch.bool, device=problem.y.device)
    clear = lambda t: torch.where(lost.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t)
    best, image = clear(solution.best), problem.objective.space == "image"
    with torch.no_grad():
        x = best if image else clear(problem.images(best))
        estimate = clear(problem.y - problem.operator(x))
    terms = Terms(*(clear(t) for t in solution.terms))
    return Reconstruction(
        x=x.detach(),
        z=None if image else best,
        noise=estimate,
        **terms._asdict(),
        prior_overshoot=problem.overshoot(terms),
        history=torch.where(lost, torch.zeros_like(solution.history), solution.history),
        status=status,
        steps=clear(solution.steps),
    )


def empty(problem: Problem) -> Reconstruction:
    """The result for no images."""
    y, image = problem.y, problem.objective.space == "image"
    none = y.new_zeros(0, dtype=accumulate_dtype(y.dtype))
    z = y.new_zeros(0, latent_size(problem.prior))
    terms = Terms(none, none, none)
    with torch.no_grad():
        x = generate(problem.prior, z)
    return Reconstruction(
        x=x,
        z=None if image else z,
        noise=y,
        **terms._asdict(),
        prior_overshoot=problem.overshoot(terms),
        history=none.view(0, 0),
        status=[],
        steps=torch.zeros(0, dtype=torch.long, device=y.device),
    )


def join(parts: list[Reconstruction]) -> Reconstruction:
    """The results of the parts of a batch as one."""
    rows = max(len(part.history) for part in parts)
    together = lambda name: torch.cat([getattr(part, name) for part in parts])
    names = ["x", "noise", "loss", "log_noise", "log_prior", "steps"]
    names += [name for name in _OPTIONAL if getattr(parts[0], name) is not None]
    found: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), **{name: together(name) for name in names}}
    return Reconstruction(
        history=torch.cat([longer(part.history, rows, part.loss) for part in parts], 1),
        status=[status for part in parts for status in part.status],
        **found,
    )


def longer(history: Tensor, rows: int, loss: Tensor) -> Tensor:
    """A history with its last row, or the loss where there is none, repeated."""
    tail = history[-1:] if len(history) else loss[None].to(history)
    return torch.cat([history, tail.expand(rows - len(history), -1)])
