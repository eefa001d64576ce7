"""`refspec tune`: measure once what decoding costs here, and keep the best setting for `generate`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from refspec.cli.command import PATH, option
from refspec.cli.group import ctx_option, gpu_option, main, model_option
from refspec.cli.measure import json_option


@main.command()
@model_option
@option(
    "-d", "--drafter", type=PATH, metavar="MODEL", also=("-md", "--spec-draft-model"),
    help="Its drafter: the verdict says whether it pays.",
)  # fmt: skip
@ctx_option
@option("-t", "--threads", type=click.IntRange(1), help="The most threads to try; every processor if not given.")
@gpu_option
@option(
    "--after", type=click.IntRange(8), help="Measure after N tokens of context, for long prompts; 128 if not given."
)
@option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True,
    help="Rounds of every cost curve; more is steadier.",
)  # fmt: skip
@json_option
def tune(model: str | None, drafter: str | None, as_json: bool, **how: Any) -> None:
    """Measure whether guessing pays here, and keep the settings.

    \b
        refspec tune -m target.gguf -d drafter.gguf

    Tries threads, flash attention, cache types and who multiplies with the weights; prints what checking several tokens
    at once costs, and the speedup that follows. `generate` and `bench` take the best setting over.
    """
    from refspec.evaluate import tune as measuring
    from refspec.evaluate import tune_report

    measuring.check(model, drafter, how["n_ctx"], how["after"])  # before the bar, so that an error is one line
    with click.progressbar(length=1, label="settings", file=sys.stderr, item_show_func=lambda what: what) as bar:

        def show(done: int, total: int, what: str) -> None:
            bar.length = total
            bar.update(done - bar.pos, what)

        record = measuring.run(model, drafter, progress=show, **how)
    click.echo(json.dumps(record) if as_json else "\n".join(tune_report.table(record)))
