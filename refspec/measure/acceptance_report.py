"""Counts of `measure/acceptance.py` -> the record for `--json` and the table for a terminal.

Not a measurement. Intervals are those of `measure/bootstrap.py`; all drafters share the resamples, so a ratio's interval is that of a paired
comparison. Legend: P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refspec.measure.bootstrap import LEVEL, RESAMPLES, Floats, ratios, resamples, summaries
from refspec.measure.drift_report import cell
from refspec.measure.perturb import PERTURBATIONS

FORMAT = "refspec-acceptance-1"
Row = Mapping[str, Any]  # one prompt under one condition: family, id, turns (entries of acceptance.measure)


def record(
    found: Mapping[tuple[str, int | None], Sequence[Row]], about: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any],
    baseline: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The measurement as JSON: per condition and family tau, acceptance by position, and tau's ratio to the baseline.

    `by_prompt` holds what every number is made of: tokens, and verify steps of each drafter at each draft length.
    """
    conditions = []
    for (perturbation, length), rows in found.items():
        families = {family: [r for r in rows if r["family"] == family] for family in dict.fromkeys(r["family"] for r in rows)}
        conditions.append({
            "perturb": perturbation, "context": length,
            "families": {f: _figures(part, about, settings["draft_max"], baseline, seed) for f, part in (families | {"all": rows}).items()},
            "by_prompt": _by_prompt(rows, about, settings["draft_max"]),
        })  # fmt: skip
    return {
        "format": FORMAT, "settings": dict(settings), "resamples": RESAMPLES, "level": LEVEL, "baseline": baseline,
        "drafters": [{"name": name, **what} for name, what in about.items()], "conditions": conditions,
    }  # fmt: skip


def _by_prompt(rows: Sequence[Row], names: Sequence[str] | Mapping[str, Any], lengths: Sequence[int]) -> dict[str, Any]:
    steps = {n: {str(k): [sum(t["counts"][n][str(k)][0] for t in r["turns"]) for r in rows] for k in lengths} for n in names}
    return {
        "family": [r["family"] for r in rows], "id": [r["id"] for r in rows],
        "prompt_tokens": [[t["prompt_tokens"] for t in r["turns"]] for r in rows],
        "tokens": [sum(t["tokens"] for t in r["turns"]) for r in rows], "verify_steps": steps,
    }  # fmt: skip


def _figures(rows: Sequence[Row], names: Mapping[str, Any], lengths: Sequence[int], baseline: str, seed: int) -> dict[str, Any]:
    """One family, or all: `drafters` by name and draft length, `ratio` to the baseline likewise."""
    draws = resamples(len(rows), seed)
    counted = _by_prompt(rows, names, lengths)
    tokens = np.array(counted["tokens"], np.float64)[:, None]  # [P, 1]
    enough = np.array([np.count_nonzero(tokens) > 1])
    base = {k: _steps(counted, baseline, k) for k in lengths}
    drafters: dict[str, dict[str, Any]] = {}
    ratio: dict[str, dict[str, Any]] = {}
    for name in names:
        drafters[name], ratio[name] = {}, {}
        for k in lengths:
            steps = _steps(counted, name, k)
            judged, stood = (_summed(rows, name, k, part) for part in (1, 2))
            drafters[name][str(k)] = {
                "tau": summaries(*ratios(tokens, steps, draws), enough)[0], "verify_steps": int(steps.sum()),
                "accepted_by_position": [round(s / j, 6) for s, j in zip(stood, judged, strict=True)],
                "judged": judged,
            }  # fmt: skip
            if name != baseline:  # tau / tau: the tokens are the same, so the verify steps say it all
                ratio[name][str(k)] = summaries(*ratios(base[k], steps, draws), enough)[0]
    del ratio[baseline]
    return {
        "prompts": len(rows), "turns": sum(len(r["turns"]) for r in rows), "generated_tokens": int(tokens.sum()),
        "prompt_tokens": round(float(np.mean([t["prompt_tokens"] for r in rows for t in r["turns"]])), 1) if rows else None,
        "drafters": drafters, "ratio": ratio,
    }  # fmt: skip


def _steps(counted: Mapping[str, Any], name: str, k: int) -> Floats:
    return np.array(counted["verify_steps"][name][str(k)], np.float64)[:, None]  # [P, 1]


def _summed(rows: Sequence[Row], name: str, k: int, part: int) -> list[int]:
    """Judged (1) or accepted (2) draft tokens by position, over turns and prompts."""
    out = [0] * k
    for row in rows:
        for turn in row["turns"]:
            for i, count in enumerate(turn["counts"][name][str(k)][part]):
                out[i] += count
    while out and not _judged_at(rows, name, k, len(out) - 1):
        out.pop()  # no verify step was so long
    return out


def _judged_at(rows: Sequence[Row], name: str, k: int, i: int) -> bool:
    return any(i < len(t["counts"][name][str(k)][1]) and t["counts"][name][str(k)][1][i] for r in rows for t in r["turns"])


def table(measured: Mapping[str, Any]) -> list[str]:
    """For people: a block for each condition and draft length, a line for each family."""
    names = [d["name"] for d in measured["drafters"]]
    others = [name for name in names if name != measured["baseline"]]
    lines: list[str] = []
    for condition in measured["conditions"]:
        families = condition["families"]
        width = max(len("family"), *(len(family) for family in families))
        title = f"{condition['perturb']}: {PERTURBATIONS[condition['perturb']].about}"
        if condition["context"] is not None:
            title += f"; prompts padded to {condition['context']} tokens"
        for k in map(str, measured["settings"]["draft_max"]):
            heads = [f"tau {name}" for name in names] + [f"x {name}" for name in others]
            lines += [f"{title}; draft length {k}", f"{'family':<{width}}  prompts   tokens  " + "  ".join(f"{h:>12}" for h in heads)]
            for family, row in families.items():
                values = [row["drafters"][name][k]["tau"] for name in names] + [row["ratio"][name][k] for name in others]
                cells = "  ".join(f"{cell(value, 2):>{max(12, len(head))}}" for value, head in zip(values, heads, strict=True))
                lines.append(f"{family:<{width}}  {row['prompts']:7d}  {row['generated_tokens']:7d}  {cells}")
            lines.append("accepted by position, over all families")
            label = max(len(name) for name in names)
            for name in names:
                shares = " ".join(f"{share:.2f}" for share in families["all"]["drafters"][name][k]["accepted_by_position"])
                lines.append(f"  {name:<{label}}  {shares}")
            lines.append("")
    lines.append("tau: tokens per verify step; ±: half the bootstrap interval over prompts, paired for the ratios")
    if others:
        lines.append(f"x: tau divided by that of {measured['baseline']}")
    return lines
