"""The group that the laboratory's commands belong to: failures are one line, as in `refspec`."""

import click

from refspec.cli.group import Refspec


@click.group(cls=Refspec, context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """What makes the pages under docs/ and the embedded pair."""
