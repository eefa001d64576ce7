"""`refspec bench context`: does speculation still pay after a long prompt, and with which draft length."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from lab.group import lab
from refspec.cli.group import model_options
from refspec.cli.measure import drafting, json_option
from refspec.cli.pairs import whole_numbers
from refspec.errors import UsageError


@lab.command()
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
def context(after: str, rounds: int, as_json: bool, **o: Any) -> None:
    """What a token costs after prompts of several lengths, plain and drafted, acceptance held: do shorter drafts become
    better?

    Give -c for lengths beyond the model's own context, and -fa: flash attention changes most with the length.
    """
    from lab import context
    from refspec.tuning.step_costs import MOST, room_in

    lengths = whole_numbers(after, "--after")
    if not lengths or lengths[0] < 8:
        raise UsageError(f"--after {after!r}: give lengths of at least 8 tokens, such as 512,4000")
    with drafting(o | {"draft_max": MOST}) as session:
        room_in(session.target.n_ctx, lengths[-1])  # before the bar, so that an error is one line
        with click.progressbar(length=len(lengths), label="lengths", file=sys.stderr) as bar:
            measured = context.measure(session, lengths, rounds=rounds, progress=lambda: bar.update(1))
    measured["flash_attn"] = o["flash_attn"]
    click.echo(json.dumps(measured) if as_json else "\n".join(context.table(measured)))
