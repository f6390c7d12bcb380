"""The page of a model card: the template ``card.md`` beside this file, filled with the facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.templates import filled

_TEMPLATE = Path(__file__).parent / "card.md"
_COUPLINGS = (
    "{scales} scales, {couplings} couplings",
    "{blocks} residual blocks of {hidden} channels",
)
# By the name in a weights file: the architecture in words, and its networks.
_ARCHITECTURES = {
    "realnvp": (f"RealNVP, {_COUPLINGS[0]}", _COUPLINGS[1]),
    "glow": (f"Glow, {_COUPLINGS[0]}", _COUPLINGS[1]),
    "tarflow": (
        "TarFlow, {blocks} autoregressive maps of {patch} x {patch} patches",
        "{layers} causal transformer layers of {width} channels and {heads} heads",
    ),
}
# Keys of a flow's ``info``, and what the card calls them.
_TRAINING = {
    "data": "data",
    "start": "began at",
    "train_images": "images",
    "epoch": "epochs",
    "seconds": "seconds",
    "curve": "curve, minutes: held-out bits/dim",
    "hardware": "hardware",
    "command": "command",
    "train_config": "settings",
    "torch": "torch",
    "licence": "licence",
}


def card_page(facts: dict[str, Any]) -> str:
    """The card as Markdown.

    Args:
        facts: what ``write_card`` returned, or what NAME.json holds.
    """
    made, histogram = facts["architecture"], facts["pictures"]["histogram"]
    discrete = made["support"] == "bounded" or made["smoothing"] == 0
    conditions = {
        made["support"],
        "uniform" if discrete else "gaussian",
        "histogram" if histogram else "no_histogram",
        "range" if made.get("levels") else "gaussian_alone" if not discrete else "",
    }
    values = {**_flow(made), **_held_out(facts), **_round_trip(facts), **_run(facts)}
    return filled(_TEMPLATE, {**values, "name": facts["name"]}, conditions)


def _flow(made: dict[str, Any]) -> dict[str, str]:
    architecture, conditioners = (words.format(**made) for words in _ARCHITECTURES[made["name"]])
    mixing = ", invertible 1x1 convolutions" if made.get("mixing") else ""
    prior = ", conditional prior" if made.get("conditional_prior") else ""
    return {
        "architecture": architecture + mixing + prior,
        "conditioners": conditioners,
        "parameters": f"{made['parameters']:,}",
        "shape": " x ".join(map(str, made["shape"])),
        "bits": str(made["bits"]),
        "alpha": f"{made['alpha']:g}",
        "levels": str(2 ** made["bits"]),
        "smoothing": f"{made['smoothing']:g}",
        "range": " .. ".join(f"{level:g}" for level in made.get("levels") or ()),
    }


def _held_out(facts: dict[str, Any]) -> dict[str, str]:
    held_out, pictures = facts["held_out"], facts["pictures"]
    groups = [
        f"| {row['group']} | {row['images']:,} | {row['finite']:,} | "
        f"{_number_text(row['log_prob'], ',.1f')} | {_range(row['bits_per_dim'])} | "
        f"{100 * row['likelier']:.1f} % |"
        for row in facts["groups"]
    ]
    return {
        "mean": _number_text(held_out["bits_per_dim"], ".4f"),
        "interval": _number_text(held_out["interval"], ".4f"),
        "images": f"{held_out['images']:,}",
        "of": f" ({held_out['data']})" if held_out["data"] else "",
        "finite": f"{held_out['finite']:,}",
        "samples": str(pictures["samples"]),
        "temperature": f"{pictures['temperature']:g}",
        "shown": str(pictures["held_out"]),
        "at_levels": "; ".join(map(_at_level, facts.get("levels", ()))),
        "groups": "\n".join(groups),
    }


def _at_level(row: dict[str, Any]) -> str:
    bits, interval = (_number_text(row[key], ".4f") for key in ("bits_per_dim", "interval"))
    return f"{row['level']:g}: {bits} ± {interval}"


def _round_trip(facts: dict[str, Any]) -> dict[str, str]:
    trip = facts["round_trip"]
    return {
        "trip_images": str(trip["images"]),
        "pixel_error": _number_text(trip["pixels"], ".1e"),
        "latents": str(trip["latents"]),
        "latents_finite": str(trip["latents_finite"]),
        "latent_error": _number_text(trip["latent"], ".1e"),
        "latent_median": _number_text(trip["latent_median"], ".1e"),
    }


def _run(facts: dict[str, Any]) -> dict[str, str]:
    """The flow's training, and what the card was measured with."""
    info, where = facts["training"], facts["conditions"]
    rows = {label: info[key] for key, label in _TRAINING.items() if key in info}
    if "began at" in rows:
        began = rows["began at"]
        origin = {k: began[k] for k in ("epoch", "seconds", "bits_per_dim") if k in began}
        rows["began at"] = origin or "other weights"
    if "command" in rows:
        rows["command"] = f"`{rows['command']}`"
    names = ("version", "torch", "device", "threads", "seed")
    return {
        "training": "\n".join(f"| {label} | {_cell(fact)} |" for label, fact in rows.items()),
        **{name: str(where[name]) for name in names},
    }


def _cell(fact: object) -> str:
    if isinstance(fact, Mapping):
        fact = ", ".join(f"{key} {value}" for key, value in fact.items())
    text = f"{fact:,}" if isinstance(fact, (int, float)) else " ".join(str(fact).split())
    return text.replace("|", "\\|")


def _number_text(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _range(quantiles: list[float | None]) -> str:
    low, median, high = (_number_text(value, ".2f") for value in quantiles)
    return f"{median} ({low} .. {high})"
