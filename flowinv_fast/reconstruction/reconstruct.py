"""``reconstruct``: the most probable image for a measurement."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import ops
from .._base.errors import SolverError, require
from .._base.tensors import accumulate_dtype
from ..flows import Flow as AnyFlow
from ..noise import Flow, PlacedFlow
from . import checks as check
from . import memory as memory
from . import objectives
from .objectives import METHODS
from .problem import Annealed, Problem, freeze
from .solvers import STRATEGIES, Solution, Status, lbfgs, minimise

_NAME = "reconstruct"


@dataclass(frozen=True)
class Reconstruction:
    """What ``reconstruct`` returns; every field is per image and detached.

    Attributes:
        x: images (B, C, H, W), not clipped.
        z: latents (B, N) where they were optimised, else None.
        noise: the other half of the answer, the noise estimate y - f(x), shaped like y.
        loss, log_noise, log_prior: (B,) at x, in nats; a term the method lacks is zero, and for
            the squared-error methods log_noise is minus the squared error.
        prior_overshoot: whether log_prior passes the largest log p of held-out real images by more
            than 0.05 nats a pixel, (B,): a density that no real image has, so that a lower ``beta``
            may serve better. None where the prior's ``info`` does not tell ("log_prob_peak").
        history: losses (steps, B) of the restart that was kept.
        status: how each image's solve ended.
        steps: steps each image took (B,).
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
    strategy: str | None = None,
    smoothing: float | None = None,
    tempering: float | None = None,
    tol: float = 0.0,
    patience: int = 50,
    precision: str | None = None,
    polish: int | None = None,
    seed: int = 0,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Reconstruction:
    """Most probable images given measurements y = f(x) + noise (Whang, Lei, Dimakis, 2021).

    Images do not influence one another: solving eight together equals solving each alone, to
    rounding and to the draws of restarts and smoothing. So a batch that does not fit into memory
    is solved in parts, and a part that runs out of memory is halved. A Flow prior, and the flow
    of a noise model, are frozen for the solve.

    Args:
        y: measurements (B, ...), float32 or float64, on the prior's device.
        operator: f, any differentiable callable from images (B, C, H, W) to (B, ...); an object
            with ``A`` (a deepinv physics) is used through ``A``.
        prior: a flow (``decode``, ``encode``, ``log_prob``, ``shape``), also frozen; for mle, csgm
            and asim_proxy also any callable generator z to x with ``latent_dim``.
        noise: law of y - f(x): a ``flowinv_fast.noise`` model, a torch.distributions
            Distribution, anything with ``log_prob``. Unused by csgm and the asim methods. Noise or
            operators with a state per image have ``images(slice, shape of y)``, the same for some
            images.
        method: "map_latent" (eq. 4, 10), "map_image" (eq. 3, 10), "mle" (eq. 5), "csgm" (eq. 6),
            "asim_likelihood" (eq. 7), "asim_proxy" (eq. 8).
        beta: weight of log p_G in the MAP methods; 1 is the exact MAP, 0 < beta < 1 smooths the
            prior. A number or one per image (B,), not negative; so are gamma and lam.
        gamma: weight in eq. 7 and 8. lam: weight in eq. 6. Default 0.1 each.
        squared: eq. 8 with ||z||^2; False takes ||z||.
        steps, lr: of Adam; defaults by method and strategy. schedule: of the step size, "cosine"
            or "constant".
        init: "measurement" (the latent, or image, of a first guess from y; zeros where the
            operator has no guess), "zeros", "draw" (z from N(0, I)), or a tensor: latents (B, N)
            or images (B, C, H, W). Default by method.
        restarts: solves from several starts; each image keeps its lowest loss (csgm: lowest
            measurement error). From "measurement" restart r of R starts at (1 - r / R) times the
            guess; from the others at a new draw.
        strategy: how the steps are spent: "adam", "lbfgs" (for the last quarter), "latent-first"
            (half of map_image's steps in latent space), "smoothed", "tempered" or "annealed"
            (both); docs/optimisation.md. Default "annealed" for MAP under a flow as noise model,
            else "adam".
        smoothing: standard deviation of Gaussian noise added to the variable while annealing, on
            its way to zero. Default by strategy; so is tempering.
        tempering: weight of log p_noise at the start of annealing, in (0, 1], rising geometrically
            to 1: the prior decides first, the measurement sharpens later.
        tol, patience: an image stops when its best loss gains no more than tol (1 + |best|) in
            ``patience`` steps; 0 takes all steps.
        precision: of the flows' conditioners, "fp32" (default), "tf32" or "bf16", see
            ``FrozenFlow``; for a Flow prior.
        polish: last steps, taken in fp32, of a solve in another precision; the result is the best
            of them. Default a tenth of the steps.
        seed: of every draw; torch's generators are neither used nor changed.
        callback: called as callback(step, losses (B,), variable) at every step, where a batch is
            solved in parts with the part's images.
        progress: show the planned memory and a progress bar; None: only on a terminal.
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
    init = chosen.init if init is None else init
    if strategy is None:
        rugged = chosen.weight == "beta" and isinstance(noise, (Flow, PlacedFlow))
        strategy = "annealed" if rugged else "adam"
    require(strategy in STRATEGIES, _NAME, "strategy", f"one of {list(STRATEGIES)}", repr(strategy))
    plan = STRATEGIES[strategy]
    lr = plan.rate * chosen.lr if lr is None else lr
    smoothing = plan.smoothing if smoothing is None else smoothing
    tempering = plan.tempering if tempering is None else tempering
    check.numbers(steps, lr, schedule, restarts, smoothing, tempering, tol, patience, seed)
    check.measurement(y)
    operator = check.as_operator(operator)
    check.prior(prior, chosen, y)
    check.precision(precision, polish, prior, steps)
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

    with _unchanging(operator, prior, noise):
        fast = None
        if precision not in (None, "fp32") and isinstance(prior, AnyFlow):
            fast = freeze(prior, precision), freeze(noise, precision)
            polish = steps // 10 if polish is None else polish
        exact = freeze(prior), freeze(noise)
        if fast and polish == 0:
            exact, fast = fast, None
        problem = Problem(method, y, operator, *exact, fast, weight, squared, init, readable)
        check.start(init, y, exact[0])
        if y.shape[0] == 0:
            return _empty(y, exact[0], chosen)
        anneals = getattr(operator, "anneal", None) or smoothing > 0 or tempering < 1
        last = max(0.2 if anneals else 0.0, polish / steps if fast else 0.0)

        def adam(part: Problem, start: Tensor, steps: int, lr: float, restart: int, bar: tqdm):
            annealed = Annealed(part, smoothing, tempering, seed, restart)
            return minimise(
                annealed, start, steps=steps, lr=lr, schedule=schedule, tol=tol, patience=patience,
                active=part.readable, anneal=annealed.anneal if last else None, exact=last,
                constant=annealed.constant, callback=callback, bar=bar,
            )  # fmt: skip

        def descend(part: Problem, restart: int, steps: int, bar: tqdm) -> Solution:
            """From one start, through the stages of the strategy."""
            inside = int(plan.latent * steps) if method == "map_image" else 0
            at_end = int(plan.lbfgs * steps)
            if inside:
                latent = replace(part, method="map_latent")
                start = latent.start(restart, restarts, seed)
                found = adam(latent, start, inside, lr, restart, bar)
                start = objectives.generate(part.prior, found.best).detach()
                more = adam(part, start, steps - inside - at_end, lr / 5, restart, bar)
                found = _continued(found, more)
            else:
                start = part.start(restart, restarts, seed)
                found = adam(part, start, steps - at_end, lr, restart, bar)
            if at_end and Status.INTERRUPTED not in found.status:
                evaluate = part.objective(part.prior, part.noise)
                more = lbfgs(evaluate, found.best, steps=at_end, active=part.readable,
                             callback=callback, bar=bar)  # fmt: skip
                found = _continued(found, more)
            return found

        def solve(part: Problem, bar: tqdm, give_up: bool) -> Reconstruction:
            scored = part.noise if "noise" in chosen.needs else None
            check.shapes(part.y, part.operator, part.prior, scored)
            kept = None
            for restart in range(restarts):
                solution = descend(part, restart, 0 if give_up else steps, bar)
                kept = _keep_better(kept, solution, by_error=method == "csgm")
                give_up = give_up or Status.INTERRUPTED in solution.status
                if give_up:
                    break
            if give_up:
                kept.status = [Status.INTERRUPTED if s is Status.MAX_STEPS else s
                               for s in kept.status]  # fmt: skip
            return _pack(kept, part, chosen)

        shown = sys.stderr.isatty() if progress is None else progress
        found = _in_parts(problem, solve, steps * restarts, shown)
        failed = [i for i, s in enumerate(found.status) if s is Status.FAILED]
        if failed and throw:
            raise SolverError(f"{_NAME}: images {failed}: {Status.FAILED.value}")
        return found


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


def _in_parts(problem: Problem, solve, steps: int, shown: bool) -> Reconstruction:
    """All images at once where they fit; else, or where memory runs out, fewer at a time."""
    batch = len(problem.y)
    each = memory.planned(problem.prior, problem.noise, problem.y)
    size = memory.images_at_once(each, batch, problem.y.device)
    bar = tqdm(disable=not shown, desc=problem.method, unit="step")
    if shown and each:
        at_once = "all at once" if size == batch else f"{size} at a time"
        bar.write(f"{problem.method}: {batch} images of {each / 1e6:.2f} MB, {at_once}", sys.stderr)
    done: list[Reconstruction] = []
    first = 0
    try:
        while first < batch:
            bar.total = steps * (len(done) + math.ceil((batch - first) / size))
            bar.refresh()
            part = slice(first, min(batch, first + size))
            given_up = bool(done) and Status.INTERRUPTED in done[-1].status
            before = bar.n
            try:
                done.append(solve(problem.images(part), bar, given_up))
            except Exception as error:
                if size == 1 or not memory.exhausted(error):
                    raise
                size = max(1, (part.stop - first) // 2)
            else:
                first = part.stop
                continue
            bar.n = before  # after the handler, so that the traceback holds no tensors
            if problem.y.device.type == "cuda":
                torch.cuda.empty_cache()
            warnings.warn(f"{_NAME}: out of memory; going on with {size} images at a time",
                          stacklevel=3)  # fmt: skip
    finally:
        bar.close()
    return done[0] if len(done) == 1 else _join(done)


def _join(parts: list[Reconstruction]) -> Reconstruction:
    rows = max(len(part.history) for part in parts)
    together = lambda name: torch.cat([getattr(part, name) for part in parts])
    optional = lambda name: None if getattr(parts[0], name) is None else together(name)
    return Reconstruction(
        z=optional("z"),
        prior_overshoot=optional("prior_overshoot"),
        history=torch.cat([_longer(part.history, rows, part.loss) for part in parts], 1),
        status=[status for part in parts for status in part.status],
        **{
            name: together(name)
            for name in ("x", "noise", "loss", "log_noise", "log_prior", "steps")
        },
    )


def _longer(history: Tensor, rows: int, loss: Tensor) -> Tensor:
    """A history with its last row, or the loss where there is none, repeated."""
    tail = history[-1:] if len(history) else loss[None].to(history)
    return torch.cat([history, tail.expand(rows - len(history), -1)])


def _continued(before: Solution, after: Solution) -> Solution:
    """Two stages as one solve."""
    history = torch.cat([before.history, after.history])
    return replace(after, history=history, steps=before.steps + after.steps)


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
    longer = lambda s: _longer(s.history, rows, s.terms.loss)
    history = torch.where(better, longer(new), longer(kept))
    terms = objectives.Terms(*(pick(a, b) for a, b in zip(kept.terms, new.terms)))
    status = [n if b else k for k, n, b in zip(kept.status, new.status, better.tolist())]
    return Solution(pick(kept.best, new.best), terms, history, status, pick(kept.steps, new.steps))


def _pack(solution: Solution, problem: Problem, chosen) -> Reconstruction:
    readable = problem.readable
    status = [
        s if ok else Status.BAD_MEASUREMENT for s, ok in zip(solution.status, readable.tolist())
    ]
    lost = [s in (Status.FAILED, Status.BAD_MEASUREMENT) for s in status]
    lost = torch.tensor(lost, dtype=torch.bool, device=readable.device)
    clear = lambda t: torch.where(lost.view(-1, *[1] * (t.dim() - 1)), torch.zeros_like(t), t)
    best = clear(solution.best)
    with torch.no_grad():
        x = best if chosen.space == "image" else clear(objectives.generate(problem.prior, best))
        estimate = clear(problem.y - problem.operator(x))
    terms = objectives.Terms(*(clear(t) for t in solution.terms))
    return Reconstruction(
        x.detach(), None if chosen.space == "image" else best, estimate, *terms,
        objectives.overshoot(problem.prior, terms.log_prior) if "density" in chosen.needs else None,
        torch.where(lost, torch.zeros_like(solution.history), solution.history),
        status, clear(solution.steps),
    )  # fmt: skip


def _empty(y: Tensor, prior, chosen) -> Reconstruction:
    acc = y.new_zeros(0, dtype=accumulate_dtype(y.dtype))
    z = y.new_zeros(0, objectives.latent_size(prior))
    with torch.no_grad():
        x = objectives.generate(prior, z)
    return Reconstruction(
        x, None if chosen.space == "image" else z, y, acc, acc, acc,
        objectives.overshoot(prior, acc) if "density" in chosen.needs else None,
        acc.view(0, 0), [], torch.zeros(0, dtype=torch.long, device=y.device),
    )  # fmt: skip


@contextlib.contextmanager
def _unchanging(*parts: Any) -> Iterator[None]:
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
