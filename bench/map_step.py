"""One MAP step, ours against other ways to write it: decode, noise and prior terms, gradient, Adam.

    python bench/map_step.py [--device cpu|cuda] [--threads N] [--models M C Mp Cp]
                             [--batches 1 16 128] [--contenders ...] [--rounds N]

All contenders of a row take turns in one process. The problem is denoising, y = x + Gaussian
noise, with the exact log-determinant. On a CPU only ratios are kept. Compiling and capturing are
timed apart. Runs at one commit under the same conditions add up to one file.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from functools import partial

# Compiling is timed, not looked up; `import torch` reads this.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from harness import conditions, time_together, write
from peers import COUPLINGS, MODELS, Peer, random_flow
from torch import Tensor

from flowinv_fast import noise, operators
from flowinv_fast.flows import Flow, GlowConfig, RealNVPConfig
from flowinv_fast.reconstruction.objectives import MAP
from flowinv_fast.reconstruction.solvers.adam import AdamState
from flowinv_fast.reconstruction.solvers.graph import capture

STD = 0.1
OURS = ("ours", "ours tf32", "ours bf16")
GLOW = "ours, Glow"  # with 1x1 convolutions and conditional priors beside the same couplings
COMPILED = {"compiled": "folded eager", "compiled channels-last": "channels-last eager"}


def eager_loss(decode, y: Tensor, z: Tensor) -> Tensor:
    """-log N(y - x; 0, STD^2) - log p(x), summed: what a careful user writes."""
    x, logdet = decode(z)
    size, half_log = z.shape[1], 0.5 * math.log(2 * math.pi)
    log_noise = -0.5 * ((y - x) / STD).square().sum((1, 2, 3)) - size * (math.log(STD) + half_log)
    log_prior = -0.5 * z.square().sum(1) - size * half_log - logdet
    return -(log_noise + log_prior).sum()


def start_of(y: Tensor) -> Tensor:
    """Latents half as wide as the prior's: at zero itself all signs of a map would be alike."""
    draws = torch.randn(len(y), y[0].numel(), generator=torch.Generator().manual_seed(0))
    return (0.5 * draws).to(y.device)


def glow_like(config: RealNVPConfig, device: str) -> Flow:
    """A Glow with the same couplings."""
    sizes = {name: getattr(config, name) for name in ("scales", "hidden", "blocks")}
    return random_flow(GlowConfig(config.shape, **sizes), device)


def eager_step(decode, y: Tensor, compiled: bool = False):
    """A step with torch.optim.Adam on the loss, which torch.compile may have."""
    z = start_of(y).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=1e-3, capturable=y.is_cuda)
    loss = lambda y, z: eager_loss(decode, y, z)
    if compiled:
        loss = torch.compile(loss, dynamic=False)

    def step() -> None:
        (z.grad,) = torch.autograd.grad(loss(y, z), z)
        optimiser.step()

    return step, [z, *(t for s in optimiser.state.values() for t in s.values())]


def our_step(prior, y: Tensor):
    evaluate = partial(
        MAP(space="latent").evaluate, y, operators.Identity(), prior, noise.Gaussian(STD)
    )
    state = AdamState(evaluate, start_of(y), 1, 1e-3, "constant", 0.0, 50, None)

    def step() -> None:
        state.done.zero_()
        state.advance()

    return step, state.tensors()


def contenders_of(names, flow, y: Tensor, row: dict) -> dict:
    """name to step; what cannot be had here is left out and said. Into ``row`` go the seconds until
    a contender's first step was done and, on a GPU, whether it is a captured graph."""
    on_gpu = y.is_cuda
    made, row["first_call_seconds"], row["captured"] = {}, {}, {}
    torch._dynamo.reset()  # what was compiled for another shape
    for name in names:
        if name == "graph" and not on_gpu:
            continue
        started = time.perf_counter()
        try:
            if name == GLOW:
                step, changed = our_step(glow_like(flow.config, y.device.type).freeze(), y)
            elif name in OURS:
                precision = name.removeprefix("ours").strip() or "fp32"
                step, changed = our_step(flow.freeze(precision), y)
            elif name in COMPILED:
                step, _ = eager_step(Peer(flow, COMPILED[name]).decode, y, compiled=True)
            elif name == "graph":
                step, changed = eager_step(Peer(flow, "folded eager").decode, y)
                step()  # the optimiser makes its state
            else:
                step, _ = eager_step(Peer(flow, name).decode, y)
            if on_gpu and name in (*OURS, GLOW, "graph"):
                replay = capture(step, changed)
                row["captured"][name] = replay is not step
                step = replay
            step()
        except Exception as error:  # another library's limits are a finding, not an end
            reason = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"{name}: {reason[0]}", stacklevel=1)
            continue
        if on_gpu:
            torch.cuda.synchronize()
        row["first_call_seconds"][name] = round(time.perf_counter() - started, 2)
        made[name] = step
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*OURS, GLOW, *COUPLINGS, *COMPILED, "graph"]
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["M", "C"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--contenders", nargs="+", choices=known, default=known)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    where = conditions(arguments.device, rounds=arguments.rounds, seed=0, dtype="float32")
    where["libraries"] = versions()
    rows = []
    for model in arguments.models:
        for batch in arguments.batches:
            flow = random_flow(MODELS[model], arguments.device)
            y = torch.rand(batch, *flow.shape, device=arguments.device)
            row = {"model": model, "batch": batch}
            made = contenders_of(arguments.contenders, flow, y, row)
            found = time_together(made, arguments.device, arguments.rounds)
            ours = found["ours"]["median"]
            row["ratio"] = {n: round(f["median"] / ours, 3) for n, f in found.items()}
            row["quartiles"] = {
                n: [round(f[q] / ours, 3) for q in ("low", "high")] for n, f in found.items()
            }
            if arguments.device == "cuda":
                row["milliseconds"] = {n: round(1e3 * f["median"], 4) for n, f in found.items()}
            rows.append(row)
            print(model, batch, row["ratio"], flush=True)
            result = {"conditions": where, "rows": rows}  # at every row: a run may be cut short
            path = write("map_step", result, arguments.out, same_row=("model", "batch"))
    print("wrote", path)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("nflows", "FrEIA", "normflows", "zuko"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
