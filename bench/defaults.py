"""How the solver's defaults were chosen: starts, step sizes and step counts on real images.

    python bench/defaults.py [--images N] [--threads N]

For 2-D sinusoidal noise, digits and compressed sensing: mean PSNR and median loss gap (loss at the
solution minus loss of the true image) for both MAP spaces, each start and two step sizes.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from harness import conditions, write

import flowinv_fast as ff
from flowinv_fast.data import sample_images
from flowinv_fast.experiments.demo import demos


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--tasks", nargs="+", default=["sinusoidal", "digits", "cs"])
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    for demo in demos(0):
        if demo.name not in arguments.tasks:
            continue
        setting, dataset = demo.setting, demo.setting.dataset
        truth, prior = sample_images(dataset.images, arguments.images), ff.load_flow(dataset.flow)
        generator = torch.Generator().manual_seed(0)
        y = ff.measure(truth, setting.operator, setting.noise_source, generator)
        least = setting.loss_of_truth(truth, y, prior)
        for objective, start, lr in itertools.product(
            ("map", "map-image"), ("measurement", "zeros", "draw"), (0.03, 0.1)
        ):
            options = {"objective": objective, "start": start, "lr": lr, "steps": arguments.steps}
            found = ff.reconstruct(
                y, setting.operator, prior, setting.noise, progress=False, **options
            )
            psnr = ff.metrics.psnr(found.x, truth).mean().item()
            gap = (found.loss - least).median().item()
            facts = {"task": demo.name, "objective": objective, "start": start, "lr": lr}
            rows.append({**facts, "psnr": psnr, "loss_gap": gap})
            cells = (f"{v:.2f}" if isinstance(v, float) else v for v in rows[-1].values())
            print(*cells, flush=True)
    where = conditions("cpu", images=arguments.images, steps=arguments.steps, seed=0)
    print("wrote", write("defaults", {"conditions": where, "rows": rows}))


if __name__ == "__main__":
    main()
