"""`refspec verify`: check on this machine that speculation changes nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from refspec.cli.command import SAMPLING, option
from refspec.cli.group import draft_max_option, main, model_options, tokens_option, tree_option
from refspec.cli.measure import drafting, json_option, prompt_options
from refspec.cli.penalties import changed, penalty_options
from refspec.reference.penalties import Penalties


@main.command()
@model_options
@prompt_options
@option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many prompts.")
@tokens_option(128, "At most so many tokens per prompt.")
@draft_max_option("Guesses per step.", type=click.IntRange(1, 64))
@tree_option
@option(
    "--temp", "temps", type=float, multiple=True, default=(0.0, 0.8), show_default=True, section=SAMPLING,
    help="Temperature; may be repeated.",
)  # fmt: skip
@option(
    "--seed", type=int, default=0, show_default=True, section=SAMPLING,
    help="Seed of the first prompt; the next ones count up.",
)  # fmt: skip
@json_option
@penalty_options
@click.pass_context
def verify(
    ctx: click.Context, max_tokens: int, prompts: str | None, families: tuple[str, ...], temps: tuple[float, ...],
    seed: int, count: int, as_json: bool, **o: Any,
) -> None:  # fmt: skip
    """Check that speculation does not change the output.

    \b
        refspec verify -m target.gguf -d drafter.gguf --count 20

    Every difference is held against the engine's rounding; exit 1 if one exceeds it. At a temperature above 0 also: do
    sampled drafts emit exactly the target's distribution, on logits observed here?
    """
    from refspec.evaluate import equality, sampled_law
    from refspec.evaluate.prompts import read
    from refspec.reference.sampling import Sampler

    penalties = changed(Penalties(), o)
    texts = [p.text for p in read(prompts, families)][:count]
    results, distributions = [], []
    with drafting(o) as session:
        for temp in temps:
            sampler = Sampler(temperature=temp, penalties=penalties)
            with click.progressbar(length=len(texts), label=f"temperature {temp:g}", file=sys.stderr) as bar:
                how: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed, "progress": lambda: bar.update(1)}
                results.append(equality.check(session, texts, sampler, **how))
            if temp > 0:
                distributions.append(sampled_law.check(session, texts, sampler, max_tokens=max_tokens, seed=seed))
    if as_json:
        found = {"results": [r.as_dict() for r in results], "distributions": [each.as_dict() for each in distributions]}
        click.echo(json.dumps({"model": session.name, **found}))
    else:
        lines = [line for r in results for line in equality.describe(r)] + equality.advice(session, results)
        lines += [line for each in distributions for line in sampled_law.describe(each)]
        click.echo("\n".join(lines))
    broken = session.batch_invariant and any(r.differences for r in results)
    broken = broken or not all(each.holds for each in distributions)
    ctx.exit(1 if broken or any(r.unexplained for r in results) else 0)
