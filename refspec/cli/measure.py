"""`refspec inspect`, `bench` and `verify`: look at a file, measure a pair, check that speculation changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from refspec.cli.group import load, main, model_options, note, options, tree_option
from refspec.cli.penalties import changed, penalty_options
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
figure_option = click.option(
    "--figure", metavar="FILE", help="Also draw the speedups by family: a .png, .svg or .pdf (the `plot` extra)."
)
prompt_options = options(
    click.option(
        "--prompts", metavar="FILE", help="JSONL (turns, benchmark) or one prompt a line; else the built-in 200."
    ),
    click.option("--family", "families", multiple=True, help="Only this `benchmark` of a JSONL file; may be repeated."),
)

repeat_option = click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind per prompt."
)
rival_option = options(
    click.option(
        "--llama-cpp-bin",
        "rival",
        metavar="DIR",
        help="Also run llama-speculative-simple of this build, on a pre-norm pair.",
    ),
    click.option(
        "--llama-cpp-drafter",
        "rival_drafter",
        metavar="GGUF",
        help="The drafter it runs, where -d is one it cannot: the pre-norm twin of a normalized drafter.",
    ),
)


@main.command()
@click.argument("file", metavar="FILE|DIR")
@click.option("--target", metavar="PATH", help="Target of a drafter's directory, for what that leaves to it.")
@json_option
def inspect(file: str, target: str | None, as_json: bool) -> None:
    """Say what a GGUF or checkpoint directory is, every normalization flag in words."""
    from refspec.convert import inspect as inspector

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
@repeat_option
@click.option("--count", type=click.IntRange(1), default=6, show_default=True, help="How many of the prompts.")
@rival_option
@penalty_options
@json_option
def speed(
    max_tokens: int,
    repeat: int,
    prompts: str | None,
    families: tuple[str, ...],
    count: int,
    rival: str | None,
    as_json: bool,
    **o: Any,
) -> None:
    """Plain decoding and every way to draft in turn, cost curves, refspec's own share of a verify step."""
    from refspec.evaluate import rivals
    from refspec.evaluate import speed as benchmark
    from refspec.evaluate.prompts import read
    from refspec.reference.sampling import Sampler
    from refspec.session import DRAFT_MAX

    sampler = Sampler(penalties=changed(Penalties(), o))
    texts = [p.text for p in read(prompts, families)][:count]
    with drafting(o) as session:
        other = None
        program = rival_of(rival, session, texts, max_tokens, o)
        if program is not None:
            length = session.draft_max if session.tree is None else DRAFT_MAX  # as benchmark.kinds_of

            def other(prompt: str) -> rivals.Run:
                assert program is not None
                return program(prompt, length)

        measured = benchmark.measure(
            session, texts, max_tokens=max_tokens, repeat=repeat, progress=note, rival=other, sampler=sampler
        )  # fmt: skip
    click.echo(json.dumps(measured) if as_json else "\n".join(benchmark.table(measured)))


@main.command()
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens per prompt.")
@click.option("--draft-max", type=click.IntRange(1, 64), help="Draft tokens per verify step.")
@tree_option
@click.option(
    "--temp", "temps", type=float, multiple=True, default=(0.0, 0.8), show_default=True, help="May be repeated."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the first prompt; the next ones count up."
)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="How many prompts.")
@penalty_options
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
    """Is speculative text the plain text? Every difference against the engine's rounding; exit 1 if one exceeds it.

    At a temperature above 0 also: do sampled drafts emit exactly the target's law, on logits observed here?
    """
    from refspec.evaluate import equality, sampled_law
    from refspec.evaluate.prompts import read
    from refspec.reference.sampling import Sampler

    penalties = changed(Penalties(), o)
    texts = [p.text for p in read(prompts, families)][:count]
    results, laws = [], []
    with drafting(o) as session:
        for temp in temps:
            label = f"temperature {temp:g}"
            with click.progressbar(length=len(texts), label=label, file=sys.stderr) as bar:
                results.append(
                    equality.check(
                        session, texts, Sampler(temperature=temp, penalties=penalties), max_tokens=max_tokens, seed=seed,
                        progress=lambda: bar.update(1),
                    )
                )  # fmt: skip
            if temp > 0:
                laws.append(
                    sampled_law.check(
                        session, texts, Sampler(temperature=temp, penalties=penalties), max_tokens=max_tokens, seed=seed
                    )
                )
    if as_json:
        found = {"results": [r.as_dict() for r in results], "laws": [each.as_dict() for each in laws]}
        click.echo(json.dumps({"model": session.name, **found}))
    else:
        lines = [line for r in results for line in equality.describe(r)]
        click.echo(
            "\n".join(
                lines
                + equality.advice(session, results)
                + [line for each in laws for line in sampled_law.describe(each)]
            )
        )
    broken = session.batch_invariant and any(r.differences for r in results)
    broken = broken or not all(each.holds for each in laws)
    ctx.exit(1 if broken or any(r.unexplained for r in results) else 0)


def rival_of(
    folder: str | None, session: Any, texts: Sequence[str], max_tokens: int, o: dict[str, Any]
) -> Callable[[str, int], Any] | None:
    """llama.cpp's own driver on the files and with the settings of a session:

    (prompt, draft length) -> `bench_rival.Run`; None without it.
    """
    from refspec.evaluate import rivals
    from refspec.llama.amx import repacking_works

    if folder is None:
        if o["rival_drafter"]:
            raise UsageError(
                "--llama-cpp-drafter is for llama.cpp's own driver; name the directory of its tools with --llama-cpp-bin"
            )
        return None
    if changed(Penalties(), o).on:
        raise UsageError(
            "--llama-cpp-bin: llama.cpp's own driver decodes without penalties here, another text; leave the penalties or the driver out"
        )
    if o["rival_drafter"]:
        note(f"llama.cpp's own driver drafts with {o['rival_drafter']}")
    program = rivals.Rival(folder, session.name, o["rival_drafter"] or getattr(session.drafter, "path", ""))
    as_text = dict(zip(texts, rivals.prompts_as_text(session, texts), strict=True))
    settings = {name: o[name] for name in ("threads", "threads_batch", "flash_attn")}
    settings |= {
        "max_tokens": max_tokens,
        "n_ctx": session.target.n_ctx,
        "repack": o["repack"] is not False and repacking_works(),
    }
    return lambda prompt, length: program.run(as_text[prompt], draft_max=length, **settings)


def figure_of(path: str | None) -> Callable[[Any], None]:
    """Draws the record of a sweep or a replay into a file, if one was named;

    what would fail after measuring fails before it.
    """
    if path is None:
        return lambda measured: None
    from lab import sweep_plots

    out = sweep_plots.check(path)
    return lambda measured: sweep_plots.write(sweep_plots.by_family(measured), out)


def drafting(o: dict[str, Any]) -> Any:
    """A session that has a drafter; these commands measure one, with lookup only where it was asked for."""
    session = load(o | {"lookup": bool(o["lookup"])})
    if session.drafter is None:
        session.close()
        raise UsageError("this command measures a drafter: name one with -d")
    return session
