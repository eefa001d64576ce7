"""`python docs/lab replay`: fixed and adaptive draft lengths over recorded drafts, in computed time.

A policy is good or bad by a few percent, and a machine that others use changes by more from one minute to the next. So
the drafts of a pair are recorded once (`recorded.py`), and every way to draft runs over the record, the seconds of a
step coming from a model of the costs instead of a clock (`computed.py`). Nothing is timed but, where nobody names them,
the costs. Left out are rounding, which gives some outputs another course, and what a machine does besides: `refspec
bench` measures.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from lab.computed import Fixed, Machine, replay, replay_tree
from lab.recorded import Recorded, record
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.cli.command import Command, note
from refspec.cli.group import model_options, tree_option
from refspec.cli.measure import drafting, figure_of, figure_option, json_option, prompt_options
from refspec.cli.pairs import whole_numbers
from refspec.cli.penalties import changed, penalty_options
from refspec.errors import UsageError
from refspec.evaluate.acceptance import first_of_each
from refspec.evaluate.kinds import PLAIN
from refspec.evaluate.prompts import read
from refspec.evaluate.speed import family_of
from refspec.evaluate.speed_report import summary, table_of
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape
from refspec.tuning import step_costs

ROUNDS = 5  # of measuring the costs of this machine


def measure(
    outputs: Sequence[Recorded],
    machine: Machine,
    lengths: Sequence[int],
    most: int,
    *,
    sessions: int,
    noise: float,
    seed: int = 0,
    shape: TreeShape | None = None,
) -> dict[str, Any]:
    """Every fixed length and the adaptive policy over the outputs, times in tokens of plain decoding.

    With a `shape`, which the recorded trees have, also those trees as they are, and as many of their nodes as a policy
    chooses. The outputs come in their order, `sessions` times, each time with a policy that knows the costs and nothing
    else; times are the means.
    """
    chains: dict[str, Callable[[], Any]] = {PLAIN: lambda: Fixed(0)}
    chains |= {f"chain {k}": partial(Fixed, k) for k in lengths}
    fixed = list(chains)
    chains["adaptive"] = lambda: ChainPolicy(most, machine.costs())
    trees: dict[str, Callable[[], Any]] = {}
    if shape is not None:
        trees[f"tree {shape}"] = lambda: Fixed(shape.nodes)
        trees[f"adaptive tree {shape}"] = lambda: TreePolicy(shape.nodes, machine.costs())
    kinds = chains | trees
    rows: list[dict[str, Any]] = [
        {
            "family": output.family,
            "tokens": len(output.tokens),
            "seconds": dict.fromkeys(kinds, 0.0),
            "steps": dict.fromkeys(kinds, (0, 0)),
            "other_texts": dict.fromkeys(kinds, 0),
        }
        for output in outputs
    ]
    for session in range(sessions):
        for name, made in kinds.items():
            policy, dice = made(), random.Random(f"{seed} {session} {name}")
            run = replay_tree if name in trees else replay
            for output, row in zip(outputs, rows, strict=True):
                spent, steps = run(output, policy, machine, dice, noise)
                row["seconds"][name] += spent / sessions
                decided, before = row["steps"][name]
                row["steps"][name] = (decided + len(output.tokens), before + steps)
    families = list(dict.fromkeys(row["family"] for row in rows))
    return {
        "draft_max": list(lengths),
        "most": most,
        "prompts": len(rows),
        "sessions": sessions,
        "noise": noise,
        "seed": seed,
        "machine": asdict(machine),
        "tree": None if shape is None else str(shape),
        "families": [family_of(name, [row for row in rows if row["family"] == name], fixed) for name in families],
        "all": family_of("all", rows, fixed),
    }


TERMS = {
    "switch": "change of size",
    "feed": "feeding back",
    "draft": "drafted token",
    "own": "refspec itself",
    "own_plain": "in plain steps",
}


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` in lines."""
    machine = m["machine"]
    costs = " ".join(f"{t:.2f}" for t in machine["rows"])
    terms = ", ".join(f"{words} {machine[name]:.3f}" for name, words in TERMS.items())
    penalties = ", under penalties" if m["penalties"] else ""
    return [
        f"{m['model']}: {m['prompts']} prompts of up to {m['max_tokens']} tokens{penalties}, replayed "
        f"{m['sessions']} times on these costs; speedup over plain decoding",
        *table_of(m, rates=False),
        *summary(m),
        *([f"trees:    {m['tree']}, atree as many of their nodes as pay"] if m["tree"] else []),
        f"costs:    in tokens of plain decoding, 1, 2, ... tokens together {costs}; {terms}; "
        f"a step varies by {100 * m['noise']:.0f} %",
        f"heads:    draft lengths; computed times, nothing here was measured{' but the costs' * m['measured']}",
    ]


@click.command("replay", cls=Command)
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens per output.")
@click.option(
    "--draft-max",
    default="1,2,3,5,8",
    show_default=True,
    metavar="K[,K...]",
    help="Draft lengths to try; the adaptive policy's longest is the last of them, 8 or more.",
)
@tree_option
@click.option(
    "--rows",
    metavar="T1,T2,...",
    help="What the target takes for 1, 2, ... tokens together, in any unit; without it this machine is measured.",
)
@click.option(
    "--switch",
    type=click.FloatRange(0),
    help="What a change of the batch size costs, in tokens of plain decoding.  [default: 0 with --rows]",
)
@click.option("--feed", type=click.FloatRange(0), help="The drafter's share of a step, drafting left out; likewise.")
@click.option("--draft", type=click.FloatRange(0), help="A drafted token; likewise.")
@click.option(
    "--noise",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="By how much a step's time varies (log-normal).",
)
@click.option(
    "--sessions",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Runs over the outputs, each with a new policy.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of that variation.")
@penalty_options
@click.option(
    "--count", type=click.IntRange(1), default=4, show_default=True, help="At most so many prompts of each family."
)
@figure_option
@json_option
def command(
    max_tokens: int,
    draft_max: str,
    rows: str | None,
    noise: float,
    sessions: int,
    seed: int,
    prompts: str | None,
    families: tuple[str, ...],
    count: int,
    figure: str | None,
    as_json: bool,
    **o: Any,
) -> None:
    """The adaptive draft length beside fixed ones on recorded drafts: what a machine of other costs would gain.

    Drafts are recorded once, along plain decoding's own outputs; with --tree also trees, replayed as they are and with
    as many nodes as pay. Without --rows the costs of this machine are measured; nothing else is.
    """
    lengths = whole_numbers(draft_max, "--draft-max")
    if not lengths:
        raise UsageError(f"--draft-max {draft_max!r}: give at least one length, such as 1,3,5")
    shape = None if o["tree"] is None else TreeShape.parse(o["tree"])
    most = max(step_costs.MOST, *lengths)
    largest = max(most, shape.nodes if shape else 0)
    given = {name: o.pop(name) for name in ("switch", "feed", "draft")}
    if rows is None and any(value is not None for value in given.values()):
        raise UsageError("--switch, --feed and --draft go with --rows; without it this machine is measured")
    if o["adaptive"] is not None:
        raise UsageError("--adaptive is always one of what `replay` compares; leave the option out")
    machine = None
    if rows is not None:
        machine = Machine(rows_of(rows, largest + 1), **{name: value or 0.0 for name, value in given.items()})
    elif largest > step_costs.MOST:
        named = f"--draft-max {draft_max}" if most > step_costs.MOST else f"--tree {shape}"
        raise UsageError(
            f"{named}: here drafts of up to {step_costs.MOST} tokens are measured; name the costs of more with --rows"
        )
    sampler = Sampler(penalties=changed(Penalties(), o))
    asked = first_of_each(read(prompts, families), count)
    draw = figure_of(figure)
    with drafting(o) as session:
        if machine is None:
            note("measuring what steps cost here")
            text = step_costs.text_for(session.target)
            machine = Machine.of(step_costs.measure(session.target, session.drafter, text, ROUNDS))
        with click.progressbar(length=len(asked), label="recording drafts", file=sys.stderr) as bar:
            outputs = record(
                session, asked, most, max_tokens=max_tokens, sampler=sampler, progress=lambda: bar.update(1)
            )
        found = measure(outputs, machine, lengths, most, sessions=sessions, noise=noise, seed=seed, shape=shape)
        found["model"] = session.name
    found |= {"max_tokens": max_tokens, "penalties": sampler.penalties.on, "measured": rows is None}
    click.echo(json.dumps(found) if as_json else "\n".join(table(found)))
    draw(found)


def rows_of(text: str, most: int) -> tuple[float, ...]:
    """[most] times by tokens together, the first 1, from numbers with commas; missing ones go on as the last two do.

    UsageError for others.
    """
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if len(times) < 2 or not all(math.isfinite(t) and t > 0 for t in times):
        raise UsageError(f"--rows {text!r}: give at least two times above 0, such as 1,1.34,1.63,1.98")
    while len(times) < most:
        times.append(times[-1] + max(times[-1] - times[-2], 0.0))
    return tuple(t / times[0] for t in times[:most])
