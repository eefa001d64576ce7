"""What steps cost after a long prompt: plain decoding and speculation by the length of the text before them.

Not a benchmark of text: acceptance is counted once, on short prompts, and held, so that what grows with the context is
cost alone (what long prompts do to acceptance is `bench acceptance --context`). With costs c(r) of r rows after n
tokens, and the drafter's per cycle,

    seconds per token of draft length k  =  (c(k+1) + feed + draft (k - 1)) / tau(k),    plain decoding: c(1)

as `evaluate/tune.py` has it. Attention's part of a row grows with n, weights are read once for all rows: so rows come
to cost more beside one another the longer the text is, and shorter drafts become better.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from refspec.evaluate import tune
from refspec.evaluate.speed import ForeignLoad, foreign_line
from refspec.session import Session
from refspec.tuning import step_costs

ROUNDS = 3
SHOWN = (2, 4, 8)  # rows of the table's cost curve


def measure(
    session: Session, lengths: Sequence[int], *, rounds: int = ROUNDS, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Costs of a session with a drafter after each of `lengths` tokens: {accepted, lengths: [{after, target, feed,
    draft, ...}]}.

    Of each: `plain_seconds` and `by_length` (draft length 1, 2, ...: seconds per token), `best` (a draft length, 0 is
    plain decoding), `best_seconds`, `kept_seconds` (the draft length that is best after the first of `lengths`, kept),
    and the `growth` of plain, best and kept since the first. RefspecError where a length does not fit into the context.
    """
    load = ForeignLoad()
    texts = {n: step_costs.text_for(session.target, n) for n in lengths}
    seen = tune.acceptance(session)
    out: list[dict[str, Any]] = []
    for n, text in texts.items():
        costs = step_costs.measure(session.target, session.drafter, text, rounds)
        plain = costs["target"][1] + seen.own_plain
        found = tune.verdict(costs["target"], costs["feed"], costs["draft"], seen)
        seconds, best = [plain, *(plain / speedup for speedup in found["by_length"])], found["best"]
        kept = out[0]["best"] if out else best
        times = {"plain_seconds": plain, "best_seconds": seconds[best], "kept_seconds": seconds[kept]}
        growth = {
            name.removesuffix("_seconds"): value / (out[0] if out else times)[name] for name, value in times.items()
        }
        out.append(
            {**costs, "after": n, "by_length": seconds[1:], "best": best, "kept": kept, **times, "growth": growth}
        )
        progress()
    return {
        "model": session.name, "accepted": seen.accepted, "own": seen.own, "own_plain": seen.own_plain, "lengths": out, "inflated": session.target.metadata.get("refspec.inflated"),
        "foreign_cores": load.cores(), "cores": os.cpu_count(),
    }  # fmt: skip


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` as lines of text."""
    kept = m["lengths"][0]["kept"]
    out = [
        f"{m['model']}: milliseconds per token after a prompt, acceptance held at that of short prompts; x: growth since the first line",
        f"{'after':>8}{'plain':>10}{'x':>7}{f'draft {kept}':>12}{'x':>7}{'best length':>14}{'':>9}{'x':>7}{'speedup':>9}"
        + "".join(f"{f'{r} rows':>8}" for r in SHOWN) + "  feed + draft 2",
    ]  # fmt: skip
    for n in m["lengths"]:
        rows, plain = {int(r): t for r, t in n["target"].items()}, n["plain_seconds"]
        line = f"{n['after']:8d}{plain * 1e3:10.2f}{n['growth']['plain']:7.2f}{n['kept_seconds'] * 1e3:12.2f}{n['growth']['kept']:7.2f}"
        line += f"{n['best'] or 'plain':>14}{n['best_seconds'] * 1e3:9.2f}{n['growth']['best']:7.2f}{plain / n['best_seconds']:7.2f} x"
        out.append(
            line + "".join(f"{rows[r] / rows[1]:8.2f}" for r in SHOWN) + f"{(n['feed'] + n['draft']) / rows[1]:16.2f}"
        )
    out.append(
        "rows: cost of verifying so many together, one token = 1; feed + draft 2: the drafter's part of a step that drafts two tokens"
    )
    out.append("accepted by position  " + " ".join(f"{share:.2f}" for share in m["accepted"]))
    first, last = m["lengths"][0], m["lengths"][-1]
    if last is not first:
        more = {name: (last[f"{name}_seconds"] - first[f"{name}_seconds"]) * 1e3 for name in ("plain", "best")}
        out.append(
            f"From {first['after']} to {last['after']} tokens: plain decoding {more['plain']:+.2f} ms a token ({last['growth']['plain']:.2f} times), "
            f"speculation {more['best']:+.2f} ms ({last['growth']['best']:.2f} times); its gain goes from "
            f"{first['plain_seconds'] / first['best_seconds']:.2f} x to {last['plain_seconds'] / last['best_seconds']:.2f} x."
        )
    if m["inflated"]:
        out.append(f"target: {m['inflated']}")
    return out + foreign_line(m)
