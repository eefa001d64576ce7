"""`refspec inspect`: what a file or directory is."""

from __future__ import annotations

import json

import click

from refspec.cli.command import PATH, option
from refspec.cli.group import main
from refspec.cli.measure import json_option


@main.command()
@click.argument("file", metavar="FILE|DIR", type=PATH)
@option("--target", type=PATH, metavar="PATH", help="Target of a drafter's directory, for what that leaves to it.")
@json_option
def inspect(file: str, target: str | None, as_json: bool) -> None:
    """Say what a GGUF or checkpoint directory is.

    \b
        refspec inspect drafter.gguf

    Of a drafter every normalization switch in words, of a target what it recommends.
    """
    from refspec import named
    from refspec.convert import inspect as inspector

    about = inspector.describe(named.local(file), None if target is None else named.local(target))
    click.echo(json.dumps(about, ensure_ascii=False, default=str) if as_json else "\n".join(inspector.lines(about)))
