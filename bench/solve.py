"""Whole solves on real images: the default and bf16 against the float32 reference path.

    python bench/solve.py [--device cpu|cuda] [--threads N] [--batches 1 16] [--steps N]

The demo's tasks with its own settings. Reference: the same ``reconstruct`` on flows that are not
frozen, in plain torch (FLOWINV_BACKEND=torch's code). Time as a ratio of whole calls, in one
process; PSNR of every path against the true images.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
from harness import conditions, write

import flowinv_fast as ff
from flowinv_fast._base import backend
from flowinv_fast.data import sample_images
from flowinv_fast.experiments.demo import tasks
from flowinv_fast.reconstruction import problem as _problem


def timed(call, device: str):
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    fast = device == "cuda" or (backend._C is not None and backend._C.cpu_bf16())
    rows = []
    for task in tasks(0):
        for batch in arguments.batches:
            prior = ff.load_flow(task.prior, device)
            truth = sample_images(task.images, batch)
            operator = task.operator.to(device)
            if isinstance(task.noise, ff.noise.FlowNoise):
                task.noise.flow.to(device)
            y = ff.measure(
                truth, task.operator.to("cpu"), task.drawn, torch.Generator().manual_seed(0)
            )
            operator, y = task.operator.to(device), y.to(device)

            def solve(
                y=y, operator=operator, prior=prior, task=task, **options
            ) -> ff.Reconstruction:
                return ff.reconstruct(
                    y, operator, prior, task.noise, steps=arguments.steps, seed=0, progress=False,
                    **task.ours, **options,
                )  # fmt: skip

            plain = lambda part, precision, y: part
            found = {"ours": timed(solve, device)}
            if fast:
                found["ours bf16"] = timed(lambda s=solve: s(precision="bf16"), device)
            with (
                mock.patch.object(_problem, "freeze", plain),
                mock.patch.object(backend, "choice", "torch"),
            ):
                found["reference"] = timed(solve, device)
            seconds = found["ours"][1]
            row = {
                "task": task.name, "method": task.ours.get("objective", "map"), "batch": batch,
                "ratio": {n: round(s / seconds, 3) for n, (_, s) in found.items()},
                "psnr": {n: round(ff.metrics.psnr(r.x.cpu(), truth).mean().item(), 4)
                         for n, (r, _) in found.items()},
            }  # fmt: skip
            if device == "cuda":
                row["seconds"] = {n: round(s, 4) for n, (_, s) in found.items()}
            rows.append(row)
            print(row, flush=True)
    where = conditions(device, steps=arguments.steps, seed=0, dtype="float32")
    print("wrote", write("solve", {"conditions": where, "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
