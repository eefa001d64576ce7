"""`python docs/lab context`: what a token costs after a long prompt, for plain decoding and for speculation.

Acceptance is counted once, on short prompts, and held, so that only cost grows with the context (what long prompts do
to acceptance is `refspec acceptance --context`). With costs c(r) of r tokens together after n tokens of context, and
the drafter's per step,

    seconds per token of draft length k  =  (c(k+1) + feed + draft (k - 1)) / tau(k),    plain decoding: c(1)

as in `evaluate/tune.py`. Weights are read once for all tokens of a step, attention is computed for each and grows with
n. So several tokens cost more beside one after a longer prompt, and shorter drafts become better.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from refspec.cli.command import Command
from refspec.cli.group import model_options
from refspec.cli.measure import drafting, json_option
from refspec.cli.pairs import whole_numbers
from refspec.errors import UsageError
from refspec.evaluate import tune
from refspec.evaluate.speed import ForeignLoad, foreign_line
from refspec.session import Session
from refspec.tuning import step_costs

ROUNDS = 3
SHOWN = (2, 4, 8)  # tokens together, of the table's cost curve


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
        "model": session.name,
        "accepted": seen.accepted,
        "own": seen.own,
        "own_plain": seen.own_plain,
        "lengths": out,
        "inflated": session.target.metadata.get("refspec.inflated"),
        "foreign_cores": load.cores(),
        "cores": os.cpu_count(),
    }


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` in lines."""
    kept = m["lengths"][0]["kept"]
    out = [
        f"{m['model']}: milliseconds per token after a prompt, acceptance held at that of short prompts; x: growth "
        "since the first line",
        f"{'after':>8}{'plain':>10}{'x':>7}{f'draft {kept}':>12}{'x':>7}"
        + f"{'best length':>14}{'':>9}{'x':>7}{'speedup':>9}"
        + "".join(f"{f'{r} tok.':>8}" for r in SHOWN)
        + "  feed + draft 2",
    ]
    for n in m["lengths"]:
        rows, plain = {int(r): t for r, t in n["target"].items()}, n["plain_seconds"]
        kept_ms, best_ms, grew = n["kept_seconds"] * 1e3, n["best_seconds"] * 1e3, n["growth"]
        line = f"{n['after']:8d}{plain * 1e3:10.2f}{grew['plain']:7.2f}{kept_ms:12.2f}{grew['kept']:7.2f}"
        line += f"{n['best'] or 'plain':>14}{best_ms:9.2f}{grew['best']:7.2f}{plain / n['best_seconds']:7.2f} x"
        out.append(
            line + "".join(f"{rows[r] / rows[1]:8.2f}" for r in SHOWN) + f"{(n['feed'] + n['draft']) / rows[1]:16.2f}"
        )
    out.append(
        "tok.: cost of verifying so many together, one token = 1; feed + draft 2: the drafter's part of a step that "
        "drafts two tokens"
    )
    out.append("accepted by position  " + " ".join(f"{share:.2f}" for share in m["accepted"]))
    first, last = m["lengths"][0], m["lengths"][-1]
    if last is not first:
        more = {name: (last[f"{name}_seconds"] - first[f"{name}_seconds"]) * 1e3 for name in ("plain", "best")}
        out.append(
            f"From {first['after']} to {last['after']} tokens: plain decoding {more['plain']:+.2f} ms a token "
            f"({last['growth']['plain']:.2f} times), speculation {more['best']:+.2f} ms ({last['growth']['best']:.2f} "
            f"times); its gain goes from {first['plain_seconds'] / first['best_seconds']:.2f} x to "
            f"{last['plain_seconds'] / last['best_seconds']:.2f} x."
        )
    if m["inflated"]:
        out.append(f"target: {m['inflated']}")
    return out + foreign_line(m)


@click.command("context", cls=Command)
@model_options
@click.option(
    "--after", default="128,512,900", show_default=True, metavar="N[,N...]", help="Tokens of context to measure after."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Rounds of every cost curve; more is steadier.",
)
@json_option
def command(after: str, rounds: int, as_json: bool, **o: Any) -> None:
    """What a token costs after prompts of several lengths, plain and drafted, acceptance held: do shorter drafts become
    better?

    Give -c for lengths beyond the model's own context, and -fa: flash attention changes most with the length.
    """
    lengths = whole_numbers(after, "--after")
    if not lengths or lengths[0] < 8:
        raise UsageError(f"--after {after!r}: give lengths of at least 8 tokens, such as 512,4000")
    with drafting(o | {"draft_max": step_costs.MOST}) as session:
        step_costs.room_in(session.target.n_ctx, lengths[-1])  # before the bar, so that an error is one line
        with click.progressbar(length=len(lengths), label="lengths", file=sys.stderr) as bar:
            measured = measure(session, lengths, rounds=rounds, progress=lambda: bar.update(1))
    measured["flash_attn"] = o["flash_attn"]
    click.echo(json.dumps(measured) if as_json else "\n".join(table(measured)))
