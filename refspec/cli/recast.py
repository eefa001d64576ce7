"""`refspec recast`: the same model with other weight types."""

from __future__ import annotations

import json

import click

from refspec.cli.command import PATH, option
from refspec.cli.group import OUTTYPES, bytes_bar, check_names_file, main, output_option
from refspec.cli.measure import json_option


@main.command()
@click.argument("file", metavar="GGUF", type=PATH)
@output_option("GGUF", "The file to write; it appears when it is complete.")
@option("--outtype", type=click.Choice(OUTTYPES), required=True, help="Type of the matrices; vectors stay F32.")
@json_option
def recast(file: str, out: str, outtype: str, as_json: bool) -> None:
    """Copy a GGUF with its matrices in another type.

    \b
        refspec recast target.gguf --outtype q4_0 -o target-q4_0.gguf

    Targets and drafters alike. Start from a type that rounds nothing of it (F16, BF16, F32) if there is one: what Q8_0
    has lost does not come back.
    """
    from refspec import named
    from refspec.convert import inspect as inspector
    from refspec.gguf import recast as recasting
    from refspec.gguf.io import read_gguf_header

    check_names_file(out)
    info = read_gguf_header(named.local(file))
    with bytes_bar("bytes written") as progress:
        written = recasting.write_as(info, out, outtype, progress)
    made = inspector.describe(written)
    record = {
        "file": str(written), "bytes": made["bytes"], "bytes_before": info.file_size,
        "tensors": made["weights"]["tensors"],
    }  # fmt: skip
    kinds = ", ".join(f"{n} {kind}" for kind, n in record["tensors"].items())
    said = f"{written}: {made['bytes'] / 1e6:.1f} MB instead of {info.file_size / 1e6:.1f} ({kinds} tensors)"
    click.echo(json.dumps(record) if as_json else said)
