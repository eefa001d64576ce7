"""What `refspec tune` found, in words. Not a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refspec.evaluate.speed import FOREIGN_LIMIT


def settings(chosen: Mapping[str, Any]) -> str:
    """A setting in one line."""
    parts = []
    if "threads" in chosen:
        parts.append(
            f"threads {chosen['threads']} for one token, {chosen.get('threads_batch', chosen['threads'])} for several"
        )
    if "flash_attn" in chosen:
        parts.append(f"flash attention {chosen['flash_attn']}")
    if "kv_type" in chosen:
        parts.append(f"{chosen['kv_type']} cache")
    if "repack" in chosen:
        parts.append(
            "weights in panels"
            if chosen.get("panels")
            else "weights repacked"
            if chosen["repack"]
            else "weights as in the file"
        )
    if chosen.get("pair_rows"):
        parts.append("single rows in pairs")
    if "draft_max" in chosen:
        parts.append(f"draft length {chosen['draft_max']}")
    return ", ".join(parts)


def layout(form: Mapping[str, Any]) -> str:
    """How a form holds the weights."""
    return "panels" if form["panels"] else "repacked" if form["repack"] else "as stored"


def table(record: Mapping[str, Any]) -> list[str]:
    """Every setting tried with its costs and prediction, then the verdict."""
    tried, accepted = record["settings"], record["accepted"]
    sizes = sorted(int(r) for r in tried[0]["target"])
    where = f" after {record['after']} tokens" if "after" in record else ""
    lines = [
        f"cost of verifying rows together{where}, one token of the same setting = 1",
        f"{'flash':6}{'cache':6}{'weights':10}{'threads':>8}{'us/token':>10}"
        + "".join(f"{r:6d}" for r in sizes)
        + f"{'switch':>8}{'predicted':>11}",
    ]
    for s in tried:
        rows = {int(r): t for r, t in s["target"].items()}
        lines.append(
            f"{s['flash_attn']:6}{s['kv_type']:6}{layout(s):10}{s['threads']:8d}{rows[1] * 1e6:10.0f}"
            + "".join(f"{rows[r] / rows[1]:6.2f}" for r in sizes)
            + f"{s['switch'] / rows[1]:8.2f}"
            + (f"{s['speedup']:9.2f} x" if s["best"] else f"{'plain':>11}")
        )
    lines += [f"refused: {line}" for line in record["refused"]]
    if accepted:
        lines.append("accepted by position  " + " ".join(f"{share:.2f}" for share in accepted))
        lines.append("predicted by length   " + " ".join(f"{x:.2f}" for x in record["predicted"]))
    lines.append(f"chosen: {settings(record['chosen'])}")
    if record.get("paired"):
        lines.append(
            f"two rows cost less than one here: run in pairs, single rows make plain decoding {record['paired']:.2f}x as fast as llama.cpp's"
        )
    lines.append(verdict(record))
    foreign = record["foreign_cores"]
    if foreign is not None and foreign > FOREIGN_LIMIT:
        lines.append(
            f"Other processes used {foreign:.1f} of {record['cores']} cores meanwhile: repeat it when the machine is idle."
        )
    lines.append(f"stored in {record['file']}")
    return lines


def verdict(record: Mapping[str, Any]) -> str:
    """One line: will it pay here."""
    if not record["accepted"]:
        return "no drafter was named (-d): these are the costs of the target alone"
    if record["speedup"] > 1:
        return f"it pays: {record['speedup']:.2f}x plain decoding predicted at draft length {record['chosen']['draft_max']}"
    return f"it does not pay here: every draft length is predicted below plain decoding (best {max(record['predicted']):.2f}x); use --no-spec"
