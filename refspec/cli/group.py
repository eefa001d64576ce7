"""The command `refspec`, and the options and steps its commands share: models named and loaded, prompts read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refspec.cli.command import DRAFTING, PATH, SPECIALISTS, WIDTH, Refspec, note, old_flag, option, options, or_old
from refspec.errors import PromptError, UsageError

if TYPE_CHECKING:  # models are loaded by the commands that need them: `refspec -h` answers at once
    from refspec.session import Session

LONGEST = 64 << 20  # bytes of a prompt
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")  # types of the matrices of a written GGUF
COMMANDS = {
    "Run": ("generate", "chat"),
    "Make": ("convert", "export", "recast", "train", "models"),
    "Understand": ("inspect", "check", "drift"),
    "Measure": ("tune", "bench", "acceptance", "verify"),
}
GONE = {"stock": "refspec convert DRAFTER --target TARGET --stock -o FILE"}


@click.group(
    cls=Refspec, sections=COMMANDS, gone=GONE,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)  # fmt: skip
@click.version_option(package_name="refspec")
def main() -> None:
    """Speculative decoding on llama.cpp: a small drafter guesses tokens, the target checks several at once.

    \b
    Generate with the embedded pair, and see what the drafter gains:
        refspec generate --compare -p "Why is the sky blue?"
    Talk, or see which models are here:
        refspec chat
        refspec models
    With a model and a drafter of your own:
        refspec generate -m target.gguf -d drafter.gguf -f prompt.txt
    Will guessing pay on this machine:
        refspec tune -m target.gguf -d drafter.gguf

    Text goes to stdout, everything else to stderr. Tau, wherever it appears, is the mean number of tokens a call of
    the target decides: 1 without guesses.
    """


model_option = option(
    "-m", "--model", type=PATH, metavar="MODEL",
    help="Target: a GGUF file, smollm2, embedded or hf:OWNER/REPO[:FILE]; the embedded pair without it.",
)  # fmt: skip
ctx_option = option(
    "-c", "--ctx", "n_ctx", type=click.IntRange(0), default=0, also=("--ctx-size",),
    help="Context in tokens; 0 is the model's own, at most 8192.",
)  # fmt: skip
threads_option = option("-t", "--threads", type=click.IntRange(1), help="Threads for one token.")
gpu_option = option(
    "-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, also=("--n-gpu-layers",),
    help="Layers of the target on the GPU, -1 for all.",
)  # fmt: skip


def tokens_option(default: int, what: str) -> Callable[[Any], Any]:
    """`-n`, the most tokens that are generated."""
    return option(
        "-n", "--max-tokens", type=click.IntRange(2), default=default, show_default=True, also=("--n-predict",),
        help=what,
    )  # fmt: skip


def output_option(metavar: str, what: str, *, required: bool = True, **how: Any) -> Callable[[Any], Any]:
    """`-o`, the file or directory to write."""
    return option(
        "-o", "--output", "out", metavar=metavar, required=required, old=("--out",), help=what, **({"type": PATH} | how)
    )


def _one_type(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> str | None:
    """The type of the cache; UsageError where its keys and values are given different ones."""
    if len(set(value)) > 1:
        given = " and ".join(value)
        raise UsageError(f"--cache-type-k and --cache-type-v are {given}: refspec has one type for both; give the same")
    return value[0] if value else None


def _panels_meant(on: bool) -> str:
    if on:
        return "refspec"
    from refspec.llama.amx import repacking_works

    return "repack" if repacking_works() else "stored"


model_options = options(
    model_option,
    option(
        "-d", "--drafter", type=PATH, metavar="MODEL", also=("-md", "--spec-draft-model"),
        help="Drafter, a file or a name as of -m: EAGLE-3 made for the target (a checkpoint on the hub is converted), "
        "or any small model with its vocabulary.",
    ),
    ctx_option,
    threads_option,
    gpu_option,
    option(
        "--lookup/--no-lookup", default=None, section=DRAFTING,
        help="Guess what followed the same words before: alone, where the drafter is unsure, or as a branch of a tree. "
        "Off, unless the settings of a named pair say so.",
    ),
    option(
        "--adaptive/--no-adaptive", default=None, section=DRAFTING,
        help="Choose the number of guesses every step, at most --draft-max (8). `generate` and `chat` do where nothing "
        "was measured and neither --draft-max nor --tree is given.",
    ),
    option(
        "--reproducible", type=click.Choice(["exact", "f32"]), callback=or_old,
        help="The output is that of plain generation, bit for bit. exact: weights as they are, at most 6 guesses; "
        "f32: everything in F32, slow.",
    ),
    old_flag("--exact", "reproducible", lambda on: "exact"),
    old_flag("--strict", "reproducible", lambda on: "f32"),
    option(
        "-fa", "--flash-attn", type=click.Choice(["off", "on", "auto"]), section=SPECIALISTS,
        help="Flash attention; the default was measured or is auto: off on a processor.",
    ),
    option(
        "--kv-type", type=click.Choice(["f16", "f32", "q8_0"]), multiple=True, callback=_one_type, section=SPECIALISTS,
        also=("-ctk", "--cache-type-k", "-ctv", "--cache-type-v"),
        help="Type of the target's cache, keys and values alike.",
    ),
    option(
        "--matmul", type=click.Choice(["auto", "refspec", "repack", "stored"]), default="auto", show_default=True,
        callback=or_old, section=SPECIALISTS,
        help="Who multiplies with the weights: refspec's fast kernels, llama.cpp with repacked weights, or llama.cpp "
        "with weights as stored. auto is refspec's where they work.",
    ),
    old_flag("--panels/--no-panels", "matmul", _panels_meant),
    old_flag("--repack/--no-repack", "matmul", lambda on: "repack" if on else "stored"),
    option(
        "-tb", "--threads-batch", type=click.IntRange(1), section=SPECIALISTS,
        help="Threads that check several guesses; as -t if not given.",
    ),
    option(
        "-td", "--threads-draft", type=click.IntRange(1), section=SPECIALISTS, also=("--spec-draft-threads",),
        help="Threads of the drafter; as -t if not given.",
    ),
    option(
        "--pair-rows/--no-pair-rows", default=None, section=SPECIALISTS,
        help="Run a single token beside a copy of itself: faster where `refspec tune` finds two cheaper than one.",
    ),
    option(
        "--drafter-kernels", type=click.Choice(["auto", "llama", "own"]), default="auto", show_default=True,
        section=SPECIALISTS,
        help="Who runs an EAGLE-3 drafter: llama.cpp, refspec's own kernels, or these for tiny ones only.",
    ),
    option(
        "--no-tune", is_flag=True, section=SPECIALISTS,
        help="Ignore what `refspec tune` stored for this pair, and what adaptive runs learned.",
    ),
)  # fmt: skip


tree_option = option(
    "--tree", metavar="N[:TOPK[:DEPTH]]", section=DRAFTING,
    help="Guess trees of N tokens, not chains; TOPK after each (4), DEPTH on a path (8).",
)  # fmt: skip


def draft_max_option(what: str, **how: Any) -> Callable[[Any], Any]:
    """`--draft-max`, the most guesses a step."""
    return option("--draft-max", section=DRAFTING, also=("--spec-draft-n-max",), help=what, **how)


def load(o: dict[str, Any], *, chooses: bool = False) -> Session:
    """The session that the model options ask for; `chooses`: it may draft adaptively where none says how much."""
    import refspec

    alike = (
        "n_ctx", "threads", "threads_batch", "threads_draft", "gpu_layers", "flash_attn", "kv_type", "matmul",
        "pair_rows", "reproducible", "lookup", "drafter_kernels",
    )  # fmt: skip
    asked = {name: o[name] for name in alike}
    asked |= {"draft_max": o.get("draft_max"), "tree": o.get("tree")}
    asked |= {"adaptive": None if chooses else bool(o["adaptive"]), "tuned": not o["no_tune"]}
    session = refspec.load(o["model"], o["drafter"], **asked)
    for said in session.notes:
        note(said)
    return session


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
            with open(path, "rb") as file:
                data = file.read(LONGEST + 1)
        except OSError as error:
            raise PromptError(f"{path}: {error.strerror or error}; name a text file with -f") from None
    else:
        where = "stdin"
        if sys.stdin is None or (path is None and sys.stdin.isatty()):  # None: the descriptor was closed
            raise click.UsageError("no prompt: give -p TEXT or -f FILE, or pipe one in")
        data = sys.stdin.buffer.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise PromptError(f"{where}: more than {LONGEST >> 20} MiB, which no context holds; give less")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{where}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; convert the text to UTF-8"
        ) from None
    return text if where == "-p" else text.removesuffix("\n").removesuffix("\r")
