"""`python docs/lab average`: between a target's weights before and after a training (WiSE-FT, Wortsman et al. 2022).

A short training for one purpose takes something from everything else, and small batches leave noise in the weights. The
mean of before and after keeps most of the purpose: the noise in it counts half, its loss a quarter. Only for weights of
which one was trained from the other (`train target --init`), or both from a third, not long ago: runs that parted early
average to nothing.
"""

from __future__ import annotations

from pathlib import Path

import click

from refspec.cli.command import Command
from refspec.cli.group import output_option
from refspec.cli.train import folder
from refspec.convert import convert_target
from refspec.errors import CheckpointError, UsageError
from refspec.train.start import WEIGHTS, read_weights
from refspec.train.target import hf_directory, hf_target_config
from refspec.train.tokenizer import load_tokenizer

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def average(first: Path, second: Path, out: Path, *, share: float = 0.5, outtype: str = "f16") -> None:
    """Write (1 - share) * first + share * second to `out/hf` and `out/target.gguf`; both are run folders or Hugging
    Face directories.

    Raises CheckpointError (files missing, or of models that differ), UsageError (share, out).
    """
    from safetensors.torch import save_file

    if not 0 <= share <= 1:
        raise UsageError(f"--share {share} is outside 0..1")
    folders = [hf_directory(run) for run in (first, second)]
    if out.resolve() in [p.resolve() for p in (first, second, *folders)]:
        raise UsageError(f"--output {out} is one of the two; name another folder")
    states = []
    for each in folders:
        if not (each / WEIGHTS).is_file():
            raise CheckpointError(
                f"{each / WEIGHTS}: no such file; name a run folder of `train target`, or a Hugging Face directory"
            )
        states.append(read_weights(each / WEIGHTS))
    if hf_target_config(folders[0] / "config.json") != hf_target_config(folders[1] / "config.json"):
        raise CheckpointError(
            f"{folders[1] / 'config.json'}: not the sizes of {folders[0]}; only weights of one model can be averaged"
        )
    if (
        load_tokenizer(folders[0] / "tokenizer.json").get_vocab()
        != load_tokenizer(folders[1] / "tokenizer.json").get_vocab()
    ):
        raise CheckpointError(
            f"{folders[1] / 'tokenizer.json'}: not that of {folders[0]}; only weights of one model can be averaged"
        )
    shapes = [{name: tuple(w.shape) for name, w in state.items()} for state in states]
    for name in sorted({*shapes[0], *shapes[1]}):
        if shapes[0].get(name) != shapes[1].get(name):
            raise CheckpointError(
                f"{folders[1] / WEIGHTS}: {name} is not as in {folders[0]}; only weights of one model can be averaged"
            )
    made = {
        name: ((1 - share) * w.float() + share * states[1][name].float()).contiguous() for name, w in states[0].items()
    }
    hf = out / "hf"
    hf.mkdir(parents=True, exist_ok=True)
    save_file(made, str(hf / WEIGHTS), metadata={"format": "pt"})
    for name in COPIED:
        if (folders[0] / name).is_file():
            (hf / name).write_bytes((folders[0] / name).read_bytes())
    convert_target(hf, out / "target.gguf", outtype)


@click.command("average", cls=Command)
@click.argument("before", type=folder)
@click.argument("after", type=folder)
@output_option("DIR", "Run folder to write.", type=folder)
@click.option(
    "--share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Of AFTER; the rest is BEFORE's."
)
@click.option("--outtype", default="f16", show_default=True, help="Weights of the GGUF: f32 f16 bf16 q8_0 q4_0.")
def command(before: Path, after: Path, out: Path, share: float, outtype: str) -> None:
    """Write the mean of a target's weights before and after a short training; exports OUT/hf and OUT/target.gguf.

    \b
        refspec train target --init runs/target/hf ... -o runs/tuned
        python docs/lab average runs/target runs/tuned -o runs/between

    BEFORE and AFTER are run folders or Hugging Face directories, one of them trained from the other. What a short
    training takes from the rest of the model, and the noise of its small batches, shrink more than what it was for.
    """
    average(before, after, out, share=share, outtype=outtype)
    click.echo(f"wrote {out / 'hf'} and {out / 'target.gguf'}: {1 - share:g} of {before}, {share:g} of {after}")
