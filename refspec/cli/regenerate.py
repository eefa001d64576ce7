"""`refspec train regenerate`: the target's own answers as training data for its drafters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refspec.cli.command import note
from refspec.cli.group import output_option
from refspec.cli.penalties import changed, penalty_options
from refspec.cli.train import device_option, folder, train
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties


@train.command()
@click.option(
    "--data", type=folder, required=True, help="Folder made by `train data` with the target's tokenizer: the prompts."
)
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), required=True, metavar="GGUF|DIR",
    help="The target: a GGUF, run by llama.cpp, or a folder of `train target` or in Hugging Face's layout, run by "
    "torch.",
)  # fmt: skip
@output_option("DIR", "Folder for the new data set.", type=folder)
@click.option("--tokens", type=click.IntRange(1), required=True, help="Size of the train split, prompts included.")
@click.option(
    "--temp", "temperature", type=click.FloatRange(0), default=0.7, show_default=True, help="Of the sampled answers."
)
@click.option(
    "--greedy-share", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Share of the prompts answered by argmax.",
)  # fmt: skip
@click.option(
    "--max-new", type=click.IntRange(1), default=192, show_default=True, help="Tokens after which an answer is cut."
)
@click.option(
    "--max-prompt", type=click.IntRange(1), default=600, show_default=True, help="Longer prompts are left out."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--parallel", type=click.IntRange(1),
    help="Texts decoded at once  [default: 32 with a GGUF, at most 256; 64 with a folder, 2048 on an accelerator]",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads of llama.cpp or torch.")
@click.option(
    "-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, help="With a GGUF: layers on the GPU, -1 for all."
)
@device_option
@penalty_options
def regenerate(
    data: Path, model: Path, out: Path, tokens: int, temperature: float, greedy_share: float, max_new: int,
    max_prompt: int, seed: int, parallel: int | None, threads: int | None, gpu_layers: int, device: str,
    **penalties: Any,
) -> None:  # fmt: skip
    """Let the target answer prompts: data for its drafters.

    \b
        refspec train regenerate --data runs/data -m runs/target/target.gguf -o runs/own --tokens 2000000
        refspec train drafter --data runs/own --target runs/target -o runs/drafters --steps 2200

    The answers are a data set like that of the prompts. Kill it at any time and give the same command again; with more
    --tokens it goes on from where it was. Penalties are off unless given: give those the model is used with.
    """
    from refspec import named

    model = Path(named.local(str(model)))
    given = click.get_current_context().get_parameter_source
    if not model.is_dir() and given("device") is not ParameterSource.DEFAULT:
        raise UsageError(f"--device does nothing with a GGUF ({model}), which llama.cpp runs; see --gpu-layers")
    if model.is_dir() and gpu_layers:
        raise UsageError(f"--gpu-layers does nothing with a folder ({model}), which torch runs; see --device")
    from refspec.train.regenerate import regenerate as make

    made = make(
        data, model, out, tokens=tokens, temperature=temperature, greedy_share=greedy_share, max_new=max_new,
        max_prompt=max_prompt, seed=seed, parallel=parallel, threads=threads, gpu_layers=gpu_layers, device=device,
        penalties=changed(Penalties(), penalties),
    )  # fmt: skip
    for split, m in made.items():
        click.echo(
            f"{split}: {m['records']} documents, {m['tokens']} tokens, {m['assistant']} the target's own,"
            f" {100 * m['ended']:.1f} % ended by themselves"
        )
        if m["generated"]:
            note(f"{split}: {m['generated']} tokens generated in this run, {m['tokens_per_second']:.0f} per second")
    if made["train"]["tokens"] < tokens:
        lack = f"--data has no more prompts: {made['train']['tokens']} tokens of {tokens}"
        note(f"{lack}; take another seed for a second answer to each")
