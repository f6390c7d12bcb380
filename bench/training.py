"""One training step against other ways to write it, and what recomputed couplings save.

    python bench/training.py [speed] [memory] [--device cpu|cuda] [--threads N]
                             [--models M C Mp Cp T] [--batches 16] [--hidden N]
                             [--contenders ...] [--compile M C]

speed: a step dequantises the batch, takes log p and its gradient to all weights, clips it, and
takes an Adam step. All contenders of a row start at the same weights and take turns in one process;
they have the same optimiser and conditioners, weight normalisation included. log p and gradients of
eager are compared with ours first. On a CPU only ratios are kept, and what share ours has of the
peak: the operations of matrix products and convolutions in a step, over the time of a step, over
those of a product of large square matrices in the same precision; with the share of a step that
such products take at all. Runs of speed at one commit under the same conditions add up to one
file. T is a TarFlow; its eager twin is made of torch's own transformer layers.

memory: bytes an image adds to what is kept for the backward pass, and to the peak of what is
allocated over forward and backward, over scales, blocks, and couplings in one run; couplings plain
and recomputed.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

# Compiling is timed, not looked up; `import torch` reads this.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from harness import conditions, time_together, write
from map_step import versions
from memory import kept_bytes
from peers import MODELS, TRAINED, Peer, TransformerPeer, random_flow
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowinv_fast import ops
from flowinv_fast.flows import (
    AffineCoupling,
    Flow,
    FlowConfig,
    RealNVPConfig,
    TarFlowConfig,
    build_flow,
)
from flowinv_fast.flows.recompute import encode_recomputed

OURS = ("ours", "ours bf16", "ours recompute", "ours recompute bf16", "ours compiled")
COMPILED = {"compiled": "eager", "compiled channels-last": "channels-last eager"}
BF16 = ("eager bf16", "channels-last eager bf16")
COLOUR = (3, 64, 64)
SIDE = 2048  # of the matrices whose product is the peak
TRAINED_MODELS = {**MODELS, "T": TarFlowConfig((1, 28, 28))}


def trainable(config: FlowConfig, device: str) -> Flow:
    if not isinstance(config, TarFlowConfig):
        return random_flow(config, device).requires_grad_()
    torch.manual_seed(0)
    flow = build_flow(config).to(device)
    with torch.no_grad():
        for conditioner in flow.conditioners():
            conditioner.last.weight.normal_(std=0.02)
    return flow


def peer_of(flow: Flow, name: str) -> Flow | TransformerPeer:
    """The contender that has a flow's weights as its own."""
    if isinstance(flow.config, TarFlowConfig):
        return TransformerPeer(flow)
    return Peer(flow, COMPILED.get(name, name.removesuffix(" bf16")), TRAINED)


def step_of(name: str, config: FlowConfig, images: Tensor) -> Callable[[], None]:
    """A contender's training step, on weights of its own."""
    device = images.device.type
    flow = trainable(config, device)
    parameters = list(flow.parameters())
    optimiser = torch.optim.Adam(parameters, lr=1e-6, fused=True)
    log_prob, calls = flow.log_prob, iter(range(1 << 40))
    if name in OURS:
        dequantise = lambda: flow.dequantise(images, 0, next(calls) * images.numel())
        flow.recompute = "recompute" in name
        if name == "ours compiled":
            for conditioner in flow.conditioners():
                conditioner.compile()
    else:
        dequantise = lambda: images + config.smoothing * torch.randn_like(images)
        peer = peer_of(flow, name)
        log_prob = peer.log_prob
        if isinstance(peer, TransformerPeer):
            parameters = list(peer.parameters())
            optimiser = torch.optim.Adam(parameters, lr=1e-6, fused=True)
        if name in COMPILED:
            log_prob = torch.compile(log_prob, dynamic=False)
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=name.endswith("bf16"))

    def step() -> None:
        x = dequantise()
        with autocast():
            loss = -log_prob(x).mean()
        optimiser.zero_grad(set_to_none=True)
        with autocast():
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 100.0)
        optimiser.step()

    return step


def disagreement(config: FlowConfig, x: Tensor) -> dict[str, dict[str, float]]:
    """Largest relative difference of log p, and relative distance of the gradient, from ours.

    The gradient is that to the weights; of a TarFlow, whose twin has its own, to x.
    """
    flow = trainable(config, x.device.type)
    others = {n: peer_of(flow, n).log_prob for n in ("eager", "channels-last eager")}
    towards = list(flow.parameters())
    if isinstance(config, TarFlowConfig):
        del others["channels-last eager"]
        towards = [x.requires_grad_()]

    def found(log_prob) -> tuple[Tensor, Tensor]:
        value = log_prob(x)
        grads = torch.autograd.grad(-value.mean(), towards)
        return value.detach(), torch.cat([g.flatten() for g in grads])

    value, grad = found(flow.log_prob)
    flow.recompute = True
    others["ours recompute"] = flow.log_prob
    far = {}
    for name, log_prob in others.items():
        v, g = found(log_prob)
        far[name] = {
            "log_prob": ((v - value) / value).abs().max().item(),
            "gradient": ((g - grad).norm() / grad.norm()).item(),
        }
        if max(far[name].values()) > 1e-3:
            raise SystemExit(f"{name} is another flow than ours: {far[name]}")
    return far


def products(device: str) -> dict[str, Callable[[], Tensor]]:
    """Products of large square matrices, which take turns with the contenders: the peak."""
    square = torch.randn(SIDE, SIDE, device=device)
    both = {"fp32": square, "bf16": square.bfloat16()}
    return {f"product {name}": lambda a=a: a @ a for name, a in both.items()}


def share_of_peak(step: Callable[[], None], seconds: float, most: float) -> dict[str, float]:
    """See above: what a step reaches of the peak, and what part of it products take."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    with torch.profiler.profile() as profile:
        step()
    times = {
        e.key: e.self_device_time_total + e.self_cpu_time_total for e in profile.key_averages()
    }
    products = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward")
    inside = sum(times.get(f"aten::{name}", 0) for name in products)
    return {
        "of_peak": round(counter.get_total_flops() / seconds / most, 3),
        "in_products": round(inside / sum(times.values()), 3),
        "in_copies": round(times.get("aten::copy_", 0) / sum(times.values()), 3),
    }


def speed(arguments) -> None:
    where = conditions(arguments.device, rounds=arguments.rounds, seed=0, dtype="float32")
    where["note"] = arguments.note
    where["libraries"] = {n: v for n, v in versions().items() if n in TRAINED}
    for model in arguments.models:
        config = TRAINED_MODELS[model]
        if model in MODELS:
            config = replace(config, hidden=arguments.hidden or config.hidden)
        width = getattr(config, "hidden", 0) or config.width
        for batch in arguments.batches:
            torch._dynamo.reset()
            images = torch.rand(batch, *config.shape, device=arguments.device)
            row = {"model": model, "batch": batch, "hidden": width}
            row["disagreement"] = disagreement(config, images[:4])
            made, row["first_call_seconds"] = {}, {}
            compiles = model in arguments.compile
            names = [n for n in arguments.contenders if compiles or "compiled" not in n]
            if model == "T":
                names = [n for n in names if n in ("ours", "ours bf16", "eager", "eager bf16")]
            for name in names:
                started = time.perf_counter()
                try:
                    step = step_of(name, config, images)
                    step()
                except Exception as error:  # another library's limits are a finding, not an end
                    reason = str(error).strip().splitlines() or [type(error).__name__]
                    warnings.warn(f"{name}: {reason[0]}", stacklevel=1)
                    continue
                if arguments.device == "cuda":
                    torch.cuda.synchronize()
                row["first_call_seconds"][name] = round(time.perf_counter() - started, 2)
                made[name] = step
            calls = {**made, **products(arguments.device)}
            found = time_together(calls, arguments.device, arguments.rounds)
            most = [2 * SIDE**3 / found.pop(name)["median"] for name in [*calls][-2:]]
            ours = found[next(iter(found))]["median"]  # "ours", where it is among them
            row["ratio"] = {n: round(f["median"] / ours, 3) for n, f in found.items()}
            row["quartiles"] = {
                n: [round(f[q] / ours, 3) for q in ("low", "high")] for n, f in found.items()
            }
            row["share"] = {
                n: share_of_peak(made[n], found[n]["median"], most[n.endswith("bf16")])
                for n in found
                if n.removesuffix(" bf16") in ("ours", "eager")
            }
            if arguments.device == "cuda":
                row["images_per_second"] = {n: round(batch / f["median"]) for n, f in found.items()}
            print(row, flush=True)
            result, key = {"conditions": where, "rows": [row]}, ("model", "batch", "hidden")
            path = write("training", result, arguments.out, same_row=key)
    print("wrote", path)


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most bytes that tensors took at once during a call, beyond what they took before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def bytes_of(loss_of: Callable[[Tensor], Tensor], parameters: list, x: Tensor) -> dict[str, float]:
    """What an image adds: weights and their gradients, which do not grow, are left out."""
    backward = lambda x: torch.autograd.grad(loss_of(x), parameters)
    backward(x)  # what is computed once and kept

    def measured(x: Tensor) -> tuple[int, int]:
        peak = peak_bytes(lambda: backward(x), x.device.type)
        return kept_bytes(lambda: loss_of(x))[0], peak

    pairs = zip(measured(torch.cat([x, x])), measured(x))
    return {n: (two - one) / len(x) for n, (two, one) in zip(("kept", "peak"), pairs)}


def run_of(couplings: list, recompute: bool) -> Callable[[Tensor], Tensor]:
    """-log p of a run of couplings at one resolution."""

    def loss(h: Tensor) -> Tensor:
        logdet = h.new_zeros(len(h))
        if recompute:
            h, logdet = encode_recomputed(couplings, h, logdet)
        else:
            for coupling in couplings:
                h, logdet = coupling.encode(h, logdet)
        return -(ops.standard_normal_log_prob(h.flatten(1)) + logdet).mean()

    return loss


def memory(arguments) -> None:
    hidden, device = arguments.hidden or 64, arguments.device
    x = torch.rand(arguments.images, *COLOUR, device=device)
    where = conditions(device, seed=0, dtype="float32", shape=COLOUR, hidden=hidden, batch=len(x))
    rows = []

    def add(row: dict, loss_of: Callable[[bool], Callable], parameters: list) -> None:
        for how in ("plain", "recompute"):
            row[how] = bytes_of(loss_of(how == "recompute"), parameters, x)
        rows.append(row)
        print(row, flush=True)
        result = {"conditions": where, "rows": rows}
        write("training_memory", result, arguments.out)  # at every row: a run may be cut short

    for sweep, sizes in {
        "scales": [(n, 2) for n in range(1, 7)],
        "blocks": [(6, n) for n in (1, 2, 4, 6, 8, 10)],
    }.items():
        for scales, blocks in sizes:
            flow = trainable(RealNVPConfig(COLOUR, scales, hidden, blocks), device)

            def loss_of(recompute: bool, flow=flow) -> Callable[[Tensor], Tensor]:
                def loss(x: Tensor) -> Tensor:
                    flow.recompute = recompute
                    return -flow.log_prob(x).mean()

                return loss

            row = {"sweep": sweep, "scales": scales, "blocks": blocks}
            row["couplings"] = len(flow.gains())
            add(row, loss_of, list(flow.parameters()))
    for count in (3, 6, 12, 24):
        masks = [f"checkerboard_{('even', 'odd')[i % 2]}" for i in range(count)]
        couplings = [AffineCoupling(COLOUR[0], hidden, 2, mask).to(device) for mask in masks]
        parameters = [p for coupling in couplings for p in coupling.parameters()]
        row = {"sweep": "one run", "scales": 1, "blocks": 2, "couplings": count}
        add(row, lambda recompute, c=couplings: run_of(c, recompute), parameters)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*OURS, *TRAINED, *BF16, *COMPILED]
    parser.add_argument("parts", nargs="*", help="speed, memory; default both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--models", nargs="+", choices=list(TRAINED_MODELS), default=["M", "C", "T"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[16])
    parser.add_argument("--hidden", type=int, help="width of the conditioners; default 64")
    parser.add_argument("--contenders", nargs="+", choices=known, default=known)
    text = "models with compiled contenders too; minutes each"
    parser.add_argument("--compile", nargs="*", choices=list(MODELS), default=["M", "C"], help=text)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=2, help="smaller batch of memory")
    parser.add_argument("--note", help="what else ran on the machine")
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    parts = {"speed": speed, "memory": memory}
    for name in arguments.parts or parts:
        if name not in parts:
            parser.error(f"no part {name}")
        parts[name](arguments)


if __name__ == "__main__":
    main()
