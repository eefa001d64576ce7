"""`refspec tune`: measure once what decoding costs here, and keep the best setting for `generate`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from refspec.cli.group import main
from refspec.cli.measure import json_option


@main.command()
@click.option("-m", "--model", metavar="GGUF", help="Target model; without it the embedded pair.")
@click.option("-d", "--drafter", metavar="GGUF", help="Its drafter: the verdict says whether it pays.")
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=click.IntRange(0),
    default=0,
    help="Context in tokens; 0 is the model's own, at most 8192.",
)
@click.option("-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, help="Layers on the GPU, -1 for all.")
@click.option("-t", "--threads", type=click.IntRange(1), help="The most threads to try; every processor if not given.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Rounds of every cost curve; more is steadier.",
)
@click.option(
    "--after",
    type=click.IntRange(8),
    metavar="N",
    help="Measure after N tokens of context, for long prompts; 128 if not given.",
)
@json_option
def tune(model: str | None, drafter: str | None, as_json: bool, **how: Any) -> None:
    """Will speculation pay here? Cost curves over threads, flash attention, cache type and repacked weights;

    the best is kept.
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
