"""`refspec inflate`: a small target at a large one's cost, for benchmarks."""

from __future__ import annotations

import json

import click

from lab.group import lab
from refspec.cli.group import bytes_bar, check_names_file
from refspec.cli.measure import json_option


@lab.command()
@click.argument("target", metavar="TARGET")
@click.option("-o", "--output", "out", required=True, metavar="GGUF", help="The file to write.")
@click.option("--params", required=True, metavar="N", help="Parameters to reach, such as 300M or 1B.")
@click.option(
    "--layers", type=click.IntRange(1), help="Layers of the result; twice as many as TARGET has if not given."
)
@json_option
def inflate(target: str, out: str, params: str, layers: int | None, as_json: bool) -> None:
    """Pad TARGET with zeros and identity layers: the same function, the same drafters, a large model's memory traffic."""
    from lab import inflate as inflating
    from refspec.gguf.io import read_gguf_header

    check_names_file(out)
    wanted = inflating.parameters(params)
    read_gguf_header(target)
    with bytes_bar("bytes written") as progress:
        made = inflating.inflate(target, out, params=wanted, layers=layers, progress=progress)
    click.echo(
        json.dumps(made) if as_json else f"{made['file']}: {made['params'] / 1e6:.0f} M parameters; {made['label']}"
    )
