"""What `refspec tune` found, in words. Not a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refspec.evaluate.speed import FOREIGN_LIMIT
from refspec.tuning import store


def table(record: Mapping[str, Any]) -> list[str]:
    """Every setting tried with its costs and prediction, then the verdict."""
    tried, accepted = record["settings"], record["accepted"]
    sizes = sorted(int(r) for r in tried[0]["target"])
    where = f" after {record['after']} tokens" if "after" in record else ""
    lines = [
        f"cost of verifying tokens together{where}, one token of the same setting = 1",
        f"{'flash':6}{'cache':6}{'matmul':10}{'threads':>8}{'us/token':>10}"
        + "".join(f"{r:6d}" for r in sizes)
        + f"{'switch':>8}{'predicted':>11}",
    ]
    for s in tried:
        rows = {int(r): t for r, t in s["target"].items()}
        lines.append(
            f"{s['flash_attn']:6}{s['kv_type']:6}{s['matmul']:10}{s['threads']:8d}{rows[1] * 1e6:10.0f}"
            + "".join(f"{rows[r] / rows[1]:6.2f}" for r in sizes)
            + f"{s['switch'] / rows[1]:8.2f}"
            + (f"{s['speedup']:9.2f} x" if s["best"] else f"{'plain':>11}")
        )
    lines += [f"refused: {line}" for line in record["refused"]]
    if accepted:
        lines.append("guesses kept by position      " + " ".join(f"{share:4.0%}" for share in accepted))
        lines.append("predicted by draft length     " + " ".join(f"{x:.2f}" for x in record["predicted"]))
    lines.append(f"chosen: {store.described(record['chosen'])}")
    if record.get("paired"):
        lines.append(
            "two tokens cost less than one here: run in pairs, single tokens make plain decoding "
            f"{record['paired']:.2f}x as fast as llama.cpp's"
        )
    lines.append(verdict(record))
    foreign = record["foreign_cores"]
    if foreign is not None and foreign > FOREIGN_LIMIT:
        used = f"{foreign:.1f} of {record['cores']} cores"
        lines.append(f"other programs used {used} meanwhile; repeat this on an idle machine")
    lines.append(f"stored in {record['file']}")
    return lines


def verdict(record: Mapping[str, Any]) -> str:
    """One line: will it pay here."""
    if not record["accepted"]:
        rows = {int(r): t for r, t in record["costs"]["target"].items()}
        return f"no verdict without a drafter (-d); checking 4 tokens costs {rows[4] / rows[1]:.2f} of one"
    if record["speedup"] > 1:
        length = record["chosen"]["draft_max"]
        return f"it pays: {record['speedup']:.2f}x plain decoding predicted at draft length {length}"
    best = max(record["predicted"])
    why = f"no draft length is predicted to beat plain decoding (best {best:.2f}x)"
    return f"it does not pay here: {why}; use --no-spec"
