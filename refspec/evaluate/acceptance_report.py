"""Counts of `evaluate/acceptance.py` -> the record for `--json` and the table for a terminal.

Not a measurement. Intervals are those of `evaluate/bootstrap.py`; all drafters share the resamples, so a ratio's
interval is that of a paired comparison. Every drafter has the same keys: its draft lengths as "5", and where it grows
trees their shapes as "16:4:8". A tree's twin is the chain of as many draft tokens as the tree has nodes, so that both
judge the same rows, but where a text ends. Legend: P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from refspec.evaluate.acceptance import with_twins
from refspec.evaluate.bootstrap import LEVEL, RESAMPLES, Floats, Value, number, ratios, resamples, summaries
from refspec.evaluate.drift_report import cell
from refspec.evaluate.perturb import PERTURBATIONS
from refspec.reference.tree import TreeShape

FORMAT = "refspec-acceptance-1"
Row = Mapping[str, Any]  # one prompt under one condition: family, id, turns (entries of acceptance.measure)


def record(
    found: Mapping[tuple[str, int | None], Sequence[Row]], about: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any], baseline: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The measurement as JSON: per condition and family tau, acceptance by position, and tau's ratio to the baseline.

    `by_prompt` holds what every number is made of. `about` says of each drafter, as `trees`, who grows them.
    """
    conditions = []
    keys = _keys(about, settings)
    for (perturbation, length), rows in found.items():
        families = {
            family: [r for r in rows if r["family"] == family] for family in dict.fromkeys(r["family"] for r in rows)
        }
        conditions.append({
            "perturb": perturbation, "context": length,
            "families": {f: _figures(part, keys, baseline, seed) for f, part in (families | {"all": rows}).items()},
            "by_prompt": _by_prompt(rows, keys),
        })  # fmt: skip
    return {
        "format": FORMAT, "settings": dict(settings), "resamples": RESAMPLES, "level": LEVEL, "baseline": baseline,
        "drafters": [{"name": name, **what} for name, what in about.items()], "conditions": conditions,
    }  # fmt: skip


def _keys(about: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was measured of each drafter: its chains, then its trees."""
    trees = settings.get("trees") or []
    chains = [str(k) for k in with_twins(settings["draft_max"], [TreeShape.parse(tree) for tree in trees])]
    return {name: [*chains, *(trees if what.get("trees") else [])] for name, what in about.items()}


def _twin(key: str) -> str | None:
    """The chain a tree is compared to; None for a chain."""
    return str(TreeShape.parse(key).nodes) if ":" in key else None


def _by_prompt(rows: Sequence[Row], keys: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    steps = {
        n: {k: [sum(t["counts"][n][k][0] for t in r["turns"]) for r in rows] for k in every}
        for n, every in keys.items()
    }
    return {
        "family": [r["family"] for r in rows], "id": [r["id"] for r in rows],
        "prompt_tokens": [[t["prompt_tokens"] for t in r["turns"]] for r in rows],
        "tokens": [sum(t["tokens"] for t in r["turns"]) for r in rows], "verify_steps": steps,
    }  # fmt: skip


def _figures(rows: Sequence[Row], keys: Mapping[str, Sequence[str]], baseline: str, seed: int) -> dict[str, Any]:
    """One family, or all: `drafters` by name and key, `ratio` to the baseline, `over_chain` of trees to their twins."""
    draws = resamples(len(rows), seed)
    counted = _by_prompt(rows, keys)
    tokens = np.array(counted["tokens"], np.float64)[:, None]  # [P, 1]
    enough = np.array([np.count_nonzero(tokens) > 1])

    # tau / tau: the tokens are the same, so the verify steps say it all
    def tau_ratio(steps: Floats, other: Floats) -> Value:
        return summaries(*ratios(other, steps, draws), enough)[0]

    drafters: dict[str, dict[str, Any]] = {name: {} for name in keys}
    ratio: dict[str, dict[str, Any]] = {name: {} for name in keys if name != baseline}
    over_chain: dict[str, dict[str, Any]] = {}
    for name, every in keys.items():
        for k in every:
            steps, twin = _steps(counted, name, k), _twin(k)
            judged, stood = (_summed(rows, name, k, part) for part in (1, 2))
            drafted = sum(judged) if twin is None else sum(t["counts"][name][k][3] for r in rows for t in r["turns"])
            drafters[name][k] = {
                "tau": summaries(*ratios(tokens, steps, draws), enough)[0], "verify_steps": int(steps.sum()),
                "accepted_by_position": [round(s / j, 6) for s, j in zip(stood, judged, strict=True)],
                "judged": judged, "rows_per_step": number(1 + drafted / max(steps.sum(), 1)),
            }  # fmt: skip
            if name in ratio and k in keys[baseline]:
                ratio[name][k] = tau_ratio(steps, _steps(counted, baseline, k))
            if twin is not None:
                over_chain.setdefault(name, {})[k] = tau_ratio(steps, _steps(counted, name, twin))
    mean = round(float(np.mean([t["prompt_tokens"] for r in rows for t in r["turns"]])), 1) if rows else None
    return {
        "prompts": len(rows), "turns": sum(len(r["turns"]) for r in rows), "generated_tokens": int(tokens.sum()),
        "prompt_tokens": mean, "drafters": drafters, "ratio": ratio, "over_chain": over_chain,
    }  # fmt: skip


def _steps(counted: Mapping[str, Any], name: str, k: str) -> Floats:
    return np.array(counted["verify_steps"][name][k], np.float64)[:, None]  # [P, 1]


def _summed(rows: Sequence[Row], name: str, k: str, part: int) -> list[int]:
    """Judged (1) or accepted (2) draft tokens by position, over turns and prompts."""
    counts = [turn["counts"][name][k][part] for row in rows for turn in row["turns"]]
    return [sum(column) for column in zip_longest(*counts, fillvalue=0)]


def table(measured: Mapping[str, Any]) -> list[str]:
    """For people: a block for each condition and draft length or tree, a line for each family."""
    about, trees = measured["drafters"], measured["settings"].get("trees") or []
    others = [d["name"] for d in about if d["name"] != measured["baseline"]]
    lines: list[str] = []
    for condition in measured["conditions"]:
        title = f"{condition['perturb']}: {PERTURBATIONS[condition['perturb']].about}"
        if condition["context"] is not None:
            title += f"; prompts padded to {condition['context']} tokens"
        for k in map(str, measured["settings"]["draft_max"]):
            names = [d["name"] for d in about]
            lines += [f"{title}; draft length {k}", *_block(condition["families"], names, others, k), ""]
        for k in trees:
            names = [d["name"] for d in about if d["trees"]]
            lines.append(f"{title}; trees {k} (nodes:children:depth) beside chains of {_twin(k)}")
            lines += [*_block(condition["families"], names, others, k), ""]
    lines.append("tau: tokens per model call; ±: half the bootstrap interval over prompts, paired for the ratios")
    if trees:
        lines.append("gain: tau of trees divided by that of the same drafter's chains of as many draft tokens")
        by = {code: [d["name"] for d in about if d["trees"] == code] for code in ("llama.cpp", "reference", None)}
        says = {
            "llama.cpp": "trees grown by llama.cpp", "reference": "trees and chains drafted by the reference code",
            None: "chains only",
        }  # fmt: skip
        lines.append("; ".join(f"{says[code]}: {', '.join(found)}" for code, found in by.items() if found))
    if others:
        lines.append(f"x: tau divided by that of {measured['baseline']}")
    return lines


def _at(row: Any, keys: Sequence[str]) -> Value:
    for key in keys:
        row = row[key]
    return row  # type: ignore[no-any-return]


def _block(families: Mapping[str, Any], names: Sequence[str], others: Sequence[str], k: str) -> list[str]:
    """The families' lines for one draft length or tree, and acceptance by position."""
    twin = _twin(k)
    columns: list[tuple[str, tuple[str, ...]]] = []  # heading, and where a family holds the value
    for name in names:
        columns.append((f"tau {name}", ("drafters", name, k, "tau")))
        if twin is not None:
            columns += [(f"chain {name}", ("drafters", name, twin, "tau")), (f"gain {name}", ("over_chain", name, k))]
    columns += [(f"x {name}", ("ratio", name, k)) for name in others if k in families["all"]["ratio"][name]]
    width = max(len("family"), *(len(family) for family in families))
    lines = [f"{'family':<{width}}  prompts   tokens  " + "  ".join(f"{head:>12}" for head, _ in columns)]
    for family, row in families.items():
        cells = "  ".join(f"{cell(_at(row, keys), 2):>{max(12, len(head))}}" for head, keys in columns)
        lines.append(f"{family:<{width}}  {row['prompts']:7d}  {row['generated_tokens']:7d}  {cells}")
    checked = "" if twin is None else "; tokens checked per step, of trees and of chains"
    lines.append(f"guesses kept by position in %, over all families{checked}")
    label = max(len(name) for name in names)
    for name in names:
        found = families["all"]["drafters"][name]
        shares = " ".join(f"{100 * share:3.0f}" for share in found[k]["accepted_by_position"])
        rows = "" if twin is None else f"; {found[k]['rows_per_step']:.1f} and {found[twin]['rows_per_step']:.1f}"
        lines.append(f"  {name:<{label}}  {shares}{rows}")
    return lines
