"""The command line: options and printing. Everything else is in the modules the commands call."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click

from refspec.errors import PromptError, RefspecError, UsageError

if TYPE_CHECKING:  # models are loaded by the commands that need them: `refspec -h` answers at once
    from refspec.api import Generation, Session
    from refspec.sampling import Sampler

INTERRUPTED = 130  # 128 + SIGINT
CLOSED_PIPE = 141  # 128 + SIGPIPE


class Refspec(click.Group):
    """A group whose every failure is one line on stderr: exit 1, or 2 for a wrong argument."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(os.environ.get("REFSPEC_DEBUG"))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has gone, `refspec generate | head -1`: nobody wants the rest, nor a complaint
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere, stream.fileno())
            ctx.exit(CLOSED_PIPE)
        except KeyboardInterrupt:
            if debug:
                raise
            note("interrupted")
            ctx.exit(INTERRUPTED)
        except RefspecError as error:
            if debug:
                raise
            note(str(error))
            ctx.exit(2 if isinstance(error, UsageError) else 1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if debug:
                raise
            what = " ".join(str(error).split())
            note(f"{type(error).__name__}: {what} (unexpected; set REFSPEC_DEBUG=1 to see where, and please report it)")
            ctx.exit(1)


def note(line: str) -> None:
    """One line to stderr."""
    click.echo(f"refspec: {line}", err=True)


@click.group(cls=Refspec, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="refspec")
def main() -> None:
    """Normalized speculative drafters (EAGLE-3 and 3.1) on llama.cpp.

    \b
    Generate with the embedded pair, and see what the drafter gained:
        refspec generate --compare -p "Why is the sky blue?"
    With a model and a drafter of your own:
        refspec generate -m target.gguf -d drafter.gguf -f prompt.txt
    What is this file, and which normalization does it have:
        refspec inspect drafter.gguf

    Text goes to stdout, everything else to stderr.
    """


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order given."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


model_options = options(
    click.option("-m", "--model", metavar="GGUF", help="Target model; without it the embedded pair runs."),
    click.option("-d", "--drafter", metavar="GGUF", help="EAGLE-3 drafter made for the target."),
    click.option(
        "-c", "--ctx", "n_ctx", type=click.IntRange(0), default=0, help="Context in tokens; 0 is the model's own, at most 8192."
    ),
    click.option("-t", "--threads", type=click.IntRange(1), help="Threads for one token."),
    click.option("-tb", "--threads-batch", type=click.IntRange(1), help="Threads to verify several; as -t if not given."),
    click.option("-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, help="Layers on the GPU, -1 for all."),
    click.option("--strict", is_flag=True, help="F32 cache, no flash attention: bit-strict equality with F32 weights."),
)


@main.command()
@model_options
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("-f", "--file", "path", metavar="FILE", help="Read the prompt from a file; - is stdin, as without -p and -f.")
@click.option("-n", "--max-tokens", type=click.IntRange(0), default=256, show_default=True, help="Stop after so many tokens.")
@click.option(
    "--draft-max",
    type=click.IntRange(0, 64),
    help="Draft tokens per verify step, 0 for plain decoding; the default was measured (embedded pair) or is 3.",
)
@click.option("--temp", type=float, default=0.0, show_default=True, help="Temperature; 0 always takes the likeliest token.")
@click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens; 0 is off.")
@click.option("--top-p", type=float, default=1.0, help="Keep the likeliest tokens up to this mass; 1 is off.")
@click.option("--min-p", type=float, default=0.0, help="Drop tokens below this share of the likeliest; 0 is off.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text, with and without speculation.")
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the model's chat template.")
@click.option("--system", metavar="TEXT", help="System text for the chat template.")
@click.option("--no-spec", is_flag=True, help="Plain decoding, although there is a drafter.")
@click.option("--draft-sampling", is_flag=True, help="Sample the drafts and verify by rejection: same law, other text per seed.")
@click.option("--compare", is_flag=True, help="Also run plain decoding and print both, the speedup and any difference.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming text.")
@click.pass_context
def generate(ctx: click.Context, prompt: str | None, path: str | None, temp: float, as_json: bool, **o: Any) -> None:
    """Generate text, drafted and verified, and say what the drafter gained."""
    from refspec.sampling import Sampler

    if prompt is not None and path is not None:
        raise click.UsageError("give the prompt with -p or with -f, not with both")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ?, it does not end the run
    sampler = Sampler(temperature=temp, top_k=o["top_k"], top_p=o["top_p"], min_p=o["min_p"])
    text = read_prompt(prompt, path)
    with load(o) as session:
        code = run(session, text, sampler, o, as_json)
    ctx.exit(code)


def load(o: dict[str, Any]) -> Session:
    """The session that the model options ask for."""
    import refspec

    return refspec.load(
        o["model"],
        o["drafter"],
        n_ctx=o["n_ctx"],
        threads=o["threads"],
        threads_batch=o["threads_batch"],
        gpu_layers=o["gpu_layers"],
        strict=o["strict"],
        draft_max=o.get("draft_max"),
    )


def run(session: Session, text: str, sampler: Sampler, o: dict[str, Any], as_json: bool) -> int:
    """Generate, print and compare; returns the exit code."""
    from refspec import report

    speculating = session.drafter is not None and session.draft_max > 0 and not o["no_spec"]
    wanted = {"max_tokens": o["max_tokens"], "sampler": sampler, "seed": o["seed"]}
    generation = session.generate(
        text, system=o["system"], raw=o["raw"], speculate=speculating, draft_sampling=o["draft_sampling"], **wanted
    )
    if session.drafter is None and not o["no_spec"]:
        note("no drafter (-d): plain decoding")
    elif not speculating:
        note("plain decoding: " + ("--no-spec" if o["no_spec"] else "--draft-max is 0"))
    if session.chat_template is None and not o["raw"]:
        note(f"{session.name} has no chat template: the prompt is used as it is")
    if o["strict"] and not session.bit_strict:
        note("--strict: the weights are not all F32, so batch shapes still round differently")
    consume(generation, None if as_json else sys.stdout)
    record = {"text": generation.text} | generation.statistics.as_dict()
    record |= {"draft_max": session.draft_max if speculating else 0, "seed": o["seed"]}
    lines = report.describe(generation.statistics, "speculative" if speculating else "plain")
    interrupted = generation.statistics.stop == "interrupted"
    if o["compare"] and not interrupted:
        if speculating:
            interrupted = compare(session, generation, sampler, o, record, lines)
        else:
            note("--compare: nothing to compare, the run above is plain decoding")
    if as_json:
        click.echo(json.dumps(record, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line, err=True)
    return INTERRUPTED if interrupted else 0


def compare(
    session: Session, fast: Generation, sampler: Sampler, o: dict[str, Any], record: dict[str, Any], lines: list[str]
) -> bool:
    """Run the same prompt without speculation and add the outcome to record and lines; True when interrupted."""
    from refspec import report
    from refspec.compare import explain

    plain = session.generate(
        tokens=fast.prompt, speculate=False, max_tokens=o["max_tokens"], sampler=sampler, seed=o["seed"]
    )
    consume(plain, None)
    record["plain"] = {"text": plain.text} | plain.statistics.as_dict()
    record["speedup"] = report.speedup(fast.statistics, plain.statistics)
    if plain.statistics.stop == "interrupted":
        lines += [*report.describe(plain.statistics, "plain"), "no comparison: the plain run was interrupted"]
        return True
    sampled = o["draft_sampling"] and not sampler.greedy
    same, difference = plain.tokens == fast.tokens, None
    if not same and not sampled:
        difference = explain(
            session.target, fast.prompt, plain.tokens, fast.tokens, sampler=sampler, seed=o["seed"], draft_max=session.draft_max
        )
    record |= {"identical": same, "first_difference": report.difference_as_dict(difference)}

    def show(token: int) -> str:
        return session.target.token_to_bytes(token, special=True).decode("utf-8", "replace")

    lines += report.describe_comparison(fast.statistics, plain.statistics, sampled, same, difference, show)
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
    """The first Ctrl-C ends the generation after the call under way, the second one the program.

    A flag, not an exception: inside a callback from llama.cpp an exception would be lost.
    """

    def first(signum: int, frame: FrameType | None) -> None:
        generation.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_prompt(prompt: str | None, path: str | None) -> str:
    """The prompt from -p, -f or stdin as text; the last newline of a file or of stdin is dropped."""
    if prompt is not None:
        data, where = os.fsencode(prompt), "-p"
    elif path is not None and path != "-":
        where = path
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise PromptError(f"{path}: {error.strerror or error}; name a text file with -f") from None
    else:
        where = "stdin"
        if path is None and sys.stdin.isatty():
            raise click.UsageError("no prompt: give -p TEXT or -f FILE, or pipe one in")
        data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{where}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; convert the text to UTF-8"
        ) from None
    return text if where == "-p" else text.removesuffix("\n").removesuffix("\r")


@main.command()
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: str, as_json: bool) -> None:
    """Say what a target or drafter GGUF is, every normalization flag in words."""
    from refspec import inspect as inspector

    about = inspector.describe(file)
    click.echo(json.dumps(about, ensure_ascii=False, default=str) if as_json else "\n".join(inspector.lines(about)))


@main.command()
@model_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=128, show_default=True, help="Tokens per run.")
@click.option("--draft-max", type=click.IntRange(1, 64), help="Draft tokens per verify step.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind per prompt.")
@click.option("--prompts", metavar="FILE", help="Prompts, one per line; a few of its own if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def bench(max_tokens: int, repeat: int, prompts: str | None, as_json: bool, **o: Any) -> None:
    """Measure on this machine: plain and speculative decoding, cost curves, refspec's own share."""
    from refspec import bench as benchmark

    texts = [line for line in read_prompt(None, prompts).splitlines() if line.strip()] if prompts else benchmark.PROMPTS
    with load(o) as session:
        if session.drafter is None:
            raise click.UsageError("bench compares plain and speculative decoding: name a drafter with -d")
        measured = benchmark.measure(session, texts, max_tokens=max_tokens, repeat=repeat, progress=note)
    click.echo(json.dumps(measured) if as_json else "\n".join(benchmark.table(measured)))
