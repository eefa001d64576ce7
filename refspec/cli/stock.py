"""`refspec stock`: the nearest drafter stock llama.cpp can run, and what is lost with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from refspec.cli.group import check_names_file, main, note, options
from refspec.cli.measure import json_option

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def stock_options(when: str = "") -> Callable[[Any], Any]:
    """The options of the measurement; `when` stands before each help text."""
    return options(
        click.option("--prompts", metavar="FILE", help=f"{when}JSONL (turns, benchmark) or one prompt a line; else the built-in 200."),
        click.option("--family", "families", multiple=True, help=f"{when}Only this `benchmark` of a JSONL file; may be repeated."),
        click.option("--count", type=click.IntRange(1), default=12, show_default=True, help=f"{when}Prompts to calibrate on, and others to measure on."),
        click.option("-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help=f"{when}Tokens per prompt."),
        click.option("--draft-max", type=click.IntRange(1, 64), default=4, show_default=True, help=f"{when}Draft tokens per verify step."),
        click.option("-t", "--threads", type=click.IntRange(1), help=f"{when}Threads of the runs."),
    )  # fmt: skip


@main.command()
@click.argument("target", metavar="TARGET")
@click.argument("drafter", metavar="DRAFTER")
@click.option("-o", "--out", "--output", "out", required=True, metavar="GGUF", help="The file to write.")
@click.option("--outtype", type=click.Choice(OUTTYPES), default="f16", show_default=True, help="Type of the matrices.")
@stock_options()
@json_option
def stock(target: str, drafter: str, out: str, outtype: str, as_json: bool, **o: Any) -> None:
    """Write the file nearest to DRAFTER that stock llama.cpp runs (llama-server -md), with its loss of acceptance.

    \b
    From a checkpoint directory, the same in one step:
        refspec convert DIR --target target.gguf --stock -o drafter.gguf
    """
    from refspec.evaluate import stock as near

    made = nearest(target, drafter, out, outtype, **o)
    click.echo(json.dumps(made, ensure_ascii=False) if as_json else "\n".join(near.lines(made)))


def nearest(
    target: str,
    drafter: str,
    out: str,
    outtype: str,
    *,
    prompts: str | None,
    families: tuple[str, ...],
    count: int,
    **o: Any,
) -> dict[str, Any]:
    """`make_stock` with what `stock_options` asked for."""
    from refspec.evaluate import stock as near
    from refspec.evaluate.prompts import halves

    check_names_file(out)
    calibration, held_out = halves(prompts, families, count)
    return near.make_stock(
        target, drafter, out, calibration=calibration, held_out=held_out, outtype=outtype, progress=note, **o
    )
