"""`refspec convert`: a drafter checkpoint directory becomes a GGUF, or the reason why not and the option that decides."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refspec.cli.group import bytes_bar, check_names_file, main, note
from refspec.cli.stock import OUTTYPES, nearest, stock_options
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


@main.command()
@click.argument("checkpoint", metavar="CHECKPOINT_DIR")
@click.option(
    "--target", metavar="GGUF|DIR", help="The model it drafts for: tokenizer, checks, default layers, lent embeddings."
)
@click.option("-o", "--out", required=True, metavar="GGUF", help="The file to write; it appears when it is complete.")
@click.option("--outtype", type=click.Choice(OUTTYPES), default="f16", show_default=True, help="Type of the matrices.")
@click.option("--feedback", type=click.Choice(["pre_norm", "post_norm"]), help="The state a drafted row hands on.")
@click.option("--feature-norm", type=click.Choice(["none", "concat", "per_state"]), help="Norm of the captured states.")
@click.option("--residual", type=click.Choice(["raw", "normed"]), help="What attention is added to.")
@click.option("--head-norm", type=click.Choice(["yes", "no"]), help="Whether a norm stands before lm_head.")
@click.option(
    "--layer-ids", callback=_layers, metavar="A,B,C", help="Captured layers as boundaries: b is what enters layer b."
)
@click.option("--rope-theta", type=click.FloatRange(0, min_open=True), help="RoPE base frequency.")
@click.option("--d2t", type=click.Choice(["offsets", "absolute"]), help="How the stored d2t is to be read.")
@click.option(
    "--ignore", multiple=True, metavar="NAME", help="A config key or tensor that does not matter; may be repeated."
)
@click.option("--name", help="general.name of the file; the directory's if not given.")
@click.option(
    "--stock", "near", is_flag=True, help="The nearest file stock llama.cpp runs, and its measured loss of acceptance."
)
@stock_options("With --stock: ")
@click.option("--json", "as_json", is_flag=True, help="Print what was resolved as one JSON object.")
def convert(
    checkpoint: str,
    target: str | None,
    out: str,
    outtype: str,
    head_norm: str | None,
    ignore: tuple[str, ...],
    name: str | None,
    near: bool,
    as_json: bool,
    **o: Any,
) -> None:
    """Convert an EAGLE-3 or 3.1 drafter checkpoint to GGUF, every switch resolved or refused.

    \b
    Layouts: SafeAILab, SpecForge, specdrift, speculators, TorchSpec, NVIDIA ModelOpt, NeMo Automodel.
        refspec convert DIR --target target.gguf -o drafter.gguf
    A file for `llama-server -md`, whatever is lost with it:
        refspec convert DIR --target target.gguf --stock -o drafter.gguf
    """
    from refspec.convert import convert_drafter

    run = {key: o.pop(key) for key in ("prompts", "families", "count", "max_tokens", "draft_max", "threads")}
    given = {k: v for k, v in o.items() if v is not None}
    if head_norm is not None:
        given["head_norm"] = head_norm == "yes"
    if ignore:
        given["ignore"] = list(ignore)
    check_names_file(out)
    called = name or Path(checkpoint).resolve().name
    if near:
        report, made = _nearest(checkpoint, target, out, outtype, given, called, run)
    else:
        with bytes_bar(called) as progress:
            report, made = (
                convert_drafter(checkpoint, target, out, outtype, given, name=called, progress=progress),
                None,
            )
    if as_json:
        click.echo(json.dumps(_record(report) | ({"stock": made} if made else {}), ensure_ascii=False))
        return
    click.echo("\n".join(report.lines()))
    if made:
        from refspec.evaluate.stock import lines

        click.echo("\n".join(lines(made)))


def _nearest(
    checkpoint: str, target: str | None, out: str, outtype: str, given: dict[str, Any], called: str, run: dict[str, Any]
) -> tuple[Report, dict[str, Any] | None]:
    """Convert beside `out`, then write the nearest drafter there; the exact one where stock llama.cpp runs that."""
    from refspec.convert import convert_drafter
    from refspec.gguf.drafter_meta import STOCK_ARCH

    if target is None or not Path(target).is_file():
        raise UsageError("--stock measures acceptance on the target: give it as a GGUF with --target")
    with ExitStack() as stack:
        try:  # not in the system's temporary directory: the disk of the result has room for it
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=Path(out).parent, prefix=".refspec-"))
        except OSError as error:
            raise UsageError(f"-o {out}: cannot be written there ({error.strerror or error})") from None
        exact = str(Path(folder) / "exact.gguf")
        with bytes_bar(called) as progress:
            report = convert_drafter(checkpoint, target, exact, "f32", given, name=called, progress=progress)
        if report.arch != STOCK_ARCH:
            report.path = Path(checkpoint)  # what is printed of it is how the checkpoint was read
            return report, nearest(target, exact, out, outtype, name=checkpoint, **run)
    note("stock llama.cpp runs this drafter exactly: --stock changes nothing, nothing is lost")
    with bytes_bar(called) as progress:
        return convert_drafter(checkpoint, target, out, outtype, given, name=called, progress=progress), None


def _record(report: Report) -> dict[str, Any]:
    return {
        "file": str(report.path), "architecture": report.arch, "tensors": report.tensors, "bytes": report.nbytes,
        "resolved": {k: {"value": f.value, "source": f.source} for k, f in report.resolved.items()}, "notes": report.notes,
    }  # fmt: skip
