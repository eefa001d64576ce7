"""`refspec convert`: a drafter checkpoint directory becomes a GGUF, or the reason why not and the option that decides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from refspec.cli.group import main
from refspec.errors import UsageError

_OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def _layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(part) for part in value.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--layer-ids {value!r}: give whole numbers with commas between, such as 2,16,29") from None


@main.command()
@click.argument("checkpoint", metavar="CHECKPOINT_DIR")
@click.option("--target", metavar="GGUF|DIR", help="The model it drafts for: tokenizer, checks, default layers, lent embeddings.")
@click.option("-o", "--out", required=True, metavar="GGUF", help="The file to write; it appears when it is complete.")
@click.option("--outtype", type=click.Choice(_OUTTYPES), default="f16", show_default=True, help="Type of the matrices.")
@click.option("--feedback", type=click.Choice(["pre_norm", "post_norm"]), help="The state a drafted row hands on.")
@click.option("--feature-norm", type=click.Choice(["none", "concat", "per_state"]), help="Norm of the captured states.")
@click.option("--residual", type=click.Choice(["raw", "normed"]), help="What attention is added to.")
@click.option("--head-norm", type=click.Choice(["yes", "no"]), help="Whether a norm stands before lm_head.")
@click.option("--layer-ids", callback=_layers, metavar="A,B,C", help="Captured layers as boundaries: b is what enters layer b.")
@click.option("--rope-theta", type=click.FloatRange(0, min_open=True), help="RoPE base frequency.")
@click.option("--d2t", type=click.Choice(["offsets", "absolute"]), help="How the stored d2t is to be read.")
@click.option("--ignore", multiple=True, metavar="NAME", help="A config key or tensor that does not matter; may be repeated.")
@click.option("--name", help="general.name of the file; the directory's if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print what was resolved as one JSON object.")
def convert(
    checkpoint: str,
    target: str | None,
    out: str,
    outtype: str,
    head_norm: str | None,
    ignore: tuple[str, ...],
    name: str | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Convert an EAGLE-3 or 3.1 drafter checkpoint to GGUF, every switch resolved or refused.

    \b
    Layouts: SafeAILab, SpecForge, specdrift, speculators, TorchSpec, NVIDIA ModelOpt, NeMo Automodel.
        refspec convert DIR --target target.gguf -o drafter.gguf
    """
    from refspec.convert import convert_drafter

    given = {k: v for k, v in overrides.items() if v is not None}
    if head_norm is not None:
        given["head_norm"] = head_norm == "yes"
    if ignore:
        given["ignore"] = list(ignore)
    if Path(out).is_dir():
        raise UsageError(f"-o {out}: is a directory; name the file to write")
    with _bar(Path(checkpoint).name) as progress:
        report = convert_drafter(checkpoint, target, out, outtype, given, name=name, progress=progress)
    if not as_json:
        click.echo("\n".join(report.lines()))
        return
    click.echo(
        json.dumps({
            "file": str(report.path), "architecture": report.arch, "tensors": report.tensors, "bytes": report.nbytes,
            "resolved": {k: {"value": f.value, "source": f.source} for k, f in report.resolved.items()}, "notes": report.notes,
        })
    )  # fmt: skip


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar in bytes on stderr, shown once the size of the file is known."""
    with ExitStack() as stack:
        bars: list[Any] = []

        def progress(nbytes: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=total, label=label, file=sys.stderr)))
            bars[0].update(nbytes)

        yield progress
