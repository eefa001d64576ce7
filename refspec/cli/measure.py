"""`refspec inspect`, `bench` and `verify`: look at a file, measure a pair, check that speculation changes nothing."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from refspec.cli.group import load, main, model_options, note, options, tree_option
from refspec.errors import UsageError
from refspec.perturb import PERTURBATIONS

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
prompt_options = options(
    click.option(
        "--prompts", metavar="FILE", help="JSONL (turns, benchmark) or one prompt a line; else the built-in 200."
    ),
    click.option("--family", "families", multiple=True, help="Only this `benchmark` of a JSONL file; may be repeated."),
)


@main.command()
@click.argument("file", metavar="FILE|DIR")
@click.option("--target", metavar="PATH", help="Target of a drafter's directory, for what that leaves to it.")
@json_option
def inspect(file: str, target: str | None, as_json: bool) -> None:
    """Say what a GGUF or checkpoint directory is, every normalization flag in words."""
    from refspec import inspect as inspector

    about = inspector.describe(file, target)
    click.echo(json.dumps(about, ensure_ascii=False, default=str) if as_json else "\n".join(inspector.lines(about)))


@main.group()
def bench() -> None:
    """Measure a pair on this machine."""


@bench.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens per run.")
@click.option("--draft-max", type=click.IntRange(1, 64), help="Draft tokens per verify step.")
@tree_option
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind per prompt.")
@click.option("--count", type=click.IntRange(1), default=6, show_default=True, help="How many of the prompts.")
@json_option
def speed(
    max_tokens: int, repeat: int, prompts: str | None, families: tuple[str, ...], count: int, as_json: bool, **o: Any
) -> None:
    """Plain and speculative decoding in turn, cost curves, refspec's own share of a verify step."""
    from refspec import bench as benchmark
    from refspec.prompts import read

    texts = [p.text for p in read(prompts, families)][:count]
    with drafting(o) as session:
        measured = benchmark.measure(session, texts, max_tokens=max_tokens, repeat=repeat, progress=note)
    click.echo(json.dumps(measured) if as_json else "\n".join(benchmark.table(measured)))


@bench.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens per prompt.")
@click.option("--draft-max", type=click.IntRange(1, 64), help="Draft tokens per verify step.  [default: 5]")
@tree_option
@click.option(
    "--temp", type=float, default=0.0, show_default=True, help="Temperature; the seed is the prompt's number."
)
@click.option("--count", type=click.IntRange(1), help="At most so many prompts of each family.")
@click.option(
    "--perturb", "perturbations", multiple=True, type=click.Choice([*PERTURBATIONS, "all"]), metavar="NAME",
    help="Change the chat template around each prompt; may be repeated, `all` is every one. Listed below.",
)  # fmt: skip
@json_option
def acceptance(
    max_tokens: int,
    prompts: str | None,
    families: tuple[str, ...],
    temp: float,
    count: int | None,
    perturbations: tuple[str, ...],
    as_json: bool,
    **o: Any,
) -> None:
    from refspec import acceptance as counting
    from refspec.prompts import read
    from refspec.sampling import Sampler

    if o["draft_max"] is None and o["tree"] is None:
        o["draft_max"] = 5
    chosen = counting.first_of_each(read(prompts, families), count)
    wanted = list(PERTURBATIONS) if "all" in perturbations else list(dict.fromkeys(perturbations)) or ["none"]
    length = len(chosen) * len(wanted)
    with drafting(o) as session, click.progressbar(length=length, label="prompts", file=sys.stderr) as bar:
        found = {
            name: counting.measure(
                session, chosen, Sampler(temperature=temp), max_tokens=max_tokens, progress=lambda: bar.update(1),
                perturbation=name,
            )
            for name in wanted
        }  # fmt: skip
    if as_json:
        records = {name: counting.as_dict(by_family) for name, by_family in found.items()}
        click.echo(json.dumps(records if perturbations else records["none"]))
        return
    for name, by_family in found.items():
        if perturbations:
            click.echo(f"{name}: {PERTURBATIONS[name].about}")
        click.echo("\n".join(counting.table(by_family)))


acceptance.help = "\n".join(
    ["Tau and acceptance by position, for each family of prompts and over all.", "", "\b", "Perturbations of the template:",
     *(f"  {name:<15} {how.about}" for name, how in PERTURBATIONS.items())]
)  # fmt: skip


@main.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens per prompt.")
@click.option("--draft-max", type=click.IntRange(1, 64), help="Draft tokens per verify step.")
@click.option(
    "--temp", "temps", type=float, multiple=True, default=(0.0, 0.8), show_default=True, help="May be repeated."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the first prompt; the next ones count up."
)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many prompts.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    max_tokens: int,
    prompts: str | None,
    families: tuple[str, ...],
    temps: tuple[float, ...],
    seed: int,
    count: int,
    as_json: bool,
    **o: Any,
) -> None:
    """Is speculative text the plain text? Every difference against the engine's rounding; exit 1 if one exceeds it."""  # fmt: skip
    from refspec import equality
    from refspec.prompts import read
    from refspec.sampling import Sampler

    texts = [p.text for p in read(prompts, families)][:count]
    results = []
    with drafting(o) as session:
        for temp in temps:
            label = f"temperature {temp:g}"
            with click.progressbar(length=len(texts), label=label, file=sys.stderr) as bar:
                results.append(
                    equality.check(
                        session, texts, Sampler(temperature=temp), max_tokens=max_tokens, seed=seed,
                        progress=lambda: bar.update(1),
                    )
                )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"model": session.name, "results": [r.as_dict() for r in results]}))
    else:
        click.echo("\n".join(line for r in results for line in equality.describe(r)))
    broken = session.bit_strict and any(r.differences for r in results)
    ctx.exit(1 if broken or any(r.unexplained for r in results) else 0)


def drafting(o: dict[str, Any]) -> Any:
    """A session that has a drafter; these commands measure one."""
    session = load(o)
    if session.drafter is None:
        session.close()
        raise UsageError("this command measures a drafter: name one with -d")
    return session
