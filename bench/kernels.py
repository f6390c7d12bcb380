"""Each operation against eager torch, torch.compile and, for the coupling, nflows; one process.

    python bench/kernels.py [--device cpu|cuda] [--threads N] [--batches N ...] [--rounds N]

The eager contender is the code a careful user would write, not the package's reference; compiled
is torch.compile of it. Gradients are of the sum of all outputs. On a CPU only ratios are kept: its
absolute times say little about anyone else's machine.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from harness import conditions, copy_bandwidth, time_together, write
from torch import Tensor

from flowinv_fast import noise, ops

SHAPES = {"28": (1, 28, 28), "64": (3, 64, 64)}


# --- what a careful user writes ------------------------------------------------------------------


def eager_encode(x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: Tensor):
    """A checkerboard coupling, mask (1, 1, H, W) being 1 on transformed pixels."""
    raw_scale, shift = raw.chunk(2, 1)
    s = gain.view(-1, 1, 1) * raw_scale.tanh() * mask
    return x * s.exp() + shift * mask, logdet + s.sum((1, 2, 3))


def eager_decode(z: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: Tensor):
    raw_scale, shift = raw.chunk(2, 1)
    s = gain.view(-1, 1, 1) * raw_scale.tanh() * mask
    return (z - shift * mask) * (-s).exp(), logdet - s.sum((1, 2, 3))


def eager_encode_channels(x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor):
    """A channel coupling that transforms the second half."""
    raw_scale, shift = raw.chunk(2, 1)
    kept, moved = x.chunk(2, 1)
    s = gain.view(-1, 1, 1) * raw_scale.tanh()
    return torch.cat([kept, moved * s.exp() + shift], 1), logdet + s.sum((1, 2, 3))


def eager_logit(x: Tensor, logdet: Tensor, alpha: float = 0.05):
    p = alpha + (1 - 2 * alpha) * x
    z = p.log() - (1 - p).log()
    terms = torch.nn.functional.softplus(z) + torch.nn.functional.softplus(-z)
    return z, logdet + (terms + math.log(1 - 2 * alpha)).sum((1, 2, 3))


def eager_squeeze(x: Tensor) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(x, 2)


def eager_gaussian(y: Tensor, fx: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (
        torch.distributions.Normal(mean, std, validate_args=False).log_prob(y - fx).sum((1, 2, 3))
    )


def eager_normal(z: Tensor) -> Tensor:
    return (-0.5 * z * z - 0.5 * math.log(2 * math.pi)).sum(1)


def eager_sinusoidal(level: Tensor, shape: tuple[int, ...]) -> Tensor:
    row = torch.arange(shape[2], device=level.device)
    sigma = level.view(-1, 1, 1, 1) * torch.exp(torch.sin(row * (math.pi / 8)) - 1).view(-1, 1)
    return sigma.clamp(0.001, 1) * torch.randn(shape, device=level.device)


def eager_adam(x, grad, m, v, best, loss, best_loss, step: int, lr: float) -> None:
    """Adam, and the best iterate so far of every image."""
    better = loss < best_loss
    best.copy_(torch.where(better.view(-1, 1, 1, 1), x, best))
    best_loss.copy_(torch.minimum(loss, best_loss))
    m.lerp_(grad, 0.1)
    v.mul_(0.999).addcmul_(grad, grad, value=0.001)
    denominator = (v / (1 - 0.999**step)).sqrt_().add_(1e-8)
    x.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step))


# --- the table -----------------------------------------------------------------------------------


def with_gradients(function, leaves):
    """A call that runs a function and the backward pass of the sum of its outputs."""

    def call():
        for leaf in leaves:
            leaf.grad = None
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward([o.sum() for o in outputs])

    return call


def without_gradients(function, arguments):
    def call():
        with torch.no_grad():
            return function(*arguments)

    return call


def nflows_channels(channels: int, raw: Tensor, gain: Tensor):
    """The same coupling through nflows, its network replaced by the given raw outputs."""
    try:
        from nflows.transforms import AffineCouplingTransform
    except ImportError:
        return None
    half = channels // 2
    mask = torch.cat([-torch.ones(half), torch.ones(half)])

    class Given(torch.nn.Module):
        def forward(self, inputs, context=None):
            return raw

    class Coupling(AffineCouplingTransform):
        def _scale_and_shift(self, parameters):
            scale = torch.exp(gain.view(-1, 1, 1) * parameters[:, :half].tanh())
            return scale, parameters[:, half:]

    transform = Coupling(mask, lambda i, o: Given()).to(raw.device)

    def call(x, raw, gain, logdet):
        z, added = transform(x)
        return z, logdet + added

    return call


Row = tuple[str, int, bool, tuple, Sequence[Tensor]]


def rows(shape: tuple[int, int, int], batch: int, device: str) -> Iterator[Row]:
    """(name, bytes moved, with gradients?, (ours, eager, perhaps a peer), arguments) a row."""
    make = lambda *s: torch.randn(*s, device=device)
    x, logdet = make(batch, *shape), make(batch)
    yield from coupling_rows(x, logdet, make)
    yield from layout_rows(x, logdet)
    yield from density_rows(x, make)
    yield from solver_rows(x, logdet, make)


def coupling_rows(x: Tensor, logdet: Tensor, make: Callable[..., Tensor]) -> Iterator[Row]:
    """Checkerboards in both directions, and channels against nflows."""
    batch, c, h, w = x.shape
    n, raw, gain = 4 * x.numel(), make(batch, 2 * c, h, w), make(c)
    plane = torch.arange(h, device=x.device).view(-1, 1) + torch.arange(w, device=x.device)
    mask, even = (plane % 2 == 0).float().view(1, 1, h, w), "checkerboard_even"
    ours_encode = lambda *a: ops.affine_coupling_encode(*a, even)
    ours_decode = lambda *a: ops.affine_coupling_decode(*a, even)
    pairs = {"encode": (ours_encode, eager_encode), "decode": (ours_decode, eager_decode)}
    for direction, (ours, eager) in pairs.items():
        user = lambda *a, eager=eager: eager(*a, mask)
        yield f"coupling {direction}", 3 * n, False, (ours, user), (x, raw, gain, logdet)
        yield f"coupling {direction} + backward", 8 * n, True, (ours, user), (x, raw, gain, logdet)
    wide, wide_raw = make(batch, 4 * c, h // 2, w // 2), make(batch, 4 * c, h // 2, w // 2)
    wide_gain = make(2 * c)
    second = lambda *a: ops.affine_coupling_encode(*a, "channel_second")
    peer = nflows_channels(4 * c, wide_raw, wide_gain)
    functions, arguments = (
        (second, eager_encode_channels, peer),
        (wide, wide_raw, wide_gain, logdet),
    )
    yield "channel coupling encode", 3 * n, False, functions, arguments


def layout_rows(x: Tensor, logdet: Tensor) -> Iterator[Row]:
    """The logit and the squeeze."""
    n, unit = 4 * x.numel(), torch.rand_like(x)
    ours = lambda a, b: ops.logit_encode(a, b, 0.05)
    yield "logit encode", 2 * n, False, (ours, eager_logit), (unit, logdet)
    yield "squeeze", 2 * n, False, (ops.squeeze, eager_squeeze), (x,)


def density_rows(x: Tensor, make: Callable[..., Tensor]) -> Iterator[Row]:
    """Log-densities of a residual and of a latent."""
    n, y, std = 4 * x.numel(), make(*x.shape), make(*x.shape[1:]).abs() + 0.1
    zero = torch.zeros((), device=x.device)
    gaussian = (ops.gaussian_log_prob, eager_gaussian)
    yield "gaussian log-density", 2 * n, False, gaussian, (y, x, zero, std)
    fixed = lambda fx: ops.gaussian_log_prob(y, fx, zero, std)
    fixed_eager = lambda fx: eager_gaussian(y, fx, zero, std)
    yield "gaussian log-density + backward", 4 * n, True, (fixed, fixed_eager), (x,)
    normal = (ops.standard_normal_log_prob, eager_normal)
    yield "normal log-density", n, False, normal, (x.flatten(1),)


def solver_rows(x: Tensor, logdet: Tensor, make: Callable[..., Tensor]) -> Iterator[Row]:
    """A draw of noise, and the update of the variable."""
    n, shape, device = 4 * x.numel(), tuple(x.shape), x.device
    model = noise.Sinusoidal(0.2)
    draw = lambda level: model.sample(shape, device=device)
    eager_draw = lambda level: eager_sinusoidal(level, shape)
    level = torch.full((len(x),), 0.2, device=device)
    yield "sinusoidal noise", n, False, (draw, eager_draw), (level,)
    moments = [torch.zeros_like(x), torch.ones_like(x)]
    state = [x.clone(), make(*shape), *moments, x.clone(), logdet, logdet.clone()]
    active = torch.ones(len(x), dtype=torch.bool, device=device)
    rates = ops.adam_rates(torch.full((10,), 1e-6, device=device))[9]
    step = (
        lambda *s: ops.adam_step_(*s, active, rates),
        lambda *s: eager_adam(*s, 10, 1e-6),
    )
    yield "Adam step + best iterate", 7 * n, False, step, state


def measure(name, moved, gradients, functions, inputs, shape, device, rounds, bandwidth) -> dict:
    """One row of the table."""
    ours, eager, *peer = functions
    named = {"ours": ours, "eager": eager, "compiled": torch.compile(eager, dynamic=False)}
    if peer and peer[0] is not None:
        named["nflows"] = peer[0]
    contenders = {}
    for label, function in named.items():
        if gradients:
            leaves = [t.clone().requires_grad_() for t in inputs]
            contenders[label] = with_gradients(function, leaves)
        else:
            contenders[label] = without_gradients(function, inputs)
    times = time_together(contenders, device, rounds)
    own = times["ours"]["median"]
    row = {
        "op": name,
        "shape": shape,
        "dtype": "float32",
        "ratio": {k: v["median"] / own for k, v in times.items()},
        "quartiles": {k: [v["low"] / own, v["high"] / own] for k, v in times.items()},
        "compile_ratio": times["compiled"]["first"] / own,
        "share_of_copy_bandwidth": moved / own / bandwidth,
    }
    if device == "cuda":
        row["microseconds"] = {k: v["median"] * 1e6 for k, v in times.items()}
    torch._dynamo.reset()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--out", help="folder of the JSON; bench/results if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, found = arguments.device, []
    bandwidth = copy_bandwidth(device)
    for key, batch in itertools.product(arguments.shapes, arguments.batches):
        for row in rows(SHAPES[key], batch, device):
            found.append(measure(*row, [batch, *SHAPES[key]], device, arguments.rounds, bandwidth))
            ratios = "  ".join(
                f"{k} {v:5.2f}x" for k, v in found[-1]["ratio"].items() if k != "ours"
            )
            print(f"{found[-1]['shape']!s:18} {found[-1]['op']:34} {ratios}", flush=True)
    where = conditions(device, rounds=arguments.rounds, seed=0, statistic="median of rounds")
    print("wrote", write("kernels", {"conditions": where, "rows": found}, arguments.out))


if __name__ == "__main__":
    main()
