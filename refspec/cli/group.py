"""The command group: every failure is one line, and the options that name and load models."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refspec.errors import PromptError, RefspecError, UsageError

if TYPE_CHECKING:  # models are loaded by the commands that need them: `refspec -h` answers at once
    from refspec.session import Session

INTERRUPTED = 130  # 128 + SIGINT
CLOSED_PIPE = 141  # 128 + SIGPIPE


class Refspec(click.Group):
    """A group whose every failure is one line on stderr: exit 1, or 2 for a wrong argument."""

    def invoke(self, ctx: click.Context) -> Any:
        debug = bool(os.environ.get("REFSPEC_DEBUG"))
        try:
            return super().invoke(ctx)
        except (
            BrokenPipeError
        ):  # the reader has gone, `refspec generate | head -1`: nobody wants the rest, nor a complaint
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
    """One line to stderr, even for a file name that has a line break in it."""
    click.echo("refspec: " + "\\n".join(line.splitlines()), err=True)


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


def check_names_file(out: str) -> None:
    """UsageError where -o names a directory."""
    if Path(out).is_dir():
        raise UsageError(f"-o {out}: is a directory; name the file to write")


@contextmanager
def bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar in bytes on stderr, shown once the size of the file is known."""
    with ExitStack() as stack:
        bars: list[Any] = []

        def progress(nbytes: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=total, label=label, file=sys.stderr)))
            bars[0].update(nbytes)

        yield progress


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator, in the order given."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


model_options = options(
    click.option("-m", "--model", metavar="GGUF", help="Target model; without it the embedded pair runs."),
    click.option(
        "-d",
        "--drafter",
        metavar="GGUF",
        help="Drafter: EAGLE-3 made for the target, or any small model with its vocabulary.",
    ),
    click.option(
        "-c",
        "--ctx",
        "n_ctx",
        type=click.IntRange(0),
        default=0,
        help="Context in tokens; 0 is the model's own, at most 8192.",
    ),
    click.option("-t", "--threads", type=click.IntRange(1), help="Threads for one token."),
    click.option(
        "-tb", "--threads-batch", type=click.IntRange(1), help="Threads to verify several; as -t if not given."
    ),
    click.option("-td", "--threads-draft", type=click.IntRange(1), help="Threads for the drafter; as -t if not given."),
    click.option("-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, help="Layers on the GPU, -1 for all."),
    click.option(
        "-fa",
        "--flash-attn",
        type=click.Choice(["off", "on", "auto"]),
        help="Flash attention; the default was measured or is auto.",
    ),
    click.option("--kv-type", type=click.Choice(["f16", "f32", "q8_0"]), help="Type of the target's key/value cache."),
    click.option(
        "--repack/--no-repack", default=None, help="Let llama.cpp lay out quantized weights anew (its default)."
    ),
    click.option(
        "--panels/--no-panels",
        default=None,
        help="Multiply with the weights on refspec's own kernels; on wherever they can, without --repack.",
    ),
    click.option(
        "--pair-rows/--no-pair-rows",
        default=None,
        help="Run a single row beside a copy of itself: faster where `refspec tune` finds two rows cheaper than one.",
    ),
    click.option(
        "--lookup/--no-lookup",
        default=None,
        help="Draft from the text itself: alone, where the drafter is unsure, or as a branch of a tree. Off unless the settings of the embedded pair say so.",
    ),
    click.option(
        "--adaptive/--no-adaptive",
        default=None,
        help="Choose the draft length every step, at most --draft-max (8); `generate` does where nothing was measured and no --draft-max or --tree is given.",
    ),
    click.option(
        "--drafter-kernels",
        type=click.Choice(["auto", "llama", "own"]),
        default="auto",
        show_default=True,
        help="What runs an EAGLE-3 drafter: llama.cpp, refspec's own kernels, or those for tiny ones.",
    ),
    click.option(
        "--no-tune",
        is_flag=True,
        help="Ignore what `refspec tune` stored for this pair, and what adaptive runs learned.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="All in F32, no flash attention: speculative text is the plain text, bit for bit.",
    ),
    click.option(
        "--exact",
        is_flag=True,
        help="The same with the weights as they are: single rows in pairs, nothing laid out anew, drafts of at most 6 tokens.",
    ),
)


tree_option = click.option(
    "--tree",
    metavar="N[:TOPK[:DEPTH]]",
    help="Draft trees of N nodes, not chains; TOPK after each (4), DEPTH on a path (8).",
)


def load(o: dict[str, Any], *, chooses: bool = False) -> Session:
    """The session that the model options ask for; `chooses`:

    it may draft adaptively where no option says how much to draft.
    """
    import refspec

    repack, panels = o["repack"], o["panels"]
    if repack and panels:
        raise UsageError("--repack excludes --panels; leave one of them out")
    if o["strict"] and o["exact"]:
        raise UsageError("--strict excludes --exact; leave one of them out")
    matmul = "refspec" if panels else "repack" if repack else "auto"
    if matmul == "auto" and False in (panels, repack):
        from refspec.llama.amx import repacking_works

        matmul = "repack" if repack is None and repacking_works() else "stored"
    session = refspec.load(
        o["model"],
        o["drafter"],
        n_ctx=o["n_ctx"],
        threads=o["threads"],
        threads_batch=o["threads_batch"],
        threads_draft=o["threads_draft"],
        gpu_layers=o["gpu_layers"],
        flash_attn=o["flash_attn"],
        reproducible="exact" if o["exact"] else "f32" if o["strict"] else None,
        draft_max=o.get("draft_max"),
        tree=o.get("tree"),
        lookup=o["lookup"],
        adaptive=None if chooses else bool(o["adaptive"]),
        kv_type=o["kv_type"],
        matmul=matmul,
        pair_rows=o["pair_rows"],
        drafter_kernels=o["drafter_kernels"],
        tuned=not o["no_tune"],
    )
    for said in session.notes:
        note(said)
    return session


def read_bias(pairs: Sequence[str]) -> dict[int, float]:
    """The pairs of --logit-bias as {token id: what is added to its logit}."""
    bias: dict[int, float] = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            number = int(token)
            if number in bias:
                raise UsageError(f"--logit-bias names token {number} twice; give it once")
            bias[number] = float(value)
        except ValueError:
            raise UsageError(f"--logit-bias {pair!r}: give ID=X, such as 13=-inf or 42=1.5") from None
    return bias


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
