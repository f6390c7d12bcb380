"""What a step costs under each shipped flow: log p and its gradient to the image, frozen.

    python bench/shipped.py [--batch 1 16] [--rounds 9]

Times are ratios to ``fashion-28`` at the same batch, in one run. Writes bench/results/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from harness import conditions, time_together, write

import flowinv_fast as ff

FIRST = "fashion-28"


def step(name: str, batch: int) -> Callable[[], torch.Tensor]:
    """One value and gradient, at draws around grey."""
    flow = ff.load_flow(name).freeze()
    x = (0.5 + 0.1 * torch.randn(batch, *flow.shape)).clamp(0.01, 0.99).requires_grad_()
    return lambda: torch.autograd.grad(flow.log_prob(x).sum(), x)[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    names, rows = list(ff.available_flows()), []
    for batch in given.batch:
        found = time_together({n: step(n, batch) for n in names}, "cpu", given.rounds)
        ratio = {n: round(found[n]["median"] / found[FIRST]["median"], 3) for n in names}
        rows.append({"batch": batch, "ratio": ratio})
    facts = {"rounds": given.rounds, "seed": 0, "dtype": "float32"}
    print(write("shipped", {"conditions": conditions("cpu", **facts), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
