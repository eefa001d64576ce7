"""The figure of `refspec bench`: what every way to draft gains, by family of prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refspec.errors import UsageError
from refspec.evaluate.kinds import AGAIN, PLAIN, STOCK

try:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError:
    raise UsageError("figures need matplotlib: `pip install matplotlib`, or leave out --figure") from None

SHADES = ("#bdbdbd", "#969696", "#737373", "#525252", "#252525")  # of fixed lengths, the longer the darker
CHOSEN, TREES, OTHERS = "#0072b2", "#009e73", "#d55e00"  # adaptive, trees, llama.cpp's own driver
GREY = "#666666"


def check(path: str | os.PathLike[str]) -> Path:
    """Where a figure may be written; UsageError for a name without a format, or in a directory that is none."""
    out = Path(path)
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--figure {out}: end the name in .png, .svg or .pdf")
    if not out.parent.is_dir():
        raise UsageError(f"--figure {out}: {out.parent} is no directory")
    return out


def write(figure: Figure, out: Path) -> None:
    """Save it; UsageError when it cannot be written."""
    try:
        # no version: same record, same file
        figure.savefig(out, dpi=150, metadata={"Software": None} if out.suffix.lower() == ".png" else {})
    except OSError as error:
        raise UsageError(f"--figure {out}: cannot be written ({error.strerror or error})") from None


def by_family(m: Mapping[str, Any]) -> Figure:
    """One line per family, the easiest above: fixed lengths in grey, what is chosen every step and others in colour."""
    rows = sorted(m["families"], key=lambda f: -max(f["speedup"].values()))
    rows += [m["all"]] if len(rows) > 1 else []
    kinds = [kind for kind in m["all"]["speedup"] if kind not in (PLAIN, AGAIN)]
    figure = Figure(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    panel = figure.subplots()
    fixed = [kind for kind in kinds if kind.startswith("chain ") and not kind.endswith("lookup")]
    legend: dict[str, Line2D] = {}
    for kind in kinds:
        colour, mark, size, label = _look(kind, fixed)
        (drawn,) = panel.plot(
            [f["speedup"][kind] for f in rows], range(len(rows)), mark, color=colour, markersize=size, linestyle="none",
            label=label, fillstyle="none" if mark == "D" else "full", zorder=4 if colour == CHOSEN else 3,
        )  # fmt: skip
        legend.setdefault(label, drawn)
    panel.axvline(1, color=GREY, linewidth=0.9)
    panel.set_yticks(range(len(rows)), [f["family"] for f in rows])
    if len(rows) > 1:
        panel.axhline(len(rows) - 1.5, color=GREY, linewidth=0.5)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlabel(
        "speedup over plain decoding" + (", computed" if "machine" in m else "") + "  (left of the line: slower)"
    )
    panel.grid(alpha=0.3)
    panel.set_axisbelow(True)
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _look(kind: str, fixed: list[str]) -> tuple[str, str, float, str]:
    """(colour, mark, size, name in the legend) of a kind."""
    looked_up = " + lookup" if kind.endswith("lookup") else ""
    if kind == STOCK:
        return GREY, "|", 9, kind
    if kind == "lookup":
        return GREY, "*", 6, kind
    if kind.startswith("llama.cpp"):
        return OTHERS, "x", 6, "llama.cpp's driver " + kind.split()[1]
    if "tree" in kind:
        chosen = kind.startswith("adaptive")
        mark = ("P" if looked_up else "D") if chosen else ("^" if looked_up else "s")
        return TREES, mark, 6 if chosen else 5, ("adaptive tree" if chosen else "tree") + looked_up
    if kind.startswith("adaptive"):
        return CHOSEN, "P" if looked_up else "o", 7, kind
    length = kind.removesuffix(" + lookup")
    shade = SHADES[min(fixed.index(length) * len(SHADES) // len(fixed), len(SHADES) - 1)] if length in fixed else GREY
    return shade, "+" if looked_up else "o", 5, kind
