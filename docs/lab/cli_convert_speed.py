"""`refspec bench convert`: what a conversion costs beside copying the file."""

from __future__ import annotations

import json

import click

from lab.group import lab
from refspec.cli.group import OUTTYPES, note
from refspec.cli.measure import json_option


@lab.command("convert-speed")
@click.option(
    "--size",
    type=click.FloatRange(0.001),
    default=2.0,
    show_default=True,
    help="Gigabytes of the synthetic checkpoint.",
)
@click.option("--outtype", type=click.Choice(OUTTYPES), default="f16", show_default=True, help="Type of the matrices.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of either kind, in turn.")
@click.option("--dir", "folder", metavar="DIR", help="Where to write; about three times the size must be free.")
@json_option
@click.pass_context
def bench_convert(
    ctx: click.Context, size: float, outtype: str, repeat: int, folder: str | None, as_json: bool
) -> None:
    """Memory and speed of `refspec convert` beside copying the file; exit 1 below the bars."""
    from lab import convert_speed as converting

    measured = converting.measure(size=size * 1e9, outtype=outtype, repeat=repeat, folder=folder, progress=note)
    click.echo(json.dumps(measured) if as_json else "\n".join(converting.table(measured)))
    ctx.exit(0 if measured["within"] else 1)
