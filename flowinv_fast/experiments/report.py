"""A reproduction as tables, claims and one self-contained report.html."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from typing import Any

import numpy as np

from .._base.errors import ArgumentError, DataError
from .._base.files import in_words, locked_folder, made_folder, whole_file
from .._base.templates import filled
from ..metrics import interval
from . import figures
from .cells import POSTERIOR, Arrays, Pictures, load_arrays, load_pictures, load_result
from .datasets import DATASETS
from .figures import psnrs
from .methods import MAP_METHOD
from .tasks import TASKS

_PAGE = Path(__file__).parent / "report_page.html"
Result = dict[str, Any]
Row = dict[str, Any]


def report(folder: str | os.PathLike, out: str | os.PathLike | None = None) -> Path:
    """Write the report of a run again, from its results.json.

    Args:
        folder: of the run. Pictures are shown as far as its cells are still there.
        out: where report.html and the PNGs go; None: into the same folder.
    Returns:
        The path of report.html.
    Raises:
        ArgumentError: no results.json or results.json.gz in the folder.
        DataError: it is damaged, or holds something else.
    """
    result, target = load_result(folder), made_folder(out or folder)
    with locked_folder(target, "report", "out"):
        try:
            posterior = load_arrays(Path(folder) / POSTERIOR)
            return write(result, load_pictures(folder, result), posterior, target)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArgumentError):
                raise
            wrong = f"not the results of a run ({in_words(error)})"
            raise DataError("report", "folder", folder, wrong) from error


# --- numbers --------------------------------------------------------------------------------------


def about(result: Result, task: str) -> str:
    """The sentence on a task, with the numbers of this run's data set."""
    config = result["config"]
    return TASKS[task].sentence(DATASETS[config["dataset"]], config.get("quick", False))


def rows_of(result: Result, task: str, method: str | None = None) -> list[Row]:
    """Rows of a task, and of a method where one is given."""
    rows = [row for row in result["rows"] if row["task"] == task]
    return [row for row in rows if method in (None, row["method"])]


def claims(result: Result) -> list[tuple[str, str]]:
    """The paper's three claims and the optimality gap, each with its number, as far as they ran."""
    return [
        *_noise_model_claims(result),
        *_measurements_claim(result),
        *_sensitivity_claim(result),
        *_digits_claims(result),
        *_overshoot_claim(result),
        *_failures_claim(result),
    ]


def _mean(row: Row) -> float:
    return psnrs(row).mean()


def _noise_model_claims(result: Result) -> list[tuple[str, str]]:
    found = []
    for kind in ("gan", "vae"):
        mle, csgm = (rows_of(result, "digits", f"{name}-{kind}") for name in ("mle", "csgm"))
        if mle and csgm:
            gain = psnrs(mle[0]) - psnrs(csgm[0])
            claim = f"The right noise model helps the same generator ({kind.upper()}, digits)"
            number = f"{gain.mean():+.2f} dB, 95 % interval +-{interval(gain):.2f}"
            found.append((claim, f"MLE minus CSGM: {number}"))
    return found


def _measurements_claim(result: Result) -> list[tuple[str, str]]:
    growth = {}
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = rows_of(result, "cs-sinusoidal", method)
        if len(rows) > 1:
            rows = sorted(rows, key=lambda row: row["at"]["measurements m"])
            growth[method] = _mean(rows[-1]) - _mean(rows[0])
    if MAP_METHOD not in growth:
        return []
    others = {m: g for m, g in growth.items() if m not in (MAP_METHOD, "noisy")}
    most = max(others, key=lambda method: others[method])
    number = f"MAP {growth[MAP_METHOD]:+.2f} dB, next {most} {others[most]:+.2f} dB"
    return [("More measurements help MAP most", f"fewest to most measurements: {number}")]


def _sensitivity_claim(result: Result) -> list[tuple[str, str]]:
    ranges = []
    for method in (MAP_METHOD, "asim"):
        means = [_mean(row) for row in rows_of(result, "sensitivity", method)]
        if not means:
            return []
        ranges.append(max(means) - min(means))
    number = f"best minus worst: MAP {ranges[0]:.2f} dB, Asim {ranges[1]:.2f} dB"
    return [("MAP varies less over beta than Asim over gamma", number)]


def _digits_claims(result: Result) -> list[tuple[str, str]]:
    found = []
    for row in rows_of(result, "digits", MAP_METHOD):
        gain = _mean(row) - _mean(rows_of(result, "digits", "noisy")[0])
        gap = np.median([image["gap"] for image in row["images"] if image["gap"] is not None])
        found.append(("Digits removed", f"{gain:+.2f} dB over the noisy image 2y"))
        claim = "The solver finds a loss no higher than the truth's (digits)"
        found.append((claim, f"median gap {gap:+.1f} nats"))
    return found


def _overshoot_claim(result: Result) -> list[tuple[str, str]]:
    rows = [row for row in result["rows"] if row["method"] == MAP_METHOD]
    scored = [image for row in rows for image in row["images"]]
    over = sum(image.get("prior_overshoot", False) for image in scored)
    number = f"{over} of {len(scored)} MAP solutions have a log p that no held-out image comes near"
    return [("Prior overshoot", number)] if scored else []


def _failures_claim(result: Result) -> list[tuple[str, str]]:
    """Solves that did not end well, where there are any."""
    bad = ("NON_FINITE", "FAILED", "BAD_MEASUREMENT")
    ends = [
        image["status"] for row in result["rows"] for image in row["images"] if "status" in image
    ]
    failed = sum(end in bad for end in ends)
    return [("Solves whose loss was not finite", f"{failed} of {len(ends)}")] if failed else []


def table(result: Result, task: str) -> list[list[str]]:
    """Mean PSNR of a task, methods by settings; the first row and column are headings."""
    rows = rows_of(result, task)
    labels = list(dict.fromkeys(row["setting"] for row in rows))
    cells = {(row["method"], row["setting"]): row for row in rows}
    lines = [["method", *(f"{label or 'PSNR'}, dB" for label in labels)]]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [cells.get((method, label)) for label in labels]
        title = next(row["title"] for row in found if row)
        ours = lambda row: cells.get((MAP_METHOD, row["setting"]))
        lines.append([title, *(_cell(row, ours(row)) if row else "" for row in found)])
    return lines


def _cell(row: Row, ours: Row | None) -> str:
    """Mean and interval; ours minus it, paired by image; the parameter it was tuned to."""
    found = psnrs(row)
    text = f"{found.mean():.2f} ± {interval(found):.2f}"
    if ours and row["method"] != MAP_METHOD:
        paired = psnrs(ours) - found
        text += f"\nours {paired.mean():+.2f} ± {interval(paired):.2f}"
    if row["parameter"]:
        text += f"\n{row['parameter']} = {row['value']:g}"
    return text


# --- the page -------------------------------------------------------------------------------------


def write(result: Result, pictures: Pictures, posterior: Arrays, folder: Path) -> Path:
    """Write the PNGs and report.html into a folder.

    Args:
        result: what results.json holds.
        pictures: what the cells keep; panels are left out where there are none.
        posterior: pictures of the posterior draws, or {}.
        folder: that exists.
    Returns:
        The path of report.html.
    """
    config, samples, bound = result["config"], result["posterior"], result["bound"]
    tasks = dict.fromkeys(row["task"] for row in result["rows"])
    values = {
        **{key: config[key] for key in ("dataset", "images", "seed", "steps", "tuning_images")},
        **{key: result[key] for key in ("version", "torch", "threads")},
        **{key: samples[key] for key in ("samples", "warm_up")},
        **{key: f"{samples[key]:.2f}" for key in ("z", "acceptance", "top")},
        "config": html.escape(", ".join(f"{key} = {value}" for key, value in config.items())),
        "claims": _html_table([["claim", "measured"], *map(list, claims(result))]),
        "tasks": "\n".join(part for t in tasks for part in _task(result, t, pictures, folder)),
        "posterior": _posterior(samples["top"], posterior, folder) if posterior else "",
        "std": bound["std"],
        "bound": _bound(bound),
        "tuning": _tuning(result),
        "left_out": _left_out(result),
    }
    conditions = ["bound" if bound["images"] else "no_bound"] + ["posterior"] * bool(posterior)
    conditions += ["left_out"] * bool(result.get("left_out"))
    path = folder / "report.html"
    with whole_file(path) as temporary:
        temporary.write_text(filled(_PAGE, values, conditions), "utf-8", "xmlcharrefreplace")
    return path


def _task(result: Result, task: str, pictures: Pictures, folder: Path) -> list[str]:
    """Heading, sentence, table, curves and panels of one task."""
    parts = [f"<h2>{task}</h2><p>{html.escape(about(result, task))}</p>"]
    if TASKS[task].tuned:
        parts.append(_html_table(table(result, task)))
    for axis in _axes(result, task):
        path = folder / f"{task}-over-{axis.replace(' ', '-') or 'weight'}.png"
        has_curves = figures.curves(rows_of(result, task), axis, path)
        parts.append(_embedded(path) if has_curves else "<p>Curves need matplotlib.</p>")
    shown = {key: arrays for key, arrays in pictures.items() if key[0] == task}
    titles = {row["method"]: row["title"] for row in result["rows"]}
    for label in dict.fromkeys(key[1] for key in shown) if TASKS[task].tuned else ():
        some = {key[2]: arrays for key, arrays in shown.items() if key[1] == label}
        name = f"{task}-{label}".replace(" ", "").replace(",", "-").replace("=", "")
        path = folder / f"{name.rstrip('-')}.png"
        figures.panel(titles, some, path)
        parts.append(f"<h3>{html.escape(label)}</h3>" if label else "")
        parts.append(_embedded(path))
    return parts


def _axes(result: Result, task: str) -> list[str]:
    """Names of the axes that a task is swept over; "" is the weight of each method."""
    if not TASKS[task].tuned:
        return [""]
    places = [row["at"] for row in rows_of(result, task)]
    names = dict.fromkeys(axis for at in places for axis in at)
    return [axis for axis in names if len({at[axis] for at in places if axis in at}) > 1]


def _posterior(top: float, posterior: Arrays, folder: Path) -> str:
    """Mean and uncertainty of the draws as a picture; ``top`` is the level shown white."""
    path, mean = folder / "posterior.png", posterior["mean"]
    strips = [
        ("truth", posterior["truth"]),
        ("measurement", posterior["y"]),
        ("posterior mean", mean),
        ("posterior std", posterior["std"] / top),
        ("error of the mean", np.abs(mean - posterior["truth"]) / top),
    ]
    figures.strips(strips, path)
    return _embedded(path)


def _bound(bound: dict[str, Any]) -> str:
    """The bound of Theorem 4.1, a row for each image."""
    head = ["image", "mu", "||delta||", "bound", "||x - x*||", "PSNR, dB"]
    keys = ("mu", "delta_norm", "bound", "distance", "psnr")
    number = lambda v: "none" if v is None else f"{v:.2f}"  # where 1 + mu std^2 is not positive
    rows = [[str(row["image"]), *(number(row[key]) for key in keys)] for row in bound["images"]]
    return _html_table([head, *rows])


def _left_out(result: Result) -> str:
    """What was not run or measured, and why."""
    rows = [[row["task"], row["method"], row["reason"]] for row in result.get("left_out", [])]
    return _html_table([["task", "left out", "reason"], *rows])


def _tuning(result: Result) -> str:
    """Grid and choice of every method at every setting."""
    lines = [["setting", "method", "parameter", "grid", "chosen"]]
    for row in result["tuned"]:
        grid = ", ".join(f"{value:g}" for value in row["grid"])
        names = [row["setting"], row["method"], row["parameter"]]
        lines.append([*names, grid, f"{row['value']:g}"])
    return _html_table(lines)


# --- HTML -----------------------------------------------------------------------------------------


def _html_table(lines: list[list[str]]) -> str:
    def cell(text: str, tag: str) -> str:
        first, *others = html.escape(text).split("\n")
        return f"<{tag}>{first}" + "".join(f"<br><small>{o}</small>" for o in others) + f"</{tag}>"

    row = lambda cells, tag: "<tr>" + "".join(cell(c, tag) for c in cells) + "</tr>"
    return "<table>" + row(lines[0], "th") + "".join(row(c, "td") for c in lines[1:]) + "</table>"


def _embedded(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'
