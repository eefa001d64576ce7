"""`refspec generate`: text on stdout as it is decided, what it took on stderr."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from refspec.cli.command import DRAFTING, INTERRUPTED, PATH, SAMPLING, note, option
from refspec.cli.grammar import grammar_of, grammar_options
from refspec.cli.group import draft_max_option, load, main, model_options, read_bias, read_prompt, tree_option
from refspec.cli.penalties import changed, penalties_of, penalty_options

if TYPE_CHECKING:
    from refspec.evaluate.speed import ForeignLoad
    from refspec.reference.sampling import Sampler
    from refspec.session import Generation, Session


@main.command()
@option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@option(
    "-f", "--file", "path", type=PATH, metavar="FILE",
    help="Read the prompt from a file; - is stdin, as without -p and -f.",
)  # fmt: skip
@option(
    "-n", "--max-tokens", type=click.IntRange(0), default=256, show_default=True, also=("--n-predict",),
    help="Stop after so many tokens.",
)  # fmt: skip
@model_options
@option("--system", metavar="TEXT", also=("-sys", "--system-prompt"), help="System text for the chat template.")
@option("--raw", is_flag=True, help="Give the prompt as it is, without the model's chat template.")
@option("--compare", is_flag=True, help="Also run plain decoding and print both, the speedup and any difference.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming text.")
@draft_max_option(
    "Guesses per step, 0 for plain decoding; the default was measured, or is chosen every step. With --adaptive the "
    "most.",
    type=click.IntRange(0, 64),
)
@tree_option
@option("--no-spec", is_flag=True, section=DRAFTING, help="Plain decoding, although there is a drafter.")
@option(
    "--draft-sampling", is_flag=True, section=DRAFTING,
    help="Sample the guesses and verify by rejection: same distribution, other output per seed.",
)  # fmt: skip
@option(
    "--temp", type=float, default=0.0, show_default=True, section=SAMPLING, also=("--temperature",),
    help="Temperature; 0 always takes the likeliest token.",
)  # fmt: skip
@option("--top-k", type=int, default=0, section=SAMPLING, help="Keep the k likeliest tokens; 0 is off.")
@option(
    "--top-p", type=float, default=1.0, section=SAMPLING, help="Keep the likeliest tokens up to this mass; 1 is off."
)
@option(
    "--min-p", type=float, default=0.0, section=SAMPLING,
    help="Drop tokens below this share of the likeliest; 0 is off.",
)  # fmt: skip
@option(
    "--seed", type=int, default=0, show_default=True, section=SAMPLING, also=("-s",),
    help="Same seed, same output, with and without speculation.",
)  # fmt: skip
@option(
    "--recommended", is_flag=True, section=SAMPLING,
    help="Sample as the target's file recommends, where no option says otherwise.",
)  # fmt: skip
@option(
    "--logit-bias", metavar="ID=X", multiple=True, section=SAMPLING,
    help="Add X to the logit of token ID, -inf forbids it; may be repeated.",
)  # fmt: skip
@penalty_options
@grammar_options
@click.pass_context
def generate(ctx: click.Context, prompt: str | None, path: str | None, temp: float, as_json: bool, **o: Any) -> None:
    """Generate text with guesses, and say what they gained.

    \b
        refspec generate --compare -p "Why is the sky blue?"
        refspec generate -m target.gguf -d drafter.gguf -f prompt.txt
    """
    from refspec.evaluate.speed import ForeignLoad
    from refspec.reference.sampling import Sampler

    if prompt is not None and path is not None:
        raise click.UsageError("give the prompt with -p or with -f, not with both")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ?, it does not end the run
    bias = read_bias(o["logit_bias"])
    sampler = Sampler(temperature=temp, top_k=o["top_k"], top_p=o["top_p"], min_p=o["min_p"], logit_bias=bias)
    penalties_of(o)  # refuses what cannot be before a model is loaded
    within = grammar_of(o)
    text = read_prompt(prompt, path)
    others = ForeignLoad()
    with load(o, chooses=o["adaptive"] is None and not o["draft_sampling"]) as session:
        sampler = advised(ctx, session, replace(sampler, penalties=changed(session.sampler.penalties, o)), o)
        if sampler.penalties == session.sampler.penalties and sampler.penalties.on:
            note("anti-repetition (DRY) is on for this small model; --dry-multiplier 0 turns it off")
        code = run(session, text, sampler, o, as_json, others, within)
    ctx.exit(code)


# Option of `generate` -> the field of Sampler or Penalties it sets.
SETS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "repeat",
    "repeat_last_n": "repeat_last_n",
}  # fmt: skip


def advised(ctx: click.Context, session: Session, sampler: Sampler, o: dict[str, Any]) -> Sampler:
    """`sampler` with what the target's file recommends, if that was asked for, else a note of it; options win."""
    from refspec.gguf.recommended_sampling import recommended

    found = recommended(session.target.metadata, session.name)
    given = {field for option, field in SETS.items() if ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE}
    if o["recommended"]:
        note(f"{session.name} recommends {found}" if found else f"--recommended: {session.name} recommends no sampling")
        if found.unknown:
            note(f"--recommended: {', '.join(found.unknown)} of {session.name} is not known here and left out")
        return found.applied(sampler, given)
    if found and not given:
        note(f"{session.name} recommends {found}; --recommended takes that, this is greedy")
    return sampler


def run(
    session: Session, text: str, sampler: Sampler, o: dict[str, Any], as_json: bool, others: ForeignLoad,
    within: dict[str, Any],
) -> int:  # fmt: skip
    """Generate, print and compare; returns the exit code.

    `others` is the load of other processes since before, `within` the grammar and fidelity of `Session.generate`.
    """
    from refspec.evaluate import report
    from refspec.llama import open_pair
    from refspec.session import DRAFT_MAX

    speculating = session.drafter is not None and session.draft_max > 0 and not o["no_spec"]
    wanted = {"max_tokens": o["max_tokens"], "sampler": sampler, "seed": o["seed"]} | within
    generation = session.generate(
        text, system=o["system"], raw=o["raw"], speculate=speculating, draft_sampling=o["draft_sampling"], **wanted
    )
    if session.drafter is None and not o["no_spec"]:
        note("plain generation; -d FILE or --lookup makes guesses")
    elif not speculating:
        note("plain generation: " + ("--no-spec" if o["no_spec"] else "--draft-max is 0"))
    if session.chat_template is None and not o["raw"]:
        note(f"{session.name} has no chat template: the prompt is used as it is")
    before = session.policy.remembered if session.policy is not None else 0
    if speculating and session.adaptive and (before or o["adaptive"] is None):
        learned = f", as learned from {before} output{'s' * (before > 1)} before" if before else ""
        otherwise = f"--no-adaptive: {DRAFT_MAX}; --no-tune: as if for the first time"
        note(f"the number of guesses is chosen every step{learned} ({otherwise})")
    consume(generation, None if as_json else sys.stdout)
    record = {"text": generation.text} | generation.statistics.as_dict()
    looked_up = open_pair.lookups(session.drafter) if speculating else 0
    record |= {
        "draft_max": session.draft_max if speculating else 0, "seed": o["seed"],
        "kind": open_pair.describe(session.drafter if speculating else None),
        "adaptive": speculating and session.adaptive, "texts_before": before,
        "penalties": asdict(sampler.penalties) if sampler.penalties.on else None,
        "tree": str(session.tree) if speculating and session.tree is not None else None, "lookups": looked_up,
    }  # fmt: skip
    lines = report.describe(generation.statistics, "speculative" if speculating else "plain")
    if looked_up:
        calls = f"{looked_up} of {generation.statistics.verify_steps} calls"
        lines.insert(1, f"  lookup: {calls} had guesses from the text so far, where the drafter was unsure")
    interrupted = generation.statistics.stop == "interrupted"
    if o["compare"] and not interrupted:
        if speculating:
            interrupted = compare(session, generation, sampler, o, record, lines, others, within)
        else:
            note("--compare: nothing to compare, the run above is plain decoding")
            record |= {"plain": {"text": generation.text} | generation.statistics.as_dict(), "speedup": 1.0}
            record |= {"identical": True, "first_difference": None}
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line, err=True)
    return INTERRUPTED if interrupted else 0


def compare(
    session: Session, fast: Generation, sampler: Sampler, o: dict[str, Any], record: dict[str, Any], lines: list[str],
    others: ForeignLoad, within: dict[str, Any],
) -> bool:  # fmt: skip
    """Run the same prompt without speculation and add the outcome to record and lines; True when interrupted."""
    from refspec.evaluate import report
    from refspec.evaluate.compare import explain
    from refspec.evaluate.speed import busy

    wanted: dict[str, Any] = {"max_tokens": o["max_tokens"], "sampler": sampler, "seed": o["seed"]} | within
    plain = session.generate(tokens=fast.prompt, speculate=False, **wanted)
    consume(plain, None)
    record["foreign_cores"] = others.cores()
    record["plain"] = {"text": plain.text} | plain.statistics.as_dict()
    record["speedup"] = report.speedup(fast.statistics, plain.statistics)
    if plain.statistics.stop == "interrupted":
        lines += [*report.describe(plain.statistics, "plain"), "no comparison: the plain run was interrupted"]
        return True
    sampled = o["draft_sampling"] and not sampler.greedy
    same, difference = plain.tokens == fast.tokens, None
    if not same and not sampled:
        difference = explain(
            plain.target if within else session.target, fast.prompt, plain.tokens, fast.tokens, sampler=sampler,
            seed=o["seed"], draft_max=session.draft_max, trees=session.tree is not None,
        )  # fmt: skip
    record |= {"identical": same, "first_difference": report.difference_as_dict(difference)}

    def show(token: int) -> str:
        return session.target.token_to_bytes(token, special=True).decode("utf-8", "replace")

    if o["reproducible"] or o["pair_rows"]:
        what = f"--reproducible {o['reproducible']}" if o["reproducible"] else "--pair-rows"
        note(f"{what}: plain decoding runs each token beside a second one, too, so the speedup is not the usual one")
    doubt = busy(record["foreign_cores"], os.cpu_count())
    lines += report.describe_comparison(
        fast.statistics, plain.statistics, sampled, same, difference, show, adaptive=session.adaptive, busy=doubt
    )
    if session.tree is not None:
        return False  # costs of chains predict nothing here
    if tuned := session.tuned.record:
        from refspec.evaluate.tune import predict

        record["predicted_speedup"] = predict(tuned, fast.statistics.steps_by_drafted, fast.statistics.generated_tokens)
    files = "".join(f" {flag} {o[name]}" for flag, name in (("-m", "model"), ("-d", "drafter")) if o[name])
    predicted = record.get("predicted_speedup")
    lines.append(report.describe_prediction(predicted, record["speedup"], f"refspec tune{files}"))
    return False


def consume(generation: Generation, out: IO[str] | None) -> None:
    """Run a generation to its end, or to the first Ctrl-C, writing text to `out` as it is decided."""
    with stop_on_interrupt(generation):
        for event in generation:
            if out is not None and event.text:
                out.write(event.text)
                out.flush()
    if out is not None:
        out.write("" if generation.text.endswith("\n") else "\n")
        out.flush()


@contextmanager
def stop_on_interrupt(generation: Generation) -> Iterator[None]:
    """The first Ctrl-C ends the generation after the call under way, the second one the program."""

    def first(signum: int, frame: FrameType | None) -> None:
        generation.stop()  # a flag: an exception would be lost inside a callback from llama.cpp
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
