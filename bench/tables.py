"""The tables of the documentation pages, each from a file of bench/results/; see fill.py.

A function takes the folder of the results and the words of its hole, and returns lines of Markdown.
A benchmark's table starts with one line on the machine and the conditions it was measured under,
and is given once for every machine and device that it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from flowinv_fast.experiments import report
from flowinv_fast.experiments.cells import load_result
from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.metrics import interval
from flowinv_fast.reconstruction.strategies import STRATEGIES

RESULTS = Path(__file__).parent / "results"
Lines = list[str]


# --- pieces ---------------------------------------------------------------------------------------


def markdown(rows: Iterable[Iterable[object]]) -> Lines:
    """Rows, the first of them headings, as a table. Line breaks inside a cell stay."""
    cells = [[str(cell).replace("\n", "<br>") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|---" * len(cells[0]) + "|", *lines[1:]]


def newest(results: Path, kind: str) -> list[dict]:
    """The latest result of this kind of every machine, device and training time."""
    found: dict[tuple, dict] = {}
    read = [json.loads(path.read_text()) for path in results.glob(f"{kind}-*.json")]
    for result in sorted(read, key=lambda r: r["conditions"]["date"]):
        where = result["conditions"]
        found[where["machine"], where["device"], where.get("minutes", 0)] = result
    return [found[key] for key in sorted(found)]


def conditions(where: dict, *more: str) -> Lines:
    """One line: the machine, what every measurement depends on, and a table's own facts."""
    rounds = f"median of {where['rounds']} rounds" if "rounds" in where else ""
    libraries = [f"{name} {version}" for name, version in where.get("libraries", {}).items()]
    note = f"note: {where['note']}" if "note" in where else ""
    facts = [
        where["device"],
        f"{where['threads']} CPU thread(s)",
        f"torch {where['torch']}",
        *libraries,
        f"commit {where['commit']}",
        where.get("dtype", ""),
        f"seed {where['seed']}" if "seed" in where else "",
        rounds,
        *more,
        note,
    ]
    return [f"**{where['machine']}**: " + ", ".join(fact for fact in facts if fact) + ".", ""]


def each_machine(kind: str, table: Callable[[dict], Lines]) -> Callable[..., Lines]:
    """The table of a kind's newest results, one below the other."""

    def tables(results: Path) -> Lines:
        return [line for result in newest(results, kind) for line in [*table(result), ""]]

    return tables


def contenders(rows: list[dict]) -> list[str]:
    """Names in ``ratio`` but ours, in their order."""
    return list(dict.fromkeys(n for row in rows for n in row["ratio"] if n != "ours"))


def ratios(row: dict, names: list[str]) -> list[str]:
    """A row's ratios to ours, empty where one was not measured."""
    return [f"{row['ratio'][n]:.2f}" if n in row["ratio"] else "" for n in names]


def first_calls(rows: list[dict], names: tuple[str, ...]) -> Lines:
    """Times of calls that compile or capture, which the medians leave out."""
    found = [
        f"{row['model']} batch {row['batch']} {row['first_call_seconds'][name]:.0f} s ({name})"
        for row in rows
        for name in names
        if name in row.get("first_call_seconds", {})
    ]
    return ["", "First call of a shape, left out: " + ", ".join(found) + "."] if found else []


# --- speed ----------------------------------------------------------------------------------------


def map_step(result: dict) -> Lines:
    """The MAP step against other ways to write it."""
    rows, names = result["rows"], contenders(result["rows"])
    on_gpu = result["conditions"]["device"] == "cuda"
    table: list[list[object]] = [["model", "batch", *names, *(["ours, ms"] if on_gpu else [])]]
    for row in rows:
        own = [f"{row['milliseconds']['ours']:.3f}"] if on_gpu else []
        table.append([row["model"], row["batch"], *ratios(row, names), *own])
    uncaptured = [
        f"{row['model']} batch {row['batch']} ({name})"
        for row in rows
        for name, captured in row.get("captured", {}).items()
        if not captured
    ]
    lines = [*conditions(result["conditions"]), *markdown(table)]
    lines += ["", f"Without a CUDA graph: {', '.join(uncaptured)}."] if uncaptured else []
    lines += first_calls(rows, ("compiled", "compiled channels-last", "graph"))
    return [*lines, "", f"![MAP step]({plot_name(result)})"]


def plot_name(result: dict) -> str:
    """File of a machine's plot, beside the page."""
    where = result["conditions"]
    machine = "".join(c if c.isalnum() else "-" for c in where["machine"].lower()).strip("-")
    return f"map_step-{machine}-{where['device']}.png"


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
        left = [k + (i - len(names) / 2 + 0.5) * width for k, _ in has]
        axis.bar(left, [r for _, r in has], width, label=name, color=plt.cm.tab20(i))
    labels = [f"{row['model']}, batch {row['batch']}" for row in rows]
    axis.set_xticks(range(len(rows)), labels)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_ylabel("time of a MAP step over ours")
    where = result["conditions"]
    axis.set_title(f"{where['machine']}, {where['threads']} thread(s), commit {where['commit']}")
    figure.legend(ncols=5, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def memory(result: dict) -> Lines:
    """What is kept for the backward pass."""
    where = result["conditions"]
    table = [["model", "ours, MB", "eager, MB", "eager over ours"]]
    for row in result["rows"]:
        ours, eager = row["ours"], row["eager"]
        cells = [f"{ours / 1e6:.2f}", f"{eager / 1e6:.1f}", f"{eager / ours:.0f}"]
        table.append([row["model"], *cells])
    batches = f"batch {2 * where['batch']} beyond batch {where['batch']}"
    return [*conditions(where, batches), *markdown(table)]


def training(result: dict) -> Lines:
    """A training step against other ways to write it."""
    where, rows, names = result["conditions"], result["rows"], contenders(result["rows"])
    on_gpu = where["device"] == "cuda"
    own = ["ours, images/s"] if on_gpu else []
    table: list[list[object]] = [["model", "hidden", "batch", "quartiles of ours", *names, *own]]
    for row in rows:
        low, high = row["quartiles"]["ours"]
        own = [str(row["images_per_second"]["ours"])] if on_gpu else []
        facts = [row["model"], row["hidden"], row["batch"], f"{low:.2f} to {high:.2f}"]
        table.append([*facts, *ratios(row, names), *own])
    far = max(d["log_prob"] for row in rows for d in row["disagreement"].values())
    agreement = f"largest relative disagreement of log p {far:.0e}"
    compiled = ("ours compiled", "compiled", "compiled channels-last")
    lines = [*conditions(where, agreement), *markdown(table), *first_calls(rows, compiled)]
    return [*lines, *_shares(rows)]


def _shares(rows: list[dict]) -> Lines:
    """What a step reaches of the peak, and what it spends its time on."""
    head = ["model", "batch", "step", "of the peak", "time in products", "time in copies"]
    table: list[list[object]] = [[*head]]
    for row in rows:
        for name, share in row.get("share", {}).items():
            cells = [f"{100 * share[k]:.0f} %" for k in ("of_peak", "in_products", "in_copies")]
            table.append([row["model"], row["batch"], name, *cells])
    return ["", *markdown(table)] if len(table) > 1 else []


def training_memory(result: dict) -> Lines:
    """What recomputed couplings save."""
    where = result["conditions"]
    head = ["sweep", "scales", "blocks", "couplings", "plain: kept, MB", "peak, MB"]
    head += ["recomputed: kept, MB", "peak, MB", "peaks, plain over recomputed"]
    table: list[list[object]] = [[*head]]
    for row in result["rows"]:
        plain, less = row["plain"], row["recompute"]
        cells = [row["sweep"], row["scales"], row["blocks"], row["couplings"]]
        cells += [f"{plain['kept'] / 1e6:.1f}", f"{plain['peak'] / 1e6:.1f}"]
        cells += [f"{less['kept'] / 1e6:.2f}", f"{less['peak'] / 1e6:.1f}"]
        table.append([*cells, f"{plain['peak'] / less['peak']:.1f}"])
    shape = f"images {' x '.join(map(str, where['shape']))}, hidden width {where['hidden']}"
    batches = f"batch {2 * where['batch']} beyond batch {where['batch']}"
    return [*conditions(where, shape, batches), *markdown(table)]


def affine_flows(result: dict) -> Lines:
    """Variants of affine flows and their training at equal time."""
    where, rows = result["conditions"], result["rows"]
    seeds = sorted({row["seed"] for row in rows})
    named = ", ".join(map(str, seeds))
    at = {(row["data"], row["variant"], row["seed"]): row for row in rows}
    head = ["data", "variant", f"bits/dim, seeds {named}", "difference", "steps", "parameters"]
    table: list[list[object]] = [[*head]]
    for data, variant in dict.fromkeys((row["data"], row["variant"]) for row in rows):
        found = [at[data, variant, s] for s in seeds if (data, variant, s) in at]
        plain = [at[data, "plain", r["seed"]] for r in found if (data, "plain", r["seed"]) in at]
        change = ""
        if variant != "plain" and len(plain) == len(found):
            gaps = [a["bits_per_dim"] - b["bits_per_dim"] for a, b in zip(found, plain)]
            change = f"{sum(gaps) / len(gaps):+.3f} ({', '.join(f'{gap:+.3f}' for gap in gaps)})"
        bits = ", ".join(f"{row['bits_per_dim']:.3f}" for row in found)
        steps = ", ".join(str(row["steps"]) for row in found)
        table.append([data, variant, bits, change, steps, f"{found[0]['parameters']:,}"])
    facts = f"{where['minutes']:g} minutes each in turns of {where['slice_seconds']:g} s"
    models = {row["data"]: row for row in rows if row["variant"] == "plain"}.values()
    lines = [*conditions(where, f"seeds {named}", facts), *markdown(table), ""]
    return [*lines, "; ".join(map(_affine_flow, models)) + "."]


def _affine_flow(row: dict) -> str:
    flow = row["flow"]
    facts = [
        f"{row['data']}: {' x '.join(map(str, flow['shape']))}",
        f"{flow['scales']} scales",
        f"hidden {flow['hidden']}",
        f"{flow['blocks']} block(s)",
        flow["support"],
        f"{flow['bits']} bits",
        f"batch {row['batch']}",
        f"lr {row['lr']:g}",
        f"{row['held_out_images']} held-out images",
    ]
    return ", ".join(facts)


def solve(result: dict) -> Lines:
    """Whole solves of the demo's tasks."""
    where, rows = result["conditions"], result["rows"]
    names = [n for n in ("ours", "ours bf16", "reference") if n in rows[0]["psnr"]]
    head = [cell for name in names for cell in (f"{name}, dB", f"{name}, time")]
    table: list[list[object]] = [["task, objective", "images", *head]]
    for row in rows:
        pairs = [(f"{row['psnr'][n]:.2f}", f"{row['ratio'][n]:.2f}") for n in names]
        cells = [cell for pair in pairs for cell in pair]
        table.append([f"{row['task']}, {row['objective']}", row["batch"], *cells])
    return [*conditions(where, f"{where['steps']} steps"), *markdown(table)]


def kernels(result: dict) -> Lines:
    """One row per operation and shape: how many times the time of ours each contender takes."""
    where, rows = result["conditions"], result["rows"]
    names = [n for n in ("eager", "compiled", "nflows") if any(n in r["ratio"] for r in rows)]
    on_gpu = where["device"] == "cuda"
    own = ["ours, us"] if on_gpu else []
    table: list[list[object]] = [["operation", "shape", *names, "of copy bandwidth", *own]]
    for row in rows:
        share = f"{100 * row['share_of_copy_bandwidth']:.0f} %"
        own = [f"{row['microseconds']['ours']:.1f}"] if on_gpu else []
        shape = " x ".join(map(str, row["shape"]))
        table.append([row["op"], shape, *ratios(row, names), share, *own])
    built = f"CPU kernels {where['build']['cpu_kernels']}"
    return [*conditions({"dtype": "float32", **where}, built), *markdown(table)]


def ptxas(result: dict) -> Lines:
    """Registers and spills as compiled."""
    where, rows = result["conditions"], result["rows"]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    head = [cell for arch in archs for cell in (f"{arch}: registers", "spilled")]
    table: list[list[object]] = [["source", "kernels", *head]]
    for source in dict.fromkeys(row["source"] for row in rows):
        found = {row["arch"]: row for row in rows if row["source"] == source}
        cells = [cell for a in archs for cell in (found[a]["registers"], found[a]["spills"])]
        table.append([source, next(iter(found.values()))["instances"], *cells])
    return [f"{where['nvcc']}, commit {where['commit']}.", "", *markdown(table)]


# --- images ---------------------------------------------------------------------------------------


def demo(results: Path) -> Lines:
    """The demo's PSNR table."""
    result = json.loads((results / "demo.json").read_text())
    head = ["task", "measured", "Gaussian MAP", "ours", "gain", "loss gap, nats"]
    table = [head]
    for row in result["tasks"]:
        gaussian = f"{row['psnr_gaussian']:.2f} (gamma {row['gamma']:g})"
        gain = f"{row['psnr_ours'] - row['psnr_gaussian']:+.2f}"
        cells = [f"{row['psnr_measurement']:.2f}", gaussian, f"{row['psnr_ours']:.2f}", gain]
        table.append([row["title"], *cells, f"{row['loss_gap']:.1f}"])
    facts = f"{result['images']} images ({result['selection']}), seed {result['seed']}"
    return [f"{facts}, {result['steps']} steps a solve.", "", *markdown(table)]


def defaults(result: dict) -> Lines:
    """PSNR and loss gap of every start and step size."""
    where = result["conditions"]
    columns = sorted({(r["start"], r["lr"]) for r in result["rows"]})
    cells: dict[tuple, dict] = {}
    for row in result["rows"]:
        cell = f"{row['psnr']:.2f} ({row['loss_gap']:+.0f})"
        cells.setdefault((row["task"], row["objective"]), {})[row["start"], row["lr"]] = cell
    table = [["task, objective", *(f"{start}, lr {lr:g}" for start, lr in columns)]]
    table += [
        [f"{task}, {objective}", *(found[c] for c in columns)]
        for (task, objective), found in cells.items()
    ]
    facts = [f"{where['images']} real test images", f"{where['steps']} steps", "one start"]
    return [*conditions(where, *facts), *markdown(table)]


def strategies(results: Path) -> Lines:
    """The stages of every entry of the table of strategies; empty: nothing of that kind."""
    table = [
        ["`strategy=`", "solver", "steps", "over", "step size", "smoothing", "tempering", "exact"]
    ]
    for name, strategy in STRATEGIES.items():
        for i, stage in enumerate(strategy.stages):
            steps = "the rest" if stage.share is None else f"{100 * stage.share:g} %"
            over = {"latent": "latents", "image": "images"}.get(stage.space or "", "")
            rate = f"{stage.rate:g} times" if stage.rate != 1 else ""
            smoothing = f"{stage.smoothing:g}" if stage.smoothing else ""
            tempering = f"{stage.tempering:g}" if stage.tempering < 1 else ""
            exact = f"{100 * stage.exact:g} %" if smoothing or tempering else ""
            cells = [stage.solver, "all" if len(strategy.stages) == 1 else steps, over, rate]
            table.append(["" if i else f"`{name}`", *cells, smoothing, tempering, exact])
    return markdown(table)


def optimisation(result: dict) -> Lines:
    """Ways to minimise the MAP loss, a table to each task."""
    where, rows = result["conditions"], result["rows"]
    facts = [f"{where['images']} {where['source']} of Fashion-MNIST"]
    facts.append(f"{where['evaluations']} evaluations an image")
    lines = conditions({"dtype": "float32", **where}, *facts)
    for task in dict.fromkeys(row["task"] for row in rows):
        some = [row for row in rows if row["task"] == task]
        best = max(row["psnr"] for row in some)
        table = [["way", "PSNR", "gap", "no higher than the truth's", "overshoot"]]
        for row in some:
            bold = "**" if row["psnr"] == best else ""
            psnr = f"{bold}{row['psnr']:.2f}{bold} ± {row['deviation']:.2f}"
            shares = [f"{100 * row[key]:.0f} %" for key in ("not_above", "overshoot")]
            table.append([row["way"], psnr, f"{row['gap']:+.0f}", *shares])
        lines += [f"### {task}", "", *markdown(table), ""]
    return lines


def problems(result: dict) -> Lines:
    """Everyday problems: the call without options against named settings and others' methods."""
    where = result["conditions"]
    facts = [f"{where['images']} images a problem"]
    if where["steps"]:
        facts.append(f"{where['steps']} steps")
    lines = conditions(where, *facts)
    others = ["default, other prior", "Gaussian MAP", "TV, same law", "BM3D", "Wiener"]
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["kind"] == kind]
        weights = sorted({w for row in rows for w in row["cells"] if w.startswith("beta")})
        table = [["problem", "input", "default", "best named", "default less best"]]
        table[0] += [*reversed(weights), *others]
        for row in rows:
            cells, own = row["cells"], np.array(row["cells"]["default"]["psnr"])
            named = {n: c for n, c in cells.items() if n.startswith("map")}
            best = max(named, key=lambda n: np.mean(named[n]["psnr"]), default="")
            gap = own - np.array(named[best]["psnr"]) if best else own - own
            less = f"{gap.mean():+.2f} ± {interval(gap):.2f}" if gap.any() else "the same"
            less = less if best else "not run"
            first = [row["title"], _psnr(row["input"]) if "input" in row else "", _psnr(own)]
            best = f"{_psnr(named[best]['psnr'])} ({best})" if best else ""
            table.append([*first, best, less, *(_cell(cells, w) for w in reversed(weights))])
            table[-1] += [_cell(cells, name) for name in others]
        lines += [f"### {kind.capitalize()} images", "", *markdown(table), ""]
    return lines


def _psnr(values: Iterable[float]) -> str:
    return f"{np.mean(list(values)):.2f}"


def _cell(cells: dict, name: str) -> str:
    """Mean PSNR, or in words why there is none."""
    cell = cells.get(name, {"absent": "not run"})
    return _psnr(cell["psnr"]) if "psnr" in cell else cell["absent"]


def reproduction(results: Path, name: str) -> Lines:
    """A run of ``flowinv-fast reproduce``: settings, claims, and a table to each task."""
    result = load_result(results / f"reproduce-{name}")
    config = result["config"]
    chosen = "of the paper's selection" if config["test_file"] else "of the shipped ones"
    facts = [
        f"{config['images']} images a task {chosen}",
        f"{config['steps']} steps",
        f"seed {config['seed']}",
        f"{config['tuning_images']} images to tune on",
        f"torch {result['torch']}",
        "CPU",
    ]
    lines = [", ".join(facts) + ".", ""]
    lines += markdown([["claim", "measured"], *report.claims(result)])
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        if TASKS[task].tuned:
            lines += ["", f"### {task}", "", report.about(result, task), ""]
            lines += markdown(report.table(result, task))
    return lines


def reliability(result: dict) -> Lines:
    """How many cases of each campaign were tried, and how they ended."""
    where = result["conditions"]
    table: list[list[object]] = [["attack", "tried", "refused clearly", "right", "wrong", "commit"]]
    for row in result["rows"]:
        counts = [f"{row[key]:,}" for key in ("tried", "refused", "right", "wrong")]
        table.append([row["title"], *counts, row["commit"]])
    minutes = sum(row["seconds"] for row in result["rows"]) / 60
    kinds = [
        f"{row['campaign']}: {n} x {k}" for row in result["rows"] for k, n in row["kinds"].items()
    ]
    lines = [*conditions(where, f"{minutes:.0f} minutes in all"), *markdown(table)]
    return [*lines, "", "Wrong: " + "; ".join(kinds) + "."] if kinds else lines


TABLES: dict[str, Callable[..., Lines]] = {
    "demo": demo,
    "map_step": each_machine("map_step", map_step),
    "memory": each_machine("memory", memory),
    "training": each_machine("training", training),
    "training_memory": each_machine("training_memory", training_memory),
    "affine_flows": each_machine("affine_flows", affine_flows),
    "solve": each_machine("solve", solve),
    "defaults": each_machine("defaults", defaults),
    "kernels": each_machine("kernels", kernels),
    "ptxas": each_machine("ptxas", ptxas),
    "strategies": strategies,
    "optimisation": each_machine("optimisation", optimisation),
    "problems": each_machine("problems", problems),
    "reproduction": reproduction,
    "reliability": each_machine("reliability", reliability),
}
