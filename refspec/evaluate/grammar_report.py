"""What `refspec bench grammar` measured, as tables."""

from __future__ import annotations

from typing import Any


def table(measured: dict[str, Any]) -> list[str]:
    """The lines of a report."""
    lines = []
    for title, key in (("made-up laws", "made_up"), ("this model", "distances")):
        if not measured.get(key):
            continue
        kinds = list(measured[key][0]["tv"])
        lines += [f"total variation to the model given a valid output, {title}:", ""]
        lines.append("| language | outputs | law | " + " | ".join(kinds) + " |")
        lines.append("| --- " * (3 + len(kinds)) + "|")
        for row in measured[key]:
            tv = " | ".join(_small(row["tv"][kind]) for kind in kinds)
            lines.append(f"| {row['language']} | {row['outputs']} | {row['law']} | {tv} |")
        lines.append("")
        for row in measured[key]:
            if better := row.get("better_than_local"):
                share = ", ".join(f"{kind} {100 * better[kind]:.0f} %" for kind in ("onestep", "lookahead:2", "beam:1"))
                lines.append(f"{row['language']}, {row['law']}: nearer than local under {share} of the laws")
            if row.get("bound"):
                bounds = ", ".join(f"{kind} at most {_small(value)}" for kind, value in row["bound"].items())
                lines.append(f"{row['language']}: {row['rows']} rows of the model; {bounds}")
        lines.append("")
        if likeliest := measured[key][-1].get("likeliest"):
            language = measured[key][-1]["language"]
            lines += [f"the likeliest of {language}, by what is meant (exact) and by a mask (local):", ""]
            lines += ["| output | exact | local | onestep | beam:4 |", "| --- " * 5 + "|"]
            for row in likeliest:
                shares = " | ".join(f"{row[kind]:.3f}" for kind in ("exact", "local", "onestep", "beam:4"))
                lines.append(f"| `{row['text']}` | {shares} |")
            lines.append("")
    if measured.get("tables"):
        kinds = list(measured["tables"][0]["seconds"])
        lines.append("| vocabulary | states | allowed in the widest | " + " | ".join(kinds) + " |")
        lines.append("| --- " * (3 + len(kinds)) + "|")
        for row in measured["tables"]:
            times = " | ".join(f"{1000 * row['seconds'][kind]:.3g} ms" for kind in kinds)
            lines.append(f"| {row['vocabulary']} | {row['states']} | {row['allowed']} | {times} |")
        lines.append("")
    if measured.get("speeds"):
        lines += ["| one output of JSON | tokens | calls | seconds | tokens/s | outside the model |"]
        lines.append("| --- " * 6 + "|")
        for row in measured["speeds"]:
            outside = "" if "sampler" in row["way"] else f"{1000 * row['other'] / row['calls']:.2f} ms a call"
            lines.append(
                f"| {row['way']} | {row['tokens']} | {row['calls']} | {row['seconds']:.2f} | "
                f"{row['tokens_per_second']:.1f} | {outside} |"
            )
        lines += ["", *(f"{row['way']}: {row['text']}" for row in measured["speeds"][1:])]
    return lines


def _small(x: float) -> str:
    return "0" if x == 0 else f"{x:.4f}" if x >= 1e-3 else f"{x:.0e}"
