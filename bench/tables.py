"""Writes docs/performance.md from the newest JSON of every machine under bench/results/.

python bench/tables.py [--check]    --check: fail if the page is not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"


def kernels_table(result: dict) -> list[str]:
    """One row per operation and shape: how many times the time of ours each contender takes."""
    where, rows = result["conditions"], result["rows"]
    names = [n for n in ("eager", "compiled", "nflows") if any(n in r["ratio"] for r in rows)]
    on_gpu = where["device"] == "cuda"
    lines = [
        f"## Kernels, {where['machine']}", "",
        f"{where['device']}, {where['threads']} CPU thread(s), torch {where['torch']}, "
        f"CPU kernels {where['build']['cpu_kernels']}, commit {where['commit']}, float32, seed "
        f"{where['seed']}, median of {where['rounds']} rounds in turn. Each number is the time of "
        "the contender over ours: above 1, ours is faster.", "",
        "| operation | shape | " + " | ".join(names) + " | of copy bandwidth |"
        + (" ours, us |" if on_gpu else ""),
        "|---|---|" + "---|" * (len(names) + 1 + on_gpu),
    ]  # fmt: skip
    for row in rows:
        ratios = [f"{row['ratio'][n]:.2f}" if n in row["ratio"] else "" for n in names]
        shape = " x ".join(map(str, row["shape"]))
        cells = [row["op"], shape, *ratios, f"{100 * row['share_of_copy_bandwidth']:.0f} %"]
        if on_gpu:
            cells.append(f"{row['microseconds']['ours']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def demo_table(result: dict) -> list[str]:
    """The demo's PSNR table."""
    lines = [
        "## The demo's images", "",
        f"`flowinv-fast demo --images {result['images']} --seed {result['seed']}`: mean PSNR in dB "
        f"over {result['images']} real test images ({result['selection']}), {result['steps']} "
        "steps a solve. The Gaussian-noise MAP (eq. 7) takes the gamma of a small grid that is "
        "best in hindsight. Loss gap: median of loss at our solution minus loss of the true image.",
        "", "| task | measured | Gaussian MAP | ours | gain | loss gap, nats |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["tasks"]:
        gain = row["psnr_ours"] - row["psnr_gaussian"]
        lines.append(
            f"| {row['title']} | {row['psnr_measurement']:.2f} | {row['psnr_gaussian']:.2f} "
            f"(gamma {row['gamma']:g}) | {row['psnr_ours']:.2f} | {gain:+.2f} | "
            f"{row['loss_gap']:.1f} |"
        )
    return [*lines, ""]


def defaults_table(result: dict) -> list[str]:
    """PSNR and loss gap of every start and step size."""
    where = result["conditions"]
    lines = [
        "## Starts and step sizes", "",
        "`bench/defaults.py`: mean PSNR in dB (median loss gap in nats) over "
        f"{where['images']} real test images, "
        f"{where['steps']} steps, seed {where['seed']}, one start, commit "
        f"{where['commit']}. The defaults of `map_image` and the start from the measurement come "
        "from here.",
        "",
    ]  # fmt: skip
    columns = sorted({(r["init"], r["lr"]) for r in result["rows"]})
    lines.append("| task, method | " + " | ".join(f"{i}, lr {lr:g}" for i, lr in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    cells: dict[tuple, dict] = {}
    for row in result["rows"]:
        cell = f"{row['psnr']:.2f} ({row['loss_gap']:+.0f})"
        cells.setdefault((row["task"], row["method"]), {})[row["init"], row["lr"]] = cell
    for (task, method), found in cells.items():
        lines.append(f"| {task}, {method} | " + " | ".join(found[c] for c in columns) + " |")
    return [*lines, ""]


def plot_name(result: dict) -> str:
    """File of a machine's plot, beside the page."""
    where = result["conditions"]
    machine = "".join(c if c.isalnum() else "-" for c in where["machine"].lower()).strip("-")
    return f"map_step-{machine}-{where['device']}.png"


def map_step_table(result: dict) -> list[str]:
    """The MAP step against other ways to write it."""
    where, rows = result["conditions"], result["rows"]
    on_gpu = where["device"] == "cuda"
    names = list(dict.fromkeys(n for row in rows for n in row["ratio"] if n != "ours"))
    libraries = ", ".join(f"{n} {v}" for n, v in where["libraries"].items())
    lines = [
        f"## The MAP step, {where['machine']}", "",
        "`bench/map_step.py`: decode with log-determinant, Gaussian noise term, gradient to z, "
        f"Adam; {where['device']}, {where['threads']} CPU thread(s), torch {where['torch']}, "
        f"{libraries}, commit {where['commit']}, {where['dtype']}, seed {where['seed']}, median "
        f"of {where['rounds']} rounds in turn. All contenders host the same frozen conditioners "
        "(hidden width 64). Each number is the contender's time over ours in float32: above 1, "
        "ours is faster. M: 1 x 28 x 28, 3 scales, 2 blocks; C: the same at 3 x 64 x 64; Mp: M "
        "with 6 blocks; Cp: C with 6 scales and 10 blocks.", "",
        "| model | batch | " + " | ".join(names) + (" | ours, ms |" if on_gpu else " |"),
        "|---|---|" + "---|" * (len(names) + on_gpu),
    ]  # fmt: skip
    for row in rows:
        cells = [row["model"], str(row["batch"])]
        cells += [f"{row['ratio'][n]:.2f}" if n in row["ratio"] else "" for n in names]
        if on_gpu:
            cells.append(f"{row['milliseconds']['ours']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    once = [
        f"{row['model']} batch {row['batch']}: {row['first_call_seconds'][name]:.0f} s ({name})"
        for row in rows
        for name in ("compiled", "compiled channels-last", "graph")
        if name in row["first_call_seconds"]
    ]
    uncaptured = [
        f"{row['model']} batch {row['batch']}: {name}"
        for row in rows
        for name, captured in row.get("captured", {}).items()
        if not captured
    ]
    if uncaptured:
        lines += ["", "Not as CUDA graphs, whose capture failed: " + ", ".join(uncaptured) + "."]
    lines += ["", f"![MAP step]({plot_name(result)})"]
    if once:
        lines += ["", "Not in the table, paid once per shape: " + ", ".join(once) + "."]
    return [*lines, ""]


def map_step_plot(result: dict, path: Path) -> None:
    """Bars of the table, a group per model and batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    names = list(dict.fromkeys(n for row in rows for n in row["ratio"] if n != "ours tf32"))
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        has = [(k, row["ratio"][name]) for k, row in enumerate(rows) if name in row["ratio"]]
        places = [k + (i - len(names) / 2 + 0.5) * width for k, _ in has]
        axis.bar(places, [r for _, r in has], width, label=name, color=plt.cm.tab20(i))
    labels = [f"{row['model']}, batch {row['batch']}" for row in rows]
    axis.set_xticks(range(len(rows)), labels)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylabel("time of a MAP step over ours")
    where = result["conditions"]
    axis.set_title(f"{where['machine']}, {where['threads']} thread(s), commit {where['commit']}")
    figure.legend(ncols=5, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def memory_table(result: dict) -> list[str]:
    """What is kept for the backward pass."""
    where = result["conditions"]
    lines = [
        f"## Memory of the MAP step, {where['machine']}", "",
        f"`bench/memory.py`: bytes that autograd keeps between forward and backward, per image: "
        f"what batch {2 * where['batch']} keeps beyond batch {where['batch']}, so that weights are "
        f"left out; {where['dtype']}, torch {where['torch']}, commit {where['commit']}. Eager is "
        "plain torch with folded weights.", "",
        "| model | ours, MB | eager, MB | eager over ours |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        ratio = row["eager"] / row["ours"]
        lines.append(
            f"| {row['model']} | {row['ours'] / 1e6:.2f} | {row['eager'] / 1e6:.1f} | {ratio:.0f} |"
        )
    return [*lines, ""]


def solve_table(result: dict) -> list[str]:
    """Whole solves of the demo's tasks."""
    where, rows = result["conditions"], result["rows"]
    names = [n for n in ("ours", "ours bf16", "reference") if n in rows[0]["psnr"]]
    lines = [
        f"## Whole solves, {where['machine']}", "",
        f"`bench/solve.py`: the demo's tasks, {where['steps']} steps, seed {where['seed']}, "
        f"{where['device']}, {where['threads']} CPU thread(s), torch {where['torch']}, commit "
        f"{where['commit']}. One call each. Mean PSNR in dB, and time over ours in float32; the "
        "reference is the same solve in plain torch, float32, weights folded.", "",
        "| task, method | images | " + " | ".join(f"{n}, dB | {n}, time" for n in names) + " |",
        "|---|---|" + "---|" * (2 * len(names)),
    ]  # fmt: skip
    for row in rows:
        cells = [f"{row['psnr'][n]:.2f} | {row['ratio'][n]:.2f}" for n in names]
        lines.append(
            f"| {row['task']}, {row['method']} | {row['batch']} | " + " | ".join(cells) + " |"
        )
    return [*lines, ""]


def ptxas_table(result: dict) -> list[str]:
    """Registers and spills as compiled."""
    where, rows = result["conditions"], result["rows"]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    lines = [
        "## CUDA kernels as compiled", "",
        f"`bench/ptxas.py`: most registers a thread over a source's kernels, and bytes spilled in "
        f"all of them; {where['nvcc']}, commit {where['commit']}. What has run on a GPU is in "
        "[bench/GPU_STATUS.md](../bench/GPU_STATUS.md).", "",
        "| source | kernels | " + " | ".join(f"{a}: registers | spilled" for a in archs) + " |",
        "|---|---|" + "---|" * (2 * len(archs)),
    ]  # fmt: skip
    for source in dict.fromkeys(row["source"] for row in rows):
        found = {row["arch"]: row for row in rows if row["source"] == source}
        cells = [f"{found[a]['registers']} | {found[a]['spills']}" for a in archs]
        count = next(iter(found.values()))["instances"]
        lines.append(f"| {source} | {count} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def newest(kind: str) -> list[dict]:
    """The latest result of this kind of every machine and device."""
    found: dict[tuple, dict] = {}
    paths = (ROOT / "bench" / "results").glob(f"{kind}-*.json")
    results = [json.loads(path.read_text()) for path in paths]
    for result in sorted(results, key=lambda r: r["conditions"]["date"]):
        found[result["conditions"]["machine"], result["conditions"]["device"]] = result
    return [found[key] for key in sorted(found)]


def page() -> str:
    told = "Generated by `python bench/tables.py` from `bench/results/`."
    lines = ["# Performance", "", told, ""]
    demo = ROOT / "bench" / "results" / "demo.json"
    if demo.exists():
        lines += demo_table(json.loads(demo.read_text()))
    for kind, table in (
        ("map_step", map_step_table),
        ("memory", memory_table),
        ("solve", solve_table),
        ("defaults", defaults_table),
        ("kernels", kernels_table),
        ("ptxas", ptxas_table),
    ):
        for result in newest(kind):
            lines += table(result)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    text = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    for result in newest("map_step"):
        map_step_plot(result, PAGE.parent / plot_name(result))
    print("wrote", PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
