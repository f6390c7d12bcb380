"""Tables of priors, and of noise learnt from recordings; see tables.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tables import Lines, conditions, each_machine, markdown, newest

from flowinv_fast.experiments import report
from flowinv_fast.experiments.cells import load_result
from flowinv_fast.metrics import interval


def recorded_noise(result: dict) -> Lines:
    """PSNR under a law that was learnt from recordings, beside other ways; and the laws' scores."""
    where = result["conditions"]
    facts = (f"{where['frames']} frames", f"{where['images']} images")
    ours, *others = result["psnr"]
    best = np.array(result["psnr"][ours])
    table: list[list[object]] = [["way", "PSNR, dB", "learnt law minus it"]]
    for name in (ours, *others):
        own = np.array(result["psnr"][name])
        gain = "" if name == ours else f"{(best - own).mean():+.2f} ± {interval(best - own):.2f}"
        table.append([name, f"{own.mean():.2f} ± {interval(own):.2f}", gain])
    laws: list[list[object]] = [["law", "held-out nats a number"]]
    laws += [[row["name"], f"{row['nats']:.3f} ± {row['error']:.3f}"] for row in result["laws"]]
    return [*conditions(where, *facts), *markdown(table), "", *markdown(laws)]


def priors(results: Path, name: str, kind: str = "priors") -> Lines:
    """MAP with another flow beside the figures of a reproduction, paired by image.

    Kind "levels": at the level that fits the noise.
    """
    lines: Lines = []
    for result in newest(results, f"{kind}-{name}"):
        where = result["conditions"]
        old = load_result(results / f"reproduce-{where['reproduction']}")["rows"]
        kept = {(r["task"], r["setting"]): r for r in old if r["method"] == "map"}
        table = [["task", "setting", where["reproduction"], name, "difference", "beta"]]
        table[0] += ["level"] * (kind == "levels")
        for row in result["rows"]:
            was, now = report.psnrs(kept[row["task"], row["setting"]]), np.array(row["psnr"])
            gain = now - was[: len(now)]
            told = f"{gain.mean():+.2f} ± {interval(gain):.2f}"
            means = f"{was[: len(now)].mean():.2f}", f"{now.mean():.2f}"
            level = [f"{row['level']:g}"] if kind == "levels" else []
            table.append([row["task"], row["setting"], *means, told, f"{row['value']:g}", *level])
        facts = (f"{where['images']} images", f"{where['steps']} steps")
        lines += [*conditions(where, *facts), *markdown(table), ""]
    return lines


def estimators(results: Path, name: str) -> Lines:
    """MAP and the posterior mean of one call each beside a reproduction's figures, by image."""
    lines: Lines = []
    for result in newest(results, f"estimators-{name}"):
        where = result["conditions"]
        old = load_result(results / f"reproduce-{where['reproduction']}")["rows"]
        table = [["task", "setting", "MAP, no options", "posterior mean", "one draw"]]
        table[0] += ["reproduction's MAP", "best other there", "mean minus that", "R-hat"]
        table[0] += ["error / std", "in 50, 80, 95 %", "cost"]
        for row in result["rows"]:
            mean = np.array(row["mean"])
            there = {
                r["method"]: report.psnrs(r)[: len(mean)]
                for r in old
                if (r["task"], r["setting"]) == (row["task"], row["setting"])
            }
            others = {m: v for m, v in there.items() if not m.startswith(("map", "noisy"))}
            best = max(others, key=lambda method: others[method].mean())
            gain = mean - others[best]
            titles = {r["method"]: r["title"] for r in old}
            cells = [row["task"], row["setting"]]
            cells += [f"{np.mean(v):.2f}" for v in (row["map"], mean, row["one_draw"])]
            cells += [f"{there['map'].mean():.2f}", f"{titles[best]}: {others[best].mean():.2f}"]
            cells += [f"{gain.mean():+.2f} ± {interval(gain):.2f}"]
            cells += [
                f"{np.median(row[k]):.{n}f}" for k, n in (("r_hat", 3), ("error_over_std", 2))
            ]
            cells += [", ".join(f"{100 * v:.0f}" for v in row["inside"].values())]
            table.append([*cells, f"{row['cost_over_map']:.0f}"])
        lines += [*conditions(where, f"{where['images']} images"), *markdown(table), ""]
    return lines


def shipped(results: Path) -> Lines:
    """The shipped flows: what they are of, how they were trained, and what a step costs."""
    costs = {row["batch"]: row["ratio"] for r in newest(results, "shipped") for row in r["rows"]}
    table = [["flow", "images", "model", "trained", "bits/dim", "a step", "samples"]]
    for path in sorted((results.parent.parent / "docs" / "models").glob("*.json")):
        card = json.loads(path.read_text())
        name, kind, trained = card["name"], card["architecture"], card["training"]
        size = " x ".join(map(str, kind["shape"]))
        model = f"{kind['name']}, {kind['parameters'] / 1e6:.2f} M parameters, {kind['support']}"
        seconds = trained["seconds"] + trained.get("start", {}).get("seconds", 0.0)
        minutes = f"{seconds / 60:.0f} min, {trained.get('hardware', 'unknown hardware')}"
        cost = ", ".join(f"{ratio[name]:.2g}" for ratio in costs.values() if name in ratio)
        bits = f"{card['held_out']['bits_per_dim']:.3f}"
        picture = f"![samples](models/{name}-samples.png)"
        table.append([f"[{name}](models/{name}.md)", size, model, minutes, bits, cost, picture])
    told = (
        f'"A step": its time over that of `fashion-28`, at batch {" and ".join(map(str, costs))}.'
    )
    return [told, "", *markdown(table)] if costs else markdown(table)


def any_size(result: dict) -> Lines:
    """PSNR of a large photograph under a prior of patches, beside other ways."""
    where = result["conditions"]
    facts = f"{where['picture']}, {where['size']} x {where['size']}", f"flow {where['flow']}"
    table: list[list[object]] = [["problem", "way", "PSNR, dB", "time over the fastest", "peak GB"]]
    fastest = {
        row["problem"]: min(r["seconds"] for r in result["rows"] if r["problem"] == row["problem"])
        for row in result["rows"]
    }
    for row in result["rows"]:
        slower = row["seconds"] / max(fastest[row["problem"]], 0.1)
        told = f"{row['psnr']:.2f}", f"{slower:.1f}", f"{row['peak_gb_so_far']:.2f}"
        table.append([row["problem"], row["way"], *told])
    return [*conditions(where, *facts), *markdown(table)]


TABLES: dict[str, Callable[..., Lines]] = {
    "recorded_noise": each_machine("recorded_noise", recorded_noise),
    "any_size": each_machine("any_size", any_size),
    "estimators": estimators,
    "priors": priors,
    "shipped": shipped,
}
