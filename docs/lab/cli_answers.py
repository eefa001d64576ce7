"""`refspec bench answers`: what a target's greedy answers are like."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from lab.group import lab
from refspec.cli.group import load, model_options
from refspec.cli.measure import json_option, prompt_options
from refspec.cli.penalties import changed, penalty_options
from refspec.reference.penalties import Penalties


@lab.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=256, show_default=True, help="Tokens per answer.")
@click.option("--count", type=click.IntRange(1), help="At most so many prompts of each family.")
@penalty_options
@json_option
def answers(
    max_tokens: int, prompts: str | None, families: tuple[str, ...], count: int | None, as_json: bool, **o: Any
) -> None:
    """How greedy answers end, repeat themselves, hold Python that parses and sums that are right, by family of prompts.

    \b
        ended     share that end by themselves, the others were cut off
        looping   share that repeat a stretch of 12 tokens word for word
        rep-4     mean over answers of 1 - distinct / all 4-grams
        Python    of the answers with a block of code, those that parse; nothing is run
        sums      of the stretches `a op b = c`, those that are right
        conclude  answers that state a result
    """
    from lab import answers as reading
    from refspec.evaluate.acceptance import first_of_each
    from refspec.evaluate.prompts import read
    from refspec.reference.sampling import Sampler

    texts = read(prompts, families)
    texts = texts if count is None else first_of_each(texts, count)
    sampler = Sampler(penalties=changed(Penalties(), o))
    with load(o) as session, click.progressbar(length=len(texts), label="answers", file=sys.stderr) as bar:
        measured = reading.measure(
            session, texts, max_tokens=max_tokens, sampler=sampler, progress=lambda: bar.update(1)
        )
    click.echo(json.dumps(measured) if as_json else "\n".join(reading.table(measured)))
