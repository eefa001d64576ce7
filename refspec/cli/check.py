"""`refspec check`: does this drafter fit this target, by what the files say and by a short run."""

from __future__ import annotations

import json

import click

from refspec.cli.command import PATH, note, option
from refspec.cli.group import main, threads_option, tokens_option
from refspec.cli.measure import json_option


@main.command()
@click.argument("target", metavar="TARGET", type=PATH)
@click.argument("drafter", metavar="DRAFTER", type=PATH)
@option("--live/--no-live", default=True, help="Run the pair, as without this option, or only compare the files.")
@threads_option
@tokens_option(48, "At most so many tokens per prompt.")
@option("--count", type=click.IntRange(1), default=6, show_default=True, help="How many built-in prompts.")
@json_option
@click.pass_context
def check(
    ctx: click.Context, target: str, drafter: str, live: bool, threads: int | None, max_tokens: int, count: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Find out whether a drafter fits a target.

    \b
        refspec check target.gguf drafter.gguf

    By what the files say, and by a short run. Every finding has its likely cause; exit 1 on a misfit.
    """
    from refspec import named
    from refspec.evaluate import check as checking

    first = named.model(target)
    found = checking.check(
        first, named.drafter(drafter, first), live=live, threads=threads, prompts=count, max_tokens=max_tokens,
        progress=note,
    )  # fmt: skip
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(checking.lines(found)))
    ctx.exit(0 if found["fits"] else 1)
