"""`refspec check`: does this drafter fit this target, by what the files say and by a short run."""

from __future__ import annotations

import json

import click

from refspec.cli.group import main, note
from refspec.cli.measure import json_option


@main.command()
@click.argument("target", metavar="TARGET")
@click.argument("drafter", metavar="DRAFTER")
@click.option("--live/--no-live", default=True, show_default=True, help="Run the pair, or only compare the files.")
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads of the run.")
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=48, show_default=True, help="Tokens per prompt.")
@click.option("--count", type=click.IntRange(1), default=6, show_default=True, help="How many built-in prompts.")
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    target: str,
    drafter: str,
    live: bool,
    threads: int | None,
    max_tokens: int,
    count: int,
    as_json: bool,
) -> None:
    """Does DRAFTER fit TARGET (GGUF files)? Findings with their likely causes; exit 1 on a misfit."""
    from refspec.evaluate import check as checking

    found = checking.check(
        target, drafter, live=live, threads=threads, prompts=count, max_tokens=max_tokens, progress=note
    )
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(checking.lines(found)))
    ctx.exit(0 if found["fits"] else 1)
