"""From drift tallies to means with intervals: the record for `--json`, the table for a terminal, a conclusion in words.

Every mean is a ratio of sums over chains, with the interval of `evaluate/bootstrap.py`. All drafters use the same
resamples, so the interval of a difference is that of a paired comparison. Legend: P prompts, B resamples, K depth,
C columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import CheckpointError
from refspec.evaluate.bootstrap import LEVEL, RESAMPLES, Floats, intervals, ratios, resamples, summaries
from refspec.evaluate.drift import FIGURES, Tally, heat_columns

FORMAT = "refspec-drift-2"  # 2: with `added`
GROWN = 1.5  # times its size at depth 1: a state that has grown
TITLES = {
    "sink": "sink", "prompt": "prompt", "verified": "verified", "chain": "chain", "chain_earlier": "of it earlier",
    "entropy": "entropy", "added": "attn. adds", "magnitude": "magnitude", "growth": "growth", "cosine": "cosine",
    "accepted": "accepted", "accepted_given_previous": "given prev.",
}  # fmt: skip
MEANINGS = (
    "sink, prompt, verified, chain: shares of the attention on row 0, the rest of the prompt, verified output, the "
    "chain's own tokens",
    "of it earlier: the chain's share without what the row gives its own draft token",
    "attn. adds: RMS of what attention adds over that of what it is added to, so how much attention matters",
    "entropy in nats; magnitude: RMS of the state handed to the next row; growth: its ratio to depth 1; cosine: to the"
    " previous state",
    "accepted: all draft tokens up to this depth are; given prev.: this one is where all before it are",
)


def differences(
    one: Sequence[Tally], other: Sequence[Tally], name: str, draws: Floats
) -> list[dict[str, float | None]]:
    """One drafter's mean minus another's at each depth of a figure, on the same prompts and so the same resamples."""
    (sums, counts), (its_sums, its_counts) = _stacked(one, name), _stacked(other, name)
    means, again = ratios(sums, counts, draws)
    its_means, its_again = ratios(its_sums, its_counts, draws)
    enough = (np.count_nonzero(counts, axis=0) > 1) & (np.count_nonzero(its_counts, axis=0) > 1)
    return summaries(means - its_means, again - its_again, enough)


def _stacked(tallies: Sequence[Tally], name: str) -> tuple[Floats, Floats]:
    return np.array([t.sums[name] for t in tallies]), np.array([t.counts[name] for t in tallies])  # [P, K] each


def record(
    found: Mapping[str, Sequence[Tally]], about: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """The measurement as JSON: settings, per drafter what it is (`about`) and every figure at every depth.

    `minus_first` holds, for each further drafter, every figure less that of the first, one entry a depth.
    """
    draws = resamples(len(next(iter(found.values()))), seed)
    first = next(iter(found))
    minus_first = {
        name: {figure: differences(tallies, found[first], figure, draws) for figure in FIGURES}
        for name, tallies in found.items()
        if name != first
    }
    drafters = [{"name": name, **about[name], **_drafter(tallies, draws)} for name, tallies in found.items()]
    return {
        "format": FORMAT, "settings": dict(settings), "resamples": RESAMPLES, "level": LEVEL, "drafters": drafters,
        "first": first, "minus_first": minus_first,
    }  # fmt: skip


def _drafter(tallies: Sequence[Tally], draws: Floats) -> dict[str, Any]:
    depth = tallies[0].depth
    figures = {name: intervals(*_stacked(tallies, name), draws) for name in FIGURES}
    chains = np.sum([t.heat_counts for t in tallies], axis=0)  # [K]
    heat = np.sum([t.heat for t in tallies], axis=0) / np.maximum(chains, 1)[:, None]  # [K, C]
    tokens, steps = (np.array([[getattr(t, name)] for t in tallies], np.float64) for name in ("tokens", "steps"))
    tau = intervals(tokens, steps, draws)[0]
    rows = [
        {"depth": j + 1, "chains": int(chains[j]), **{name: figures[name][j] for name in FIGURES}} for j in range(depth)
    ]
    return {
        "tau": tau, "tokens": sum(t.tokens for t in tallies), "verify_steps": sum(t.steps for t in tallies),
        "depths": rows,
        "heat": {"columns": heat_columns(depth), "mass": [[round(float(x), 6) for x in r] for r in heat]},
    }  # fmt: skip


def read(path: str) -> dict[str, Any]:
    """A record written by `refspec drift --json`; CheckpointError for anything else."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; name a file written by refspec drift --json") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path}: `format` is not {FORMAT!r}; name a file written by refspec drift --json")
    return found


def table(measured: Mapping[str, Any]) -> list[str]:
    """For people: per drafter one line a depth, and the interval of each mean as +- half its width."""
    lines = []
    for drafter in measured["drafters"]:
        lines += [headline(drafter), "depth  chains  " + "  ".join(f"{TITLES[name]:>13}" for name in FIGURES)]
        for row in drafter["depths"]:
            cells = "  ".join(f"{cell(row[name]):>13}" for name in FIGURES)
            lines.append(f"{row['depth']:5d}  {row['chains']:6d}  {cells}")
        lines.append("")
    return [*lines, *MEANINGS]


def conclusions(measured: Mapping[str, Any]) -> list[str]:
    """What the record says, a sentence or three for each drafter."""
    return [_conclusion(drafter) for drafter in measured["drafters"]]


def _conclusion(drafter: Mapping[str, Any]) -> str:
    rows = [row for row in drafter["depths"] if row["accepted"]["mean"] is not None]
    parts = [] if drafter["tau"]["mean"] is None else [f"{drafter['tau']['mean']:.2f} tokens per model call (tau)."]
    chained = [row for row in rows if row["depth"] > 2]  # before depth 3 there are no earlier draft tokens
    if len(chained) > 1:
        first, last = (row["chain_earlier"] for row in (chained[0], chained[-1]))
        rises = None not in (first["high"], last["low"]) and last["low"] > first["high"]
        parts.append(
            f"The attention on earlier draft tokens {'rises' if rises else 'does not clearly rise'}:"
            f" {first['mean']:.0%} at depth {chained[0]['depth']} (one token), {last['mean']:.0%} at depth"
            f" {chained[-1]['depth']} ({chained[-1]['depth'] - 2} tokens)."
        )
    if len(rows) > 1 and (growth := rows[-1]["growth"]["mean"]) is not None:
        parts.append(f"The state {'grows to' if growth > GROWN else 'stays at'} {growth:.1f} times its size.")
    if rows:
        first, last = (row["accepted"]["mean"] for row in (rows[0], rows[-1]))
        parts.append(f"The first guess is accepted in {first:.0%} of the calls, all {rows[-1]['depth']} in {last:.0%}.")
    return f"{drafter['name']}: {' '.join(parts) or 'nothing was drafted.'}"


def headline(drafter: Mapping[str, Any]) -> str:
    """Name, switches and tau of one drafter."""
    switches = f"{drafter['feedback']} feedback, {drafter['residual']} residual, feature norm {drafter['feature_norm']}"
    tau = drafter["tau"]["mean"]
    return f"{drafter['name']} ({switches})" + ("" if tau is None else f": tau {cell(drafter['tau'], 2)}")


def cell(value: Mapping[str, float | None], digits: int | None = None) -> str:
    """A mean with half the width of its interval; a dash where nothing was counted."""
    mean, low, high = value["mean"], value["low"], value["high"]
    if mean is None:
        return "-"
    digits = digits or (3 if abs(mean) < 10 else 1)
    if low is None or high is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f}±{(high - low) / 2:.{digits}f}"
