"""Whole solves on real images: the default and bf16 against the float32 reference path.

    python bench/solve.py [--device cpu|cuda] [--threads N] [--batches 1 16] [--steps N]

The demo's tasks with its own settings. Reference: the same ``reconstruct`` in plain torch, in a
process of its own (FLOWINV_BACKEND=torch), which is asked for by ``--path reference``. Time as a
ratio of whole calls; PSNR of every path against the true images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import torch
from harness import conditions, write

import flowinv_fast as ff
from flowinv_fast.data import sample_images
from flowinv_fast.experiments.demo import Demo, demos
from flowinv_fast.experiments.methods import map_options


def timed(call, device: str):
    started = time.perf_counter()
    result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


def solved(demo: Demo, batch: int, steps: int, device: str, precision: str | None = None) -> dict:
    """One whole call: its seconds, and the mean PSNR of what it found."""
    setting, dataset = demo.setting, demo.setting.dataset
    prior = ff.load_flow(dataset.flow, device)
    truth = sample_images(dataset.images, batch)
    generator = torch.Generator().manual_seed(0)
    y = ff.measure(truth, setting.operator.to("cpu"), setting.noise_source, generator)
    operator, y = setting.operator.to(device), y.to(device)
    if isinstance(setting.noise, ff.noise.FlowNoise):
        setting.noise.flow.to(device)
    options = {**map_options(setting), "steps": steps, "seed": 0, "progress": False}
    call = lambda: ff.reconstruct(y, operator, prior, setting.noise, precision=precision, **options)
    found, seconds = timed(call, device)
    psnr = ff.metrics.psnr(found.x.cpu(), truth).mean().item()
    return {"psnr": psnr, "seconds": seconds, "objective": options["objective"].name}


def elsewhere(demo: Demo, batch: int, steps: int, device: str) -> dict:
    """``solved`` by plain torch, in a process of its own."""
    numbers = {"batches": batch, "steps": steps, "device": device, "path": "reference"}
    options = [f"--{name}={value}" for name, value in numbers.items()]
    command = [sys.executable, __file__, *options, f"--threads={torch.get_num_threads()}"]
    environment = {**os.environ, "FLOWINV_BACKEND": "torch"}
    run = subprocess.run(
        [*command, f"--task={demo.name}"], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)


def measured(demo: Demo, batch: int, steps: int, device: str, fast: bool) -> dict:
    """A row: ratios of time and PSNR of every path; with bf16 where it is ``fast``."""
    found = {"ours": solved(demo, batch, steps, device)}
    if fast:
        found["ours bf16"] = solved(demo, batch, steps, device, "bf16")
    found["reference"] = elsewhere(demo, batch, steps, device)
    ours = found["ours"]["seconds"]
    row = {
        "task": demo.name,
        "objective": found["ours"]["objective"],
        "batch": batch,
        "ratio": {name: round(facts["seconds"] / ours, 3) for name, facts in found.items()},
        "psnr": {name: round(facts["psnr"], 4) for name, facts in found.items()},
    }
    if device == "cuda":
        row["seconds"] = {name: round(facts["seconds"], 4) for name, facts in found.items()}
    return row


def multiplies_in_bf16(device: str) -> bool:
    """Whether this machine and build have the fast precision."""
    flow = ff.realnvp(ff.RealNVPConfig((1, 4, 4), scales=1, hidden=8, blocks=0))
    try:
        flow.freeze("bf16", device)
    except ff.ArgumentError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", help="folder of the JSON; default bench/results")
    parser.add_argument("--path", choices=("all", "reference"), default="all")
    parser.add_argument("--task", help="of --path reference")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.path == "reference":
        (demo,) = (demo for demo in demos(0) if demo.name == arguments.task)
        print(json.dumps(solved(demo, arguments.batches[0], arguments.steps, device)))
        return
    fast, rows = multiplies_in_bf16(device), []
    for demo in demos(0):
        for batch in arguments.batches:
            rows.append(measured(demo, batch, arguments.steps, device, fast))
            print(rows[-1], flush=True)
    where = conditions(device, steps=arguments.steps, seed=0, dtype="float32")
    print("wrote", write("solve", {"conditions": where, "rows": rows}, arguments.out))


if __name__ == "__main__":
    main()
