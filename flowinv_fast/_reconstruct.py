"""``reconstruct``: the most probable image for a measurement."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import _checks as check
from . import objectives, ops
from .errors import SolverError, require
from .objectives import METHODS
from .solvers import Solution, Status, minimise

_NAME = "reconstruct"


@dataclass(frozen=True)
class Reconstruction:
    """What ``reconstruct`` returns; every field is per image and detached.

    Attributes:
        x: images (B, C, H, W), not clipped.
        z: latents (B, N) where they were optimised, else None.
        loss, log_noise, log_prior: (B,) at x, in nats; a term the method lacks is zero, and for
            the squared-error methods log_noise is minus the squared error.
        history: losses (steps, B) of the restart that was kept.
        status: how each image's solve ended.
        steps: steps each image took (B,).
    """

    x: Tensor
    z: Tensor | None
    loss: Tensor
    log_noise: Tensor
    log_prior: Tensor
    history: Tensor
    status: list[Status]
    steps: Tensor

    def __repr__(self) -> str:
        ends = {s: self.status.count(s) for s in dict.fromkeys(self.status)}
        told = ", ".join(f"{n} x {s.name}" for s, n in ends.items())
        mean = self.loss.mean().item() if len(self.loss) else math.nan
        return f"Reconstruction(x {tuple(self.x.shape)}, mean loss {mean:.2f}, {told})"


def reconstruct(
    y: Tensor,
    operator: Any,
    prior: Any,
    noise: Any = None,
    *,
    method: str = "map_latent",
    beta: float | Tensor = 1.0,
    gamma: float | Tensor | None = None,
    lam: float | Tensor | None = None,
    squared: bool = True,
    steps: int | None = None,
    lr: float | None = None,
    schedule: str = "cosine",
    init: str | Tensor | None = None,
    restarts: int = 1,
    smoothing: float = 0.0,
    tempering: float = 1.0,
    tol: float = 0.0,
    patience: int = 50,
    seed: int = 0,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Reconstruction:
    """Most probable images given measurements y = f(x) + noise (Whang, Lei, Dimakis, 2021).

    Images do not influence one another: solving eight together equals solving each alone, to
    rounding.

    Args:
        y: measurements (B, ...), float32 or float64, on the prior's device.
        operator: f, any differentiable callable from images (B, C, H, W) to (B, ...); an object
            with ``A`` (a deepinv physics) is used through ``A``.
        prior: a flow (``decode``, ``encode``, ``log_prob``, ``shape``); for mle, csgm and
            asim_proxy also any callable generator z to x with ``latent_dim``.
        noise: law of y - f(x): a ``flowinv_fast.noise`` model, a torch.distributions
            Distribution, anything with ``log_prob``. Unused by csgm and the asim methods.
        method: "map_latent" (eq. 4, 10), "map_image" (eq. 3, 10), "mle" (eq. 5), "csgm" (eq. 6),
            "asim_likelihood" (eq. 7), "asim_proxy" (eq. 8).
        beta: weight of log p_G in the MAP methods; 1 is the exact MAP, 0 < beta < 1 smooths the
            prior. A number or one per image (B,), not negative; so are gamma and lam.
        gamma: weight in eq. 7 and 8. lam: weight in eq. 6. Default 0.1 each.
        squared: eq. 8 with ||z||^2; False takes ||z||.
        steps, lr: of Adam; defaults by method. schedule: "cosine" or "constant" step size.
        init: "measurement" (the latent, or image, of a first guess from y; zeros where the
            operator has no guess), "zeros", "draw" (z from N(0, I)), or a tensor: latents (B, N)
            or images (B, C, H, W). Default by method.
        restarts: solves from several starts; each image keeps its lowest loss (csgm: lowest
            measurement error). From "measurement" restart r of R starts at (1 - r / R) times the
            guess; from the others at a new draw.
        smoothing: standard deviation of Gaussian noise added to the variable while annealing, on
            its way to zero.
        tempering: weight of log p_noise at the start of annealing, in (0, 1], rising geometrically
            to 1: the prior decides first, the measurement sharpens later.
        tol, patience: an image stops when its best loss gains no more than tol (1 + |best|) in
            ``patience`` steps; 0 takes all steps.
        seed: of every draw; torch's generators are neither used nor changed.
        callback: called as callback(step, losses (B,), variable) at every step.
        progress: show a progress bar; None: only on a terminal.
        throw: refuse measurements that are not finite and raise where an image finds no finite
            loss; with False such images come back as zeros with a status that says so.
    Returns:
        Reconstruction.
    Raises:
        ArgumentError: an argument that cannot be used, named, with what was wanted.
        SolverError: an image whose loss was never finite, with throw=True.
    """
    require(method in METHODS, _NAME, "method", f"one of {list(METHODS)}", repr(method))
    chosen = METHODS[method]
    steps = chosen.steps if steps is None else steps
    lr = chosen.lr if lr is None else lr
    init = chosen.init if init is None else init
    check.numbers(steps, lr, schedule, restarts, smoothing, tempering, tol, patience, seed)
    check.measurement(y)
    operator = check.as_operator(operator)
    check.prior(prior, chosen, y)
    require("noise" not in chosen.needs or hasattr(noise, "log_prob"), _NAME, "noise",
            "an object with log_prob(residual)", type(noise).__name__)  # fmt: skip
    given = {"beta": beta, "gamma": gamma, "lam": lam}
    weight = check.weight(chosen.weight, given, y) if chosen.weight else None
    readable = torch.isfinite(y).flatten(1).all(1)
    bad = readable.numel() - int(readable.sum())
    require(not throw or bad == 0, _NAME, "y",
            "finite measurements (throw=False solves the other images)",
            f"NaN or infinity in {bad} of {len(y)} images")  # fmt: skip
    y = torch.where(readable.view(-1, *[1] * (y.dim() - 1)), y, torch.zeros_like(y)).detach()

    with _frozen(operator, prior, noise):
        check.shapes(y, operator, prior, noise if "noise" in chosen.needs else None, init)
        if y.shape[0] == 0:
            return _empty(y, prior, chosen)
        evaluate = _objective(method, y, operator, prior, noise, weight, squared)
        annealed = _Annealed(evaluate, operator, smoothing, tempering, seed)
        shown = sys.stderr.isatty() if progress is None else progress
        bar = tqdm(total=steps * restarts, disable=not shown, desc=method, unit="step")
        kept = None
        try:
            for restart in range(restarts):
                start = _start(init, restart, restarts, y, operator, prior, chosen, seed)
                solution = minimise(
                    annealed, start, steps=steps, lr=lr, schedule=schedule, tol=tol,
                    patience=patience, active=readable, anneal=annealed.hook, callback=callback,
                    bar=bar,
                )  # fmt: skip
                kept = _keep_better(kept, solution, by_error=method == "csgm")
                if Status.INTERRUPTED in solution.status:
                    break
        finally:
            bar.close()
        return _pack(kept, readable, prior, chosen, throw)


def measure(
    x: Tensor, operator: Any, noise: Any, generator: torch.Generator | None = None
) -> Tensor:
    """Simulate y = f(x) + delta, delta drawn from the noise model.

    With ``operators.SignSensing(noise_inside=True)`` the noise goes inside: sign(A x + delta).

    Args:
        x: images (B, C, H, W).
        operator: f, as for ``reconstruct``.
        noise: an object with ``sample(shape, generator)``.
        generator: fixes the draw; None uses torch's global generator.
    Raises:
        ArgumentError: noise that cannot be drawn from.
    """
    require(hasattr(noise, "sample"), "measure", "noise", "an object with sample(shape, generator)",
            type(noise).__name__)  # fmt: skip
    operator = check.as_operator(operator)
    inside = getattr(operator, "noise_inside", False)
    with torch.no_grad():
        clean = operator.linear(x) if inside else operator(x)
        noisy = clean + noise.sample(tuple(clean.shape), generator).to(clean)
        return ops.sign_ste(noisy) if inside else noisy


# --- parts ---------------------------------------------------------------------------------------


def _objective(method, y, operator, prior, noise, weight, squared) -> objectives.Evaluate:
    if method == "mle":
        return objectives.mle(y, operator, prior, noise)
    if method in ("map_latent", "map_image"):
        return getattr(objectives, method)(y, operator, prior, noise, weight)
    if method == "asim_proxy":
        return objectives.asim_proxy(y, operator, prior, weight, squared)
    return getattr(objectives, method)(y, operator, prior, weight)


class _Annealed:
    """An objective that is easier at first: noise on the variable, a faint likelihood, an operator
    with ``anneal``. At time 1 it is the objective itself."""

    def __init__(self, evaluate: objectives.Evaluate, operator, smoothing, tempering, seed):
        self.evaluate, self.operator_anneal = evaluate, getattr(operator, "anneal", None)
        self.smoothing, self.tempering, self.seed = smoothing, tempering, seed
        self.time, self.calls = 1.0, 0
        plain = self.operator_anneal is None and smoothing == 0 and tempering == 1
        self.hook = None if plain else self.anneal

    def anneal(self, t: float) -> None:
        self.time = t
        if self.operator_anneal is not None:
            self.operator_anneal(t)

    def __call__(self, variable: Tensor) -> objectives.Terms:
        if self.time >= 1:
            return self.evaluate(variable)
        std = self.smoothing * (1 - self.time)
        if std > 0:
            spread = torch.full((), std, dtype=variable.dtype, device=variable.device)
            self.calls += 1
            offset = self.calls * variable.numel()
            variable = variable + ops.gaussian_noise(0.0, spread, variable.shape, self.seed, offset)
        terms = self.evaluate(variable)
        weight = self.tempering ** (1 - self.time)
        return terms._replace(loss=terms.loss + (1 - weight) * terms.log_noise)


def _start(init, restart, restarts, y, operator, prior, chosen, seed) -> Tensor:
    """The first variable of a restart: latents (B, N) or images (B, C, H, W)."""
    batch, image = y.shape[0], chosen.space == "image"
    if isinstance(init, Tensor):
        given_image = init.dim() == 4
        if restart > 0 or given_image == image:
            init = init if given_image == image else _convert(init, prior, image)
            return init + (_draw(init, restart, seed, 0.1) if restart else 0)
        return _convert(init, prior, image)
    if init == "measurement":
        guess = operator.guess(y) if hasattr(operator, "guess") else None
        if guess is not None:
            guess = guess.clamp(0, 1) * (1 - restart / restarts)
            return guess if image else _convert(guess, prior, False)
        init = "zeros"
    size = objectives.latent_size(prior)
    z = y.new_zeros(batch, size)
    if init == "draw" or restart > 0:
        z = z + _draw(z, restart, seed, 1.0)
    return objectives.generate(prior, z) if image else z


def _draw(like: Tensor, restart: int, seed: int, std: float) -> Tensor:
    """Gaussian draws; image i's depend on (seed, restart, i) and its size only."""
    spread = torch.full((), std, dtype=like.dtype, device=like.device)
    return ops.gaussian_noise(0.0, spread, like.shape, seed, restart << 40)


def _convert(start: Tensor, prior: Any, to_image: bool) -> Tensor:
    with torch.no_grad():
        return prior.decode(start)[0] if to_image else prior.encode(start)[0]


def _keep_better(kept: Solution | None, new: Solution, by_error: bool) -> Solution:
    """Per image, the solution of the lower loss, or (csgm) of the lower measurement error."""
    if kept is None:
        return new
    score = lambda s: (-s.terms.log_noise if by_error else s.terms.loss).nan_to_num(
        math.inf, math.inf
    )
    better = score(new) < score(kept)
    pick = lambda a, b: torch.where(better.view(-1, *[1] * (a.dim() - 1)), b, a)
    rows = max(len(kept.history), len(new.history))
    longer = lambda h: torch.cat([h, h[-1:].expand(rows - len(h), -1)]) if len(h) else h
    history = torch.where(better, longer(new.history), longer(kept.history))
    terms = objectives.Terms(*(pick(a, b) for a, b in zip(kept.terms, new.terms)))
    status = [n if b else k for k, n, b in zip(kept.status, new.status, better.tolist())]
    return Solution(pick(kept.best, new.best), terms, history, status, pick(kept.steps, new.steps))


def _pack(solution: Solution, readable: Tensor, prior, chosen, throw) -> Reconstruction:
    status = [
        s if ok else Status.BAD_MEASUREMENT for s, ok in zip(solution.status, readable.tolist())
    ]
    failed = [i for i, s in enumerate(status) if s is Status.FAILED]
    if failed and throw:
        raise SolverError(f"{_NAME}: images {failed}: {Status.FAILED.value}")
    lost = [s in (Status.FAILED, Status.BAD_MEASUREMENT) for s in status]
    lost = torch.tensor(lost, dtype=torch.bool, device=readable.device)
    clear = lambda t: torch.where(lost.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t)
    best = clear(solution.best)
    with torch.no_grad():
        x = best if chosen.space == "image" else clear(objectives.generate(prior, best))
    terms = [clear(t) for t in solution.terms]
    return Reconstruction(
        x.detach(), None if chosen.space == "image" else best, *terms,
        torch.where(lost, torch.zeros_like(solution.history), solution.history),
        status, clear(solution.steps),
    )  # fmt: skip


def _empty(y: Tensor, prior, chosen) -> Reconstruction:
    acc = y.new_zeros(0, dtype=ops.reference.accumulate_dtype(y.dtype))
    z = y.new_zeros(0, math.prod(prior.shape))
    return Reconstruction(
        y.new_zeros(0, *prior.shape), None if chosen.space == "image" else z, acc, acc, acc,
        acc.view(0, 0), [], torch.zeros(0, dtype=torch.long, device=y.device),
    )  # fmt: skip


@contextlib.contextmanager
def _frozen(*parts: Any) -> Iterator[None]:
    """Modules in evaluation mode and without weight gradients; as before afterwards."""
    found = [getattr(part, "flow", part) for part in parts]
    modules = [m for m in found if isinstance(m, nn.Module)]
    training = [m for root in modules for m in root.modules() if m.training]
    wanted = [p for m in modules for p in m.parameters() if p.requires_grad]
    try:
        for m in modules:
            m.eval()
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True
