"""`refspec models`: which models are on this machine."""

from __future__ import annotations

import json

import click

from refspec.cli.group import main
from refspec.cli.measure import json_option


@main.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that are here, by the names -m and -d take.

    \b
        refspec models

    The embedded pair, smollm2 where it is installed, and what was fetched from the Hugging Face hub.
    """
    from refspec.named import listing

    records = listing.listed()
    click.echo(json.dumps(records) if as_json else "\n".join(listing.table(records)))
