"""`refspec bench replay`:

what fixed lengths and the adaptive window would gain where steps cost so much, computed from recorded drafts.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import click

from lab.group import lab
from refspec.cli.group import model_options, note, tree_option
from refspec.cli.measure import drafting, figure_of, figure_option, json_option, prompt_options
from refspec.cli.pairs import whole_numbers
from refspec.cli.penalties import changed, penalty_options
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape

ROUNDS = 5  # of measuring the costs of this machine


@lab.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens per text.")
@click.option(
    "--draft-max",
    default="1,2,3,5,8",
    show_default=True,
    metavar="K[,K...]",
    help="Draft lengths to try; the window's longest is the last of them, 8 or more.",
)
@tree_option
@click.option(
    "--rows",
    metavar="T1,T2,...",
    help="What the target takes for 1, 2, ... rows, in any unit; without it this machine is measured.",
)
@click.option(
    "--switch",
    type=click.FloatRange(0),
    help="What a change of the number of rows costs, in tokens of plain decoding.  [default: 0 with --rows]",
)
@click.option(
    "--feed", type=click.FloatRange(0), help="The drafter's share of a step, rows it drafts left out; likewise."
)
@click.option("--draft", type=click.FloatRange(0), help="A row that it drafts; likewise.")
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
    help="Runs over the texts, each with a new window.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of that variation.")
@penalty_options
@click.option(
    "--count", type=click.IntRange(1), default=4, show_default=True, help="At most so many prompts of each family."
)
@figure_option
@json_option
def replay(
    max_tokens: int, draft_max: str, rows: str | None, noise: float, sessions: int, seed: int, prompts: str | None, families: tuple[str, ...],
    count: int, figure: str | None, as_json: bool, **o: Any,
) -> None:  # fmt: skip
    """The adaptive window beside fixed lengths on recorded drafts, in computed time: what a machine of other costs
    would gain.

    Drafts are recorded once, along plain decoding's own texts; with --tree also trees, replayed as they are and with as
    many nodes as pay. Measures nothing but, without --rows, what steps cost here.
    """
    from lab import replay as replaying
    from refspec.evaluate.acceptance import first_of_each
    from refspec.evaluate.prompts import read
    from refspec.tuning import step_costs

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
        raise UsageError("--adaptive is always one of what `bench replay` compares; leave the option out")
    machine = (
        None
        if rows is None
        else replaying.Machine(rows_of(rows, largest + 1), **{name: value or 0.0 for name, value in given.items()})
    )
    sampler = Sampler(penalties=changed(Penalties(), o))
    texts = first_of_each(read(prompts, families), count)
    draw = figure_of(figure)
    with drafting(o) as session:
        if machine is None:
            if largest > step_costs.MOST:
                named = f"--draft-max {draft_max}" if most > step_costs.MOST else f"--tree {shape}"
                raise UsageError(
                    f"{named}: here drafts of up to {step_costs.MOST} tokens are measured; name the costs of more with --rows"
                )
            note("measuring what steps cost here")
            machine = replaying.Machine.of(
                step_costs.measure(session.target, session.drafter, step_costs.text_for(session.target), ROUNDS)
            )
        with click.progressbar(length=len(texts), label="recording drafts", file=sys.stderr) as bar:
            record = replaying.record(
                session, texts, most, max_tokens=max_tokens, sampler=sampler, progress=lambda: bar.update(1)
            )
        found = replaying.measure(
            record, machine, lengths, most, sessions=sessions, noise=noise, seed=seed, shape=shape
        )
        found |= {
            "model": session.name,
            "max_tokens": max_tokens,
            "penalties": sampler.penalties.on,
            "measured": rows is None,
        }
    click.echo(json.dumps(found) if as_json else "\n".join(replaying.table(found)))
    draw(found)


def rows_of(text: str, most: int) -> tuple[float, ...]:
    """[most] times by rows, the first 1, from numbers separated by commas; what is missing goes on as the last two do.

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
