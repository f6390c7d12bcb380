"""What one MAP step keeps for its backward pass, per image: ours against eager torch.

    python bench/memory.py [--device cpu|cuda] [--models M C Mp Cp] [--batch N]

Bytes of the distinct storages that autograd saves, at N and at 2 N images: the difference by N,
so that weights are left out. On a GPU also the peak of allocated memory over a step of N images,
weights included.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable

import torch
from harness import conditions, write
from map_step import eager_loss
from peers import MODELS, Peer, random_flow
from torch import Tensor


class _Saved:
    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def kept_bytes(forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes of the distinct storages kept for the backward pass of what ``forward`` returns, and
    that. What a graph inside it saved and let go does not count."""
    kept = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.detach())  # an output would keep the graph that keeps it
        kept.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = forward()
    storages = [saved.tensor.untyped_storage() for saved in kept]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()), loss


def saved_bytes(decode, y: Tensor) -> int:
    """Bytes of the storages saved between a forward and its backward pass."""
    z = torch.zeros(len(y), y[0].numel(), device=y.device, requires_grad=True)
    held, loss = kept_bytes(lambda: eager_loss(decode, y, z))
    torch.autograd.grad(loss, z)
    return held


def saved_per_image(decode, y: Tensor) -> float:
    """What an image adds; weights, which do not grow with the batch, are left out."""
    return (saved_bytes(decode, torch.cat([y, y])) - saved_bytes(decode, y)) / len(y)


def peak_bytes(decode, y: Tensor) -> int:
    z = torch.zeros(len(y), y[0].numel(), device=y.device, requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(eager_loss(decode, y, z), z)
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        flow = random_flow(MODELS[model], arguments.device)
        y = torch.rand(arguments.batch, *flow.shape, device=arguments.device)
        row = {"model": model}
        for name, decode in (
            ("ours", flow.freeze().decode),
            ("eager", Peer(flow, "folded eager").decode),
        ):
            row[name] = saved_per_image(decode, y)
            if arguments.device == "cuda":
                row[f"{name}_peak"] = peak_bytes(decode, y)
        row["planned"] = flow.freeze().saved_bytes
        rows.append(row)
        print(row, flush=True)
    where = conditions(arguments.device, batch=arguments.batch, seed=0, dtype="float32")
    print("wrote", write("memory", {"conditions": where, "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
