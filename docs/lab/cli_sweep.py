"""`refspec bench sweep`: which draft length is the fastest, and whether the adaptive window finds it."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from lab.group import lab
from refspec.cli.group import model_options, tree_option
from refspec.cli.measure import (
    drafting,
    figure_of,
    figure_option,
    json_option,
    prompt_options,
    repeat_option,
    rival_of,
    rival_option,
)
from refspec.cli.pairs import whole_numbers
from refspec.cli.penalties import changed, penalty_options
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler


@lab.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens per run.")
@click.option("--draft-max", default="1,2,3,5,8", show_default=True, metavar="K[,K...]", help="Draft lengths to try.")
@tree_option
@penalty_options
@repeat_option
@click.option(
    "--count", type=click.IntRange(1), default=4, show_default=True, help="At most so many prompts of each family."
)
@rival_option
@figure_option
@json_option
def sweep(
    max_tokens: int, draft_max: str, repeat: int, prompts: str | None, families: tuple[str, ...], count: int, rival: str | None,
    figure: str | None, as_json: bool, **o: Any,
) -> None:  # fmt: skip
    """Every fixed draft length and the adaptive window beside plain decoding, by family of prompts.

    With --lookup each also with drafts from the text where the drafter is unsure.
    """
    from lab import sweep as sweeping
    from refspec.evaluate.acceptance import first_of_each
    from refspec.evaluate.prompts import read

    lengths = whole_numbers(draft_max, "--draft-max")
    if not lengths:
        raise UsageError(f"--draft-max {draft_max!r}: give at least one length, such as 1,3,5")
    if o["adaptive"] is not None:
        raise UsageError("--adaptive is always one of what `bench sweep` compares; leave the option out")
    sampler = Sampler(penalties=changed(Penalties(), o))
    texts = first_of_each(read(prompts, families), count)
    both = o["lookup"] and (o["drafter"] is not None or o["model"] is None)  # else lookup is the drafter
    o["lookup"] = bool(o["lookup"]) and not both
    draw = figure_of(figure)
    with drafting(o) as session:
        program = rival_of(rival, session, [p.text for p in texts], max_tokens, o)
        with click.progressbar(length=len(texts), label="prompts", file=sys.stderr) as bar:
            measured = sweeping.measure(
                session,
                texts,
                lengths,
                max_tokens=max_tokens,
                repeat=repeat,
                lookup=both,
                progress=lambda: bar.update(1),
                rival=program,
                sampler=sampler,
            )
    click.echo(json.dumps(measured) if as_json else "\n".join(sweeping.table(measured)))
    draw(measured)
