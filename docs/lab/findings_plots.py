"""Figures of docs/findings.md, drawn from the derived numbers of `docs/lab/findings_numbers.py` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import UsageError

try:
    from matplotlib.figure import Figure
except ImportError:
    raise UsageError("figures need matplotlib: `pip install matplotlib`") from None

SIDES = {"normalized": ("#0072b2", "o", "normalized (EAGLE 3.1)"), "plain": ("#d55e00", "s", "plain (EAGLE-3)")}
SHADES = ("#bdd7e7", "#6baed6", "#2171b5", "#08306b", "#000000")
GREY = "#666666"


def drift(found: Mapping[str, Any]) -> Figure | None:
    """Magnitude, growth, attention on own tokens, its weight and acceptance by depth; bands span the seeds."""
    if not found["drift"]:
        return None
    figure = Figure(figsize=(17, 3.9), layout="constrained")
    panels = figure.subplots(1, 5)
    wanted = (
        ("magnitude", "size of the state fed forward", "root mean square"),
        ("growth", "its growth", "size / size at depth 1"),
        ("chain", "attention on the chain's own draft tokens", "share of attention"),
        ("added", "what attention adds to the state", "size / size of what it is added to"),
        ("accepted_given_previous", "accepted, given all before it are", "share of draft tokens"),
    )
    for panel, (name, title, unit) in zip(panels, wanted, strict=True):
        for role, (colour, mark, label) in SIDES.items():
            mean, low, high = (_column(found["drift"][role][name], key) for key in ("mean", "low", "high"))
            depths = range(1, len(mean) + 1)
            panel.plot(depths, mean, f"{mark}-", color=colour, label=label, markersize=4)
            panel.fill_between(depths, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.set_xticks(list(depths))
        panel.set(xlabel="chain depth (draft token)", ylabel=unit)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(0)
        panel.grid(alpha=0.3)
    panels[1].axhline(1, color=GREY, linewidth=0.8)
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        "Does the state grow, and does attention leave the prompt?  (line: mean over seeds, band: all seeds)"
    )
    return figure


def ratios(found: Mapping[str, Any]) -> Figure | None:
    """Tau normalized / plain with intervals, beside what the paper reports."""
    rows: list[tuple[str, dict[str, Any], float | None]] = []
    titles = {"standard": "benchmarks", "sampled": "sampled output", "perturb": "template", "context": "context"}
    for name, by_length in sorted(found["ratios"].items(), key=lambda item: [*titles, item[0]].index(item[0])):
        for group in next(iter(by_length.values())):
            label = f"{titles.get(name, name)}: {group}" + (
                " foreign ones" if (name, group) == ("perturb", "all") else ""
            )
            paper = found["paper"].get(name) if group == "all" else None
            rows.append((label, {k: groups[group] for k, groups in by_length.items()}, paper))
    if not rows:
        return None
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(rows)), layout="constrained")
    panel = figure.subplots()
    lengths = list(dict.fromkeys(k for _, values, _ in rows for k in values))
    for i, k in enumerate(lengths):
        at = [
            (y + 0.6 * ((i + 0.5) / len(lengths) - 0.5), values[k])
            for y, (_, values, _) in enumerate(rows)
            if k in values
        ]
        known = [(y, v) for y, v in at if v["mean"] is not None]
        mean, low, high = (
            np.array([v[key] if v[key] is not None else v["mean"] for _, v in known]) for key in ("mean", "low", "high")
        )
        colour = SHADES[min(i + 1, len(SHADES) - 1)]
        panel.errorbar(
            mean,
            [y for y, _ in known],
            xerr=[mean - low, high - mean],
            fmt="o",
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=f"draft length {k}",
        )
    for y, (_, _, paper) in enumerate(rows):
        if paper is not None:
            panel.plot(
                paper,
                y,
                marker="D",
                color="#d55e00",
                markersize=7,
                linestyle="none",
                label="the paper" if y == 0 else None,
            )
    panel.axvline(1, color=GREY, linewidth=0.8)
    panel.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    panel.invert_yaxis()
    panel.set_xlabel("tau normalized / tau plain  (right of the line: the norms help)")
    panel.grid(axis="x", alpha=0.3)
    panel.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle("What the norms gain: acceptance length, normalized against plain")
    return figure


def depth(found: Mapping[str, Any]) -> Figure | None:
    """Tau by draft length for each training depth, a panel a side."""
    if not found["depth"]:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (role, (_, _, label)) in zip(panels, SIDES.items(), strict=True):
        for i, (trained, sides) in enumerate(found["depth"].items()):
            if role not in sides:
                continue
            lengths = [int(k) for k in sides[role]]
            mean, low, high = (_column(list(sides[role].values()), key) for key in ("mean", "low", "high"))
            colour = SHADES[min(i + 1, len(SHADES) - 1)]
            panel.plot(lengths, mean, "o-", color=colour, label=f"trained to depth {trained}", markersize=4)
            panel.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_xticks(lengths)
        panel.set(xlabel="draft length", title=label)
        panel.set_ylim(1)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("tau: tokens per verify step")
    figure.suptitle("Do drafters go deeper than they were trained?")
    return figure


def ablation(found: Mapping[str, Any]) -> Figure | None:
    """Each variant alone: growth of the state, attention on own tokens, tau over the plain drafter's."""
    variants = found["ablation"]
    if not variants:
        return None
    lengths = list(next(iter(variants.values()))["tau"])
    wanted: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("growth of the state to the last depth", lambda v: v["growth"]),
        ("attention on own tokens there", lambda v: v["chain"]),
    ]
    if lengths:
        k = lengths[min(1, len(lengths) - 1)]
        wanted.append((f"tau / plain drafter's, draft length {k}", lambda v: v["ratio"].get(k)))
    figure = Figure(figsize=(4 * len(wanted), 1.4 + 0.34 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(wanted), sharey=True)
    for panel, (title, of) in zip(panels, wanted, strict=True):
        for y, entry in enumerate(variants.values()):
            value = of(entry)
            if value is None or value["mean"] is None:
                continue
            colour = (
                "#009e73"
                if entry["switches"]["attention_reg"]
                else "#0072b2"
                if entry["switches"]["feedback"] == "post_norm"
                else "#d55e00"
            )
            panel.plot(
                [value["low"] or value["mean"], value["high"] or value["mean"]], [y, y], color=colour, linewidth=2
            )
            panel.plot(value["mean"], y, "o", color=colour, markersize=5)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        panel.axvline(1, color=GREY, linewidth=0.8) if panel is not panels[1] else None
    panels[0].set_yticks(range(len(variants)), [name.replace("_", " ") for name in variants])
    panels[0].invert_yaxis()
    figure.suptitle(
        "Each switch alone  (orange: pre-norm feedback, blue: post-norm feedback, green: pre-norm with the attention "
        "regularizer)"
    )
    return figure


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "drift": drift,
    "ratios": ratios,
    "depth": depth,
    "ablation": ablation,
}


def write(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """A PNG for each figure that has something to show; returns their paths."""
    written = []
    for name, draw in FIGURES.items():
        figure = draw(found)
        if figure is not None:
            written.append(folder / f"findings-{name}.png")
            figure.savefig(written[-1], dpi=110, metadata={"Software": None})  # no version: same record, same file
    return written


def _column(values: Sequence[Mapping[str, Any]], key: str) -> Any:
    """[K] one value each; NaN where there is none."""
    return np.array([value[key] for value in values], dtype=np.float64)
