"""Figures and the HTML page of `refspec drift`, drawn from its record alone: the JSON is enough to draw them again.

The only file that imports matplotlib; without pyplot, so nothing global changes. Bands are the record's intervals.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import UsageError
from refspec.evaluate.drift_report import MEANINGS, TITLES, cell, conclusions, headline

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
except ImportError:
    raise UsageError(
        "figures need matplotlib: .venv/bin/pip install -e '.[plot]' in a checkout, or leave out -o"
    ) from None

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody
MASSES = {
    "sink": ("first row (sink)", "#444444"), "prompt": ("rest of the prompt", "#56b4e9"),
    "verified": ("verified output", "#009e73"), "chain": ("the chain's own draft tokens", "#d55e00"),
}  # fmt: skip
DEPTH = "chain depth (1: the first draft token)"
Record = Mapping[str, Any]


def heat(measured: Record) -> Figure:
    """Attention by depth (rows) and position relative to the chain (columns), one panel a drafter, one colour scale."""
    drafters = measured["drafters"]
    figure = Figure(figsize=(11, 0.8 + 3.8 * len(drafters)), layout="constrained")
    panels = figure.subplots(len(drafters), 1, squeeze=False)[:, 0]
    for panel, drafter in zip(panels, drafters, strict=True):
        columns, mass = drafter["heat"]["columns"], np.array(drafter["heat"]["mass"])  # [K, C]
        depth, start = len(mass), len(columns) - len(mass) + 1  # first column of the chain
        for j in range(depth):
            mass[j, start + j :] = np.nan  # rows that do not exist yet
        panel.set_facecolor("#dddddd")
        image = panel.imshow(mass, cmap="viridis", vmin=0, vmax=0.5, aspect="auto")
        for j, i in zip(*np.nonzero(np.isfinite(mass)), strict=True):
            colour = "black" if mass[j, i] > 0.33 else "white"
            panel.text(i, j, f"{100 * mass[j, i]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        for edge, colour, width in ((0.5, "white", 3), (1.5, "white", 3), (start - 0.5, "#d55e00", 4)):
            panel.axvline(edge, color=colour, linewidth=width)
        for end, side, words in (
            (start - 0.6, "right", "output the target has verified"),
            (start - 0.4, "left", "the chain's own draft tokens"),
        ):
            above = panel.get_xaxis_transform()  # x of the data, y of the axes
            panel.text(end, 1.01, words, transform=above, ha=side, va="bottom", fontsize=8, color="#d55e00")
        words = "last cell of each line:\nthe row's own token"
        panel.text(0.99, 0.95, words, transform=panel.transAxes, ha="right", va="top", fontsize=8)
        panel.set_xticks(range(len(columns)), ["sink\n(row 0)", "all\nearlier", *columns[2:]])
        panel.set_yticks(range(depth), range(1, depth + 1))
        panel.set_ylabel("chain depth: guesses\n1st, 2nd, ... draft token")
        panel.set_title(headline(drafter), loc="left", fontsize=10, pad=18)
    panels[-1].set_xlabel(
        "position looked at  (-8 to -1: last verified rows, -1 starts the chain;  +1, ...: draft tokens)"
    )
    figure.colorbar(image, ax=list(panels), label="share of attention (cells: %)", extend="max")
    figure.suptitle("Where each row of the speculation chain looks, % of its attention (mean over heads and chains)")
    return figure


def mass(measured: Record) -> Figure:
    """The four shares stacked by depth, one panel a drafter; numbers above the bars, clear of the intervals."""
    drafters = measured["drafters"]
    figure, panels = _row(
        len(drafters), "Attention by chain depth: where orange grows, it drifts to what nobody has verified", width=4.6
    )
    for panel, drafter in zip(panels, drafters, strict=True):
        depths = [row["depth"] for row in drafter["depths"]]
        below = np.zeros(len(depths))
        for name, (label, colour) in MASSES.items():
            values = _column(drafter, name, "mean")
            panel.bar(depths, values, bottom=below, width=0.85, color=colour, label=label)
            below = below + np.nan_to_num(values)
        own, low, high = (_column(drafter, "chain", key) for key in ("mean", "low", "high"))
        bars = [high - own, own - low]
        panel.errorbar(depths, 1 - own, yerr=bars, fmt="none", ecolor="black", capsize=2, linewidth=1)
        for depth, share in zip(depths, own, strict=True):
            if np.isfinite(share):
                panel.text(depth, 1.01, f"{100 * share:.0f}%", ha="center", va="bottom", fontsize=8)
        panel.set(xlabel=DEPTH, ylim=(0, 1.08), xticks=depths, yticks=np.arange(0, 1.1, 0.2))
        panel.set_title(_label(drafter))
    panels[0].set_ylabel("share of attention")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def drift(measured: Record) -> Figure:
    """Attention on the chain's own tokens, on the prompt, and its entropy: the drafters in one panel each."""
    title = "Does attention drift from the prompt to the chain's own draft tokens?  (bands: intervals over prompts)"
    share = "share of attention"
    figure, panels = _lines(measured, title, 3.6, [
        ("chain", "on draft tokens, its own included\n(rising: drift)", share),
        ("chain_earlier", "on draft tokens before its own\n(rising: drift)", share),
        ("prompt", "on the prompt, without row 0\n(falling: drift)", share),
        ("entropy", "how spread it is\n(low: on few positions)", "entropy in nats, mean over heads"),
    ])  # fmt: skip
    for panel in panels[:3]:
        panel.set_ylim(0)
    return figure


def state(measured: Record) -> Figure:
    """Magnitude, growth and direction of the state handed from row to row, and what attention adds to it."""
    sizes = np.concatenate([_column(drafter, "magnitude", "mean") for drafter in measured["drafters"]])
    spread = np.nanmax(sizes) / np.nanmin(sizes) if np.nanmin(sizes) > 0 else 1.0
    log = spread > 10  # a linear scale would flatten the smaller one
    figure, panels = _lines(measured, "Does the state handed from row to row keep its size?", 3.6, [
        ("magnitude", "magnitude of the state" + ", log scale" * bool(log), "root mean square"),
        ("growth", "its growth (1: keeps its size)", "magnitude / magnitude at depth 1"),
        ("cosine", "its direction (1: does not turn)", "cosine to the state one depth before"),
        ("added", "what attention adds to it\n(falling: it is drowned)", "size / size of what it is added to"),
    ])  # fmt: skip
    for panel in (panels[1], panels[3]) if log else (panels[0], panels[1], panels[3]):
        panel.set_ylim(0)
    if log:  # a short axis may hold a single power of ten: label 2 and 5 between them, too
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 100 else (1,)))
        panels[0].yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[1].axhline(1, color="grey", linewidth=0.8, zorder=0)
    panels[2].set_ylim(top=1.02)
    return figure


def acceptance(measured: Record) -> Figure:
    """The share of chains accepted up to a depth, and of draft tokens accepted where all before them are."""
    figure, panels = _lines(measured, "How deep does the target follow the draft?", 4.0, [
        ("accepted", "chains accepted up to this depth", "share of verify steps"),
        ("accepted_given_previous", "accepted, given all before it are", "share of draft tokens"),
    ], tau=True)  # fmt: skip
    for panel in panels:
        panel.set_ylim(0, 1.02)
    return figure


FIGURES: dict[str, tuple[Callable[[Record], Figure], str]] = {
    "heat": (
        heat,
        "Each line is one row of the chain: depth 1 is the last row made from the target's states and predicts the "
        "first draft token, each further line is chained to the one above. The last cell of each line is the row on "
        "its own token, which is no drift; what the other cells right of the line gain at the cost of those left of it "
        "is.",
    ),
    "mass": (
        mass,
        "The same attention in four parts that sum to one; bars in black are intervals of the orange part. "
        "Positions differ in number: at depth j the chain holds j - 1 draft tokens of its own.",
    ),
    "drift": (
        drift,
        "The parts that matter, with intervals. The first panel steps up at depth 2 because from there a row's own"
        " token is a "
        "draft token; the second leaves that out. Rising there and falling on the prompt is attention drift.",
    ),
    "state": (
        state,
        "Without a norm in the feedback each row adds to the state before it, and the state can grow with depth; "
        "with one it keeps its size. A state that hardly turns (cosine near 1) says little new, "
        "and where it grows, what attention adds weighs less, wherever attention looks.",
    ),
    "acceptance": (
        acceptance,
        "What drift costs: depths beyond those trained on are where the curves part, if they do. "
        "Right, few chains reach large depths, so intervals widen.",
    ),
}


def write(measured: Record, folder: Path) -> list[Path]:
    """drift.json, a PNG for each figure and drift.html, which needs no other file; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "drift.json"]
    written[0].write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    for name, (draw, _) in FIGURES.items():
        written.append(folder / f"{name}.png")
        draw(measured).savefig(written[-1], dpi=110, metadata={"Software": None})  # no version: same record, same file
    written.append(folder / "drift.html")
    written[-1].write_text(page(measured, {name: (folder / f"{name}.png").read_bytes() for name in FIGURES}), "utf-8")
    return written


def page(measured: Record, images: Mapping[str, bytes]) -> str:
    """One HTML document: the conclusion in words, figures as data URIs, then every number."""
    settings = measured["settings"]
    about = (
        f"{settings['prompts']} prompts ({settings['prompt_file']}), {settings['max_tokens']} tokens of "
        f"{settings['target']} each, temperature {settings['temp']:g}; bands: {measured['level']:.0%} bootstrap "
        "intervals over prompts"
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        "<title>refspec drift</title><style>"
        "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}img{max-width:100%}"
        "table{border-collapse:collapse;font-size:11px;margin-bottom:2em}"
        "td,th{padding:2px 5px;text-align:right;white-space:nowrap}"
        "tr:nth-child(even){background:#f3f3f3}figure{margin:0 0 2em}.wide{overflow-x:auto}</style></head><body>",
        "<h1>Attention drift by chain depth</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in conclusions(measured)),
        f"<p>{html.escape(about)}.</p>",
    ]
    for name, (_, caption) in FIGURES.items():
        data = base64.b64encode(images[name]).decode()
        alt = html.escape(caption.split(".")[0], quote=True)
        image = f"<img alt='{alt}' src='data:image/png;base64,{data}'>"
        parts.append(f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>")
    for drafter in measured["drafters"]:
        heads = "".join(f"<th>{html.escape(title)}</th>" for title in ("depth", "chains", *TITLES.values()))
        parts.append(f"<h2>{html.escape(headline(drafter))}</h2>")
        parts.append(f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>")
        for row in drafter["depths"]:
            cells = "".join(f"<td>{cell(row[name])}</td>" for name in TITLES)
            parts.append(f"<tr><td>{row['depth']}</td><td>{row['chains']}</td>{cells}</tr>")
        parts.append("</tbody></table></div>")
    return "".join([*parts, *(f"<p>{html.escape(line)}.</p>" for line in MEANINGS), "</body></html>\n"])


def _row(count: int, title: str, width: float) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(max(width * count, 6), 4.2), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _label(drafter: Record) -> str:
    return f"{drafter['name']} ({drafter['feedback'].replace('_', '-')} feedback)"


def _column(drafter: Record, name: str, key: str) -> Any:
    """[K] one value a depth; NaN where the record has none."""
    return np.array([row[name][key] for row in drafter["depths"]], dtype=np.float64)


def _lines(
    measured: Record, title: str, width: float, wanted: Sequence[tuple[str, str, str]], *, tau: bool = False
) -> tuple[Figure, Sequence[Any]]:
    """A panel for each (figure of the record, title, unit), in it a line with its band for each drafter."""
    figure, panels = _row(len(wanted), title, width)
    for panel, (name, about, unit) in zip(panels, wanted, strict=True):
        for i, drafter in enumerate(measured["drafters"]):
            depths = [row["depth"] for row in drafter["depths"]]
            mean, low, high = (_column(drafter, name, key) for key in ("mean", "low", "high"))
            colour, style = COLOURS[i % len(COLOURS)], "os^Dv<"[i % 6]
            known = tau and drafter["tau"]["mean"] is not None
            label = _label(drafter) + (f": tau {cell(drafter['tau'], 2)}" if known else "")
            panel.plot(depths, mean, f"{style}-", color=colour, label=label, markersize=4)
            panel.fill_between(depths, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_xticks(depths)
        panel.set(xlabel=DEPTH, ylabel=unit)
        panel.set_title(about, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    return figure, panels
