"""`refspec convert`: a drafter checkpoint becomes a GGUF, or the reason why not and the option that decides."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refspec.cli.command import PATH, SPECIALISTS, note, option, options
from refspec.cli.group import OUTTYPES, bytes_bar, check_names_file, main, output_option
from refspec.errors import UsageError

if TYPE_CHECKING:
    from refspec.convert import Report


def _layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--layer-ids {value!r}: give whole numbers with commas between, such as 2,16,29") from None


_switch = partial(option, section=SPECIALISTS)
stock_options = options(
    _switch(
        "--prompts", type=PATH, metavar="FILE", help="With --stock: JSONL or one prompt a line; else built-in ones."
    ),
    _switch("--family", "families", multiple=True, metavar="NAME", help="With --stock: only this `benchmark` of them."),
    _switch(
        "--count", type=click.IntRange(1), default=12, show_default=True,
        help="With --stock: prompts to calibrate on, and others to measure on.",
    ),
    _switch(
        "-n", "--max-tokens", type=click.IntRange(2), default=64, show_default=True, also=("--n-predict",),
        help="With --stock: at most so many tokens per prompt.",
    ),
    _switch(
        "--draft-max", type=click.IntRange(1, 64), default=4, show_default=True, also=("--spec-draft-n-max",),
        help="With --stock: guesses per step.",
    ),
    _switch("-t", "--threads", type=click.IntRange(1), help="With --stock: threads of the runs."),
)  # fmt: skip


@main.command()
@click.argument("checkpoint", metavar="CHECKPOINT", type=PATH)
@option(
    "--target", type=PATH, metavar="GGUF|DIR",
    help="The model it drafts for: tokenizer, checks, default layers, embeddings it shares.",
)  # fmt: skip
@output_option("GGUF", "The file to write; it appears when it is complete.")
@option("--outtype", type=click.Choice(OUTTYPES), default="f16", show_default=True, help="Type of the matrices.")
@option(
    "--stock", "near", is_flag=True,
    help="Write the nearest file stock llama.cpp runs, and print how many guesses are lost with it. CHECKPOINT may be "
    "a drafter GGUF then.",
)  # fmt: skip
@option("--name", help="general.name of the file; the directory's if not given.")
@option("--json", "as_json", is_flag=True, help="Print what was resolved as one JSON object.")
@_switch("--feedback", type=click.Choice(["pre_norm", "post_norm"]), help="The state a guess hands on.")
@_switch("--feature-norm", type=click.Choice(["none", "concat", "per_state"]), help="Norm of the captured states.")
@_switch("--residual", type=click.Choice(["raw", "normed"]), help="What attention is added to.")
@_switch("--head-norm", type=click.Choice(["yes", "no"]), help="Whether there is a norm before lm_head.")
@_switch(
    "--layer-ids", callback=_layers, metavar="A,B,C", help="Captured layers as boundaries: b is what enters layer b."
)
@_switch("--rope-theta", type=click.FloatRange(0, min_open=True), help="RoPE base frequency.")
@_switch("--d2t", type=click.Choice(["offsets", "absolute"]), help="How the stored d2t is to be read.")
@_switch(
    "--ignore", multiple=True, metavar="NAME", help="A config key or tensor that does not matter; may be repeated."
)
@stock_options
def convert(
    checkpoint: str, target: str | None, out: str, outtype: str, head_norm: str | None, ignore: tuple[str, ...],
    name: str | None, near: bool, as_json: bool, **o: Any,
) -> None:  # fmt: skip
    """Make a GGUF of an EAGLE-3 or 3.1 drafter checkpoint.

    \b
        refspec convert CHECKPOINT_DIR --target target.gguf -o drafter.gguf
    A file for `llama-server -md`, whatever is lost with it, from a checkpoint or a GGUF:
        refspec convert drafter.gguf --target target.gguf --stock -o stock.gguf

    Every switch of the checkpoint is resolved and said, or refused with the option that decides it. Layouts:
    SafeAILab, SpecForge, specdrift, speculators, TorchSpec, NVIDIA ModelOpt, NeMo Automodel.
    """
    from refspec import named

    run = {key: o.pop(key) for key in ("prompts", "families", "count", "max_tokens", "draft_max", "threads")}
    given = {k: v for k, v in o.items() if v is not None}
    if head_norm is not None:
        given["head_norm"] = head_norm == "yes"
    if ignore:
        given["ignore"] = list(ignore)
    check_names_file(out)
    called = name or Path(checkpoint.removeprefix("hf:")).resolve().name
    checkpoint, target = str(named.local(checkpoint)), None if target is None else str(named.local(target))
    report: Report | None = None
    made: dict[str, Any] | None = None
    if Path(checkpoint).is_file():
        made = _nearest_of_file(checkpoint, target, out, outtype, near, [*given, *(["name"] if name else [])], run)
    elif near:
        report, made = _nearest_of_checkpoint(checkpoint, target, out, outtype, given, called, run)
    else:
        report = _converted(checkpoint, target, out, outtype, given, called)
    if as_json:
        record = _record(report) | ({"stock": made} if made else {}) if report else made
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    if report:
        click.echo("\n".join(report.lines()))
    if made:
        from refspec.evaluate.stock import lines

        click.echo("\n".join(lines(made)))


def _converted(
    checkpoint: str, target: str | None, out: str, outtype: str, given: dict[str, Any], called: str
) -> Report:
    from refspec.convert import convert_drafter

    with bytes_bar(called) as progress:
        return convert_drafter(checkpoint, target, out, outtype, given, name=called, progress=progress)


def _nearest_of_file(
    drafter: str, target: str | None, out: str, outtype: str, near: bool, given: list[str], run: dict[str, Any]
) -> dict[str, Any]:
    """Write the nearest drafter to a GGUF; UsageError where that is not what was asked for."""
    if not near:
        raise UsageError(
            f"{drafter}: is a file, not a checkpoint directory; `refspec recast` changes the types of a GGUF, --stock "
            "makes of a drafter the nearest one stock llama.cpp runs"
        )
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} is about checkpoints, and {drafter} is a GGUF; leave it out")
    return _nearest(_measured_on(target), drafter, out, outtype, **run)


def _nearest_of_checkpoint(
    checkpoint: str, target: str | None, out: str, outtype: str, given: dict[str, Any], called: str, run: dict[str, Any]
) -> tuple[Report, dict[str, Any] | None]:
    """Convert beside `out`, then write the nearest drafter there; the exact one where stock llama.cpp runs that."""
    from refspec.gguf.drafter_meta import STOCK_ARCH

    runs_on = _measured_on(target)
    with ExitStack() as stack:
        try:  # not in the system's temporary directory: the disk of the result has room for it
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".refspec-"))
        except OSError as error:
            raise UsageError(f"-o {out}: cannot be written there ({error.strerror or error})") from None
        exact = str(Path(folder) / "exact.gguf")
        report = _converted(checkpoint, target, exact, "f32", given, called)
        if report.arch != STOCK_ARCH:
            report.path = Path(checkpoint)  # what is printed of it is how the checkpoint was read
            return report, _nearest(runs_on, exact, out, outtype, name=checkpoint, **run)
    note("stock llama.cpp runs this drafter exactly: --stock changes nothing, nothing is lost")
    return _converted(checkpoint, target, out, outtype, given, called), None


def _measured_on(target: str | None) -> str:
    if target is None or not Path(target).is_file():
        raise UsageError("--stock counts kept guesses on the target: give it as a GGUF with --target")
    return target


def _nearest(
    target: str, drafter: str, out: str, outtype: str, *, prompts: str | None, families: tuple[str, ...], count: int,
    **o: Any,
) -> dict[str, Any]:  # fmt: skip
    """`make_stock` with what `stock_options` asked for."""
    from refspec.evaluate.prompts import halves
    from refspec.evaluate.stock import make_stock

    calibration, held_out = halves(prompts, families, count)
    return make_stock(
        target, drafter, out, calibration=calibration, held_out=held_out, outtype=outtype, progress=note, **o
    )


def _record(report: Report) -> dict[str, Any]:
    return {
        "file": str(report.path), "architecture": report.arch, "tensors": report.tensors, "bytes": report.nbytes,
        "resolved": {k: {"value": f.value, "source": f.source} for k, f in report.resolved.items()},
        "notes": report.notes,
    }  # fmt: skip
