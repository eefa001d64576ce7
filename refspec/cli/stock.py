"""`refspec stock`: the nearest drafter stock llama.cpp can run, and what is lost with it."""

from __future__ import annotations

import json
from typing import Any

import click

from refspec.cli.group import main, note
from refspec.cli.measure import json_option, prompt_options


@main.command()
@click.argument("target", metavar="TARGET")
@click.argument("drafter", metavar="DRAFTER")
@click.option("-o", "--output", "out", required=True, metavar="GGUF", help="The file to write.")
@click.option("--outtype", default="f16", show_default=True, help="Type of the matrices: f32 f16 bf16 q8_0 q4_0.")
@prompt_options
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="How many of the prompts.")
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens per prompt.")
@click.option("--draft-max", type=click.IntRange(1, 64), default=4, show_default=True, help="Draft tokens per verify step.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads of the runs.")
@json_option
def stock(
    target: str, drafter: str, out: str, outtype: str, prompts: str | None, families: tuple[str, ...], count: int, as_json: bool, **o: Any
) -> None:
    """Write the file nearest to DRAFTER that stock llama.cpp runs (llama-server -md), with its loss of acceptance."""
    from refspec import stock as near
    from refspec.prompts import read

    texts = [p.text for p in read(prompts, families)][:count]
    made = near.make_stock(target, drafter, out, prompts=texts, outtype=outtype, progress=note, **o)
    click.echo(json.dumps(made, ensure_ascii=False) if as_json else "\n".join(near.lines(made)))
