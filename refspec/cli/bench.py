"""`refspec bench`: what every way to draft gains on this machine."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from refspec.cli.command import DRAFTING, CommandWithMore, option
from refspec.cli.group import draft_max_option, main, model_options, tokens_option, tree_option
from refspec.cli.measure import drafting, figure_of, figure_option, json_option, prompt_options, rival_of, rival_option
from refspec.cli.pairs import whole_numbers
from refspec.cli.penalties import changed, penalty_options
from refspec.errors import UsageError
from refspec.evaluate.prompts import read
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler


@main.group(cls=CommandWithMore)
@model_options
@prompt_options
@option("--count", type=click.IntRange(1), default=6, show_default=True, help="At most so many prompts of each family.")
@tokens_option(128, "At most so many tokens per run.")
@option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind per prompt.")
@draft_max_option(
    "Draft lengths to measure, one or several; the session's own without it.", default=None, metavar="K[,K...]"
)
@option(
    "--kinds", metavar="KIND[,KIND...]", section=DRAFTING,
    help="What is measured beside plain decoding: chain, adaptive, tree (with --tree), lookup. Without it chain, "
    "adaptive, and what --tree and --lookup ask for.",
)  # fmt: skip
@tree_option
@option(
    "--costs", is_flag=True, help="Also what a step costs, and the speedups forecast from it; for one length always."
)
@figure_option
@json_option
@penalty_options
@rival_option
@click.pass_context
def bench(
    ctx: click.Context, max_tokens: int, draft_max: str | None, kinds: str | None, repeat: int, prompts: str | None,
    families: tuple[str, ...], count: int, costs: bool, rival: str | None, figure: str | None, as_json: bool, **o: Any,
) -> None:  # fmt: skip
    """Measure plain decoding and every way to draft in turn.

    \b
        refspec bench -m target.gguf -d drafter.gguf
    Which draft length is the fastest, for each family of prompts:
        refspec bench -m target.gguf -d drafter.gguf --draft-max 1,2,3,5,8 --prompts prompts.jsonl

    With --lookup, or lookup among --kinds, each kind is also measured with guesses from the text so far.
    """
    if ctx.invoked_subcommand is not None:
        return
    from refspec import named
    from refspec.evaluate import speed, speed_report
    from refspec.evaluate.acceptance import first_of_each
    from refspec.evaluate.kinds import default_kinds
    from refspec.session import DRAFT_MAX

    lengths = whole_numbers(draft_max, "--draft-max")
    if draft_max is not None and not lengths:
        raise UsageError(f"--draft-max {draft_max!r}: give at least one length, such as 1,3,5")
    if o["adaptive"] is not None:
        raise UsageError("--adaptive is one of the kinds `bench` compares; leave the option out, or see --kinds")
    sampler = Sampler(penalties=changed(Penalties(), o))
    texts = first_of_each(read(prompts, families), count)
    trained = named.pair(o["model"], o["drafter"]).drafter is not None  # else lookup is the drafter
    chosen = kinds.split(",") if kinds else None
    lookup = bool(o["lookup"]) or "lookup" in (chosen or ())
    o["lookup"] = lookup and not trained
    draw = figure_of(figure)
    with drafting(o) as session:
        if not lengths:
            lengths = [session.draft_max if session.tree is None else DRAFT_MAX]
        if chosen is None:
            chosen = default_kinds(session) + ["lookup"] * (lookup and trained)
        program = rival_of(rival, session, [p.text for p in texts], max_tokens, o)
        with click.progressbar(length=len(texts), label="prompts", file=sys.stderr) as bar:
            measured = speed.measure(
                session, texts, lengths, chosen, max_tokens=max_tokens, repeat=repeat, costs=costs or len(lengths) == 1,
                progress=lambda: bar.update(1), rival=program, sampler=sampler,
            )  # fmt: skip
    click.echo(json.dumps(measured) if as_json else "\n".join(speed_report.table(measured)))
    draw(measured)


@bench.command("grammar")
@model_options
@tokens_option(128, "At most so many tokens of the output that is timed.")
@option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each way; the fastest counts.")
@option("--only", type=click.Choice(["laws", "model", "tables", "speed"]), help="One part of it.")
@json_option
def bench_grammar(max_tokens: int, repeat: int, only: str | None, as_json: bool, **o: Any) -> None:
    """How far outputs within a grammar are from what is meant, by --fidelity, and how fast they come.

    \b
        refspec bench grammar -m target.gguf --lookup
        refspec bench grammar --only laws

    What is meant is the model given that its whole output is valid. The distance is total variation, by enumeration:
    0 is the same, 1 nothing in common.
    """
    from refspec.evaluate import grammar, grammar_report

    measured: dict[str, Any] = {}
    with click.progressbar(length=0, label="grammars", file=sys.stderr) as bar:
        if only in (None, "laws"):
            measured["made_up"] = grammar.made_up(lambda: bar.update(1))
        if only != "laws":
            with drafting(o) as session:
                if only in (None, "model"):
                    measured["distances"] = grammar.distances(session, lambda: bar.update(1))
                if only in (None, "tables"):
                    measured["tables"] = grammar.tables(session)
                if only in (None, "speed"):
                    settings = {"max_tokens": max_tokens, "repeat": repeat}
                    measured["speeds"] = grammar.speeds(session, **settings, progress=lambda: bar.update(1))
    click.echo(json.dumps(measured) if as_json else "\n".join(grammar_report.table(measured)))
