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
from flowinv_fast.experiments.demo import Demo, demos
from flowinv_fast.experiments.methods import map_options
from flowinv_fast.reconstruction import problem as _problem


def timed(call, device: str):
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def measured(demo: Demo, batch: int, steps: int, device: str, fast: bool) -> dict:
    """A row: ratios of time and PSNR of every path; with bf16 where it is ``fast``."""
    setting, dataset = demo.setting, demo.setting.dataset
    prior = ff.load_flow(dataset.flow, device)
    truth = sample_images(dataset.images, batch)
    generator = torch.Generator().manual_seed(0)
    y = ff.measure(truth, setting.operator.to("cpu"), setting.noise_source, generator)
    operator, y = setting.operator.to(device), y.to(device)
    if isinstance(setting.noise, ff.noise.FlowNoise):
        setting.noise.flow.to(device)
    options = {**map_options(setting), "steps": steps, "seed": 0, "progress": False}

    def solve(precision: str | None = None) -> ff.Reconstruction:
        return ff.reconstruct(y, operator, prior, setting.noise, precision=precision, **options)

    found = {"ours": timed(solve, device)}
    if fast:
        found["ours bf16"] = timed(lambda: solve("bf16"), device)
    with (
        mock.patch.object(_problem, "freeze", lambda part, precision, y: part),
        mock.patch.object(backend, "choice", "torch"),
    ):
        found["reference"] = timed(solve, device)
    psnr = lambda x: round(ff.metrics.psnr(x.cpu(), truth).mean().item(), 4)
    row = {
        "task": demo.name,
        "objective": options["objective"].name,
        "batch": batch,
        "ratio": {name: round(s / found["ours"][1], 3) for name, (_, s) in found.items()},
        "psnr": {name: psnr(result.x) for name, (result, _) in found.items()},
    }
    if device == "cuda":
        row["seconds"] = {name: round(s, 4) for name, (_, s) in found.items()}
    return row


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
    for demo in demos(0):
        for batch in arguments.batches:
            rows.append(measured(demo, batch, arguments.steps, device, fast))
            print(rows[-1], flush=True)
    where = conditions(device, steps=arguments.steps, seed=0, dtype="float32")
    print("wrote", write("solve", {"conditions": where, "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
