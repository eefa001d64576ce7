"""`refspec train`: data, target, drafter. Needs the `train` extra; each command resumes where a kill left it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refspec.cli.command import options
from refspec.cli.group import main, output_option
from refspec.cli.train_gguf import DEFAULT_VOCAB, gguf_drafter, gguf_options, without_gguf
from refspec.errors import UsageError

OUTTYPE = "f16"  # where the target is a training run
folder = click.Path(file_okay=False, path_type=Path)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where it is trained.",
)  # fmt: skip
shared_options = options(
    output_option("DIR", "Run folder: checkpoints, log, exports.", type=folder),
    click.option("--seed", type=int, default=1, show_default=True),
    click.option(
        "--batch-tokens", type=click.IntRange(1024), default=4096, show_default=True,
        help="Tokens in a step, a multiple of 1024; an accelerator wants more than a processor.",
    ),
    click.option("-t", "--threads", type=click.IntRange(1), help="Torch threads."),
    click.option("--compile/--no-compile", "compiled", default=False, help="Fuse with torch.compile (a C++ compiler)."),
    click.option(
        "--lr-scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
        help="Times the learning rates; below 1 when starting from trained weights.",
    ),
    device_option,
    click.option("--outtype", help="Weights of the GGUF: f32 f16 bf16 q8_0 q4_0; q8_0 with -m, else f16."),
)  # fmt: skip


def steps_option(required: bool) -> Any:
    """How long a training is."""
    return click.option("--steps", type=click.IntRange(1), required=required, help="Steps of --batch-tokens tokens.")


def data_option_if(required: bool) -> Any:
    """Folders of prepared text."""
    return click.option(
        "--data", type=folder, required=required, multiple=True,
        help="Folder made by `train data`; several are read in turn, the first has the held-out text.",
    )  # fmt: skip


run_options, data_option = options(shared_options, steps_option(True)), data_option_if(True)


@main.group()
def train() -> None:
    """Train a target and its drafters.

    \b
        refspec train data CORPUS.jsonl -o runs/data
        refspec train target --data runs/data -o runs/target --steps 3800
        refspec train drafter --data runs/data --target runs/target -o runs/drafters --steps 2200 --twin

    A drafter learns best from what its target says: `refspec train regenerate` makes such data of prompts and a target.
    Kill a run at any time and give the same command again: it goes on from its last checkpoint.
    """
    needed = ["torch", "tokenizers", "safetensors", "tqdm"]
    if click.get_current_context().invoked_subcommand == "regenerate":  # the model runs in llama.cpp
        needed = ["tokenizers", "tqdm"]
    missing = [name for name in needed if not _installed(name)]
    if missing:
        raise UsageError(f"training needs {', '.join(missing)}; from a checkout: `.venv/bin/pip install -e '.[train]'`")


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


@train.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option("DIR", "Folder for tokenizer.json and token arrays.", type=folder)
@click.option("--vocab", type=click.IntRange(300, 65536), default=4096, show_default=True, help="Tokenizer entries.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--mix", type=click.Choice(["broad", "chat", "tasks", "epochs"]), default="broad", show_default=True,
    help="How often each source is seen: broad to learn the language, chat or tasks (more Python) for the last part of "
    "a training, epochs where that is seen many times.",
)  # fmt: skip
@click.option(
    "--tokenizer", "tokenizer_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A tokenizer.json to keep instead of training one.",
)  # fmt: skip
@click.option(
    "--texts", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Plain text to read besides, JSONL of `text` (may be .xz): training part only.",
)  # fmt: skip
@click.option(
    "--without", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Benchmark prompts (JSONL): paragraphs of --texts that share 13 words in a row with them are left out.",
)  # fmt: skip
def data(
    corpus: Path, out: Path, vocab: int, seed: int, mix: str, tokenizer_file: Path | None, texts: Path | None,
    without: Path | None,
) -> None:  # fmt: skip
    """Train a tokenizer on a corpus, and pack its conversations.

    \b
        refspec train data CORPUS.jsonl -o runs/data

    CORPUS is JSONL of `messages`, may be .xz.
    """
    from refspec.train.data import MIXES, prepare

    if without is not None and texts is None:
        raise UsageError("--without does nothing without --texts FILE")
    made = prepare(
        corpus, out, vocab_size=vocab, seed=seed, weights=MIXES[mix], tokenizer_file=tokenizer_file, texts=texts,
        without=without,
    )  # fmt: skip
    for split, counts in made.items():
        click.echo(f"{split}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))


@train.command()
@data_option
@run_options
@click.option("--layers", type=click.IntRange(4), default=14, show_default=True)
@click.option("--width", type=click.IntRange(32), default=192, show_default=True)
@click.option("--heads", type=click.IntRange(1), default=3, show_default=True, help="Query heads of 64.")
@click.option("--ffn", type=click.IntRange(32), default=512, show_default=True)
@click.option(
    "--init", type=folder,
    help="Hugging Face directory to start from: weights only, the same sizes; --ffn and --layers may be larger.",
)  # fmt: skip
@click.option(
    "--rows", type=click.Choice(["cut", "whole"]), default="cut", show_default=True,
    help="cut: rows of 256, then 1024 tokens, of the packed text; whole: rows of 512, then 1024, of whole "
    "conversations.",
)  # fmt: skip
@click.option(
    "--weight-decay", type=click.FloatRange(0), default=0.01, show_default=True,
    help="Of the matrices; more of it where the same text is seen many times.",
)  # fmt: skip
@click.option(
    "--finish", type=folder,
    help="Folder made by `train data` that the last part of the steps reads, instead of --data.",
)  # fmt: skip
@click.option(
    "--finish-from", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.6, show_default=True,
    help="Share of the steps after which --finish is read.",
)  # fmt: skip
def target(data: tuple[Path, ...], out: Path, layers: int, width: int, heads: int, ffn: int, **o: Any) -> None:
    """Train a Llama-architecture chat model.

    \b
        refspec train target --data runs/data -o runs/target --steps 3800

    Exports OUT/hf and OUT/target.gguf.
    """
    given = click.get_current_context().get_parameter_source
    if o["finish"] is None and given("finish_from") is not ParameterSource.DEFAULT:
        raise UsageError("--finish-from does nothing without --finish DIR")
    from refspec.train.model import TargetConfig
    from refspec.train.target import train_target
    from refspec.train.tokenizer import load_tokenizer

    config = TargetConfig(
        vocab_size=load_tokenizer(data[0] / "tokenizer.json").get_vocab_size(), n_layers=layers, hidden_size=width,
        n_heads=heads, intermediate_size=ffn,
    )  # fmt: skip
    _print(train_target(_one_or_more(data), out, config=config, **o | {"outtype": o["outtype"] or OUTTYPE}))


@train.command()
@gguf_options
@data_option_if(False)
@click.option(
    "--target", "target_run", type=folder,
    help="Run folder of `train target`, or a Hugging Face directory: what `refspec export --format hf` makes of a "
    "GGUF.",
)  # fmt: skip
@shared_options
@steps_option(False)
@click.option("--depth", type=click.IntRange(1, 16), default=3, show_default=True, help="Training-time-test steps.")
@click.option("--draft-vocab", type=click.IntRange(16), help="Most frequent tokens (3072; with -m 8192).")
@click.option(
    "--feature-norm", type=click.Choice(["none", "concat", "per_state"]), default="per_state", show_default=True
)
@click.option("--feedback", type=click.Choice(["pre_norm", "post_norm"]), default="post_norm", show_default=True)
@click.option("--residual", type=click.Choice(["raw", "normed"]), default="raw", show_default=True)
@click.option(
    "--attention-reg", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Weight of the attention that chained rows give the chain's own tokens, added to the loss.",
)  # fmt: skip
@click.option(
    "--teacher-temp", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
    help="Temperature of the target's distribution that is learned; below 1 its first choice counts more, which is "
    "what greedy drafts are judged by.",
)  # fmt: skip
@click.option("--ffn", type=click.IntRange(32), help="Feed-forward channels; the target's if not given.")
@click.option(
    "--init", type=folder,
    help="Drafters of the same names and sizes to start from, --ffn may be larger: their run folder, or one with "
    "exports NAME/ in the speculators layout.",
)  # fmt: skip
@click.option("--layer-ids", help="Captured boundaries, such as 2,7,11; the default is 2, n/2, n-3.")
@click.option(
    "--rows", type=click.Choice(["cut", "whole"]), default="cut", show_default=True,
    help="cut: rows of 512 tokens of the packed text; whole: of whole conversations, 512 and 1024 tokens in turn.",
)  # fmt: skip
@click.option("--twin", is_flag=True, help="Also train plain EAGLE-3 (none, pre_norm, raw) on the same batches.")
def drafter(
    model: str | None, data: tuple[Path, ...], target_run: Path | None, steps: int | None, draft_vocab: int | None,
    layer_ids: str | None, out: Path, **o: Any,
) -> None:  # fmt: skip
    """Train an EAGLE-3 drafter by training-time test.

    \b
        refspec train drafter -m target.gguf -o runs/drafter --hours 3 --twin
        refspec train drafter --data runs/data --target runs/target -o runs/drafters --steps 2200

    For a GGUF (-m): the model answers prompts, llama.cpp shows its states, and only the drafter is in torch. For a
    target of `train target`: on prepared text. Exports OUT/NAME (speculators layout) and OUT/NAME.gguf.
    """
    try:
        ids = tuple(int(i) for i in layer_ids.split(",")) if layer_ids else None
    except ValueError:
        raise UsageError(f"--layer-ids {layer_ids!r}: give numbers with commas, such as 2,7,11") from None
    of_run = {"--data": data, "--target": target_run, "--steps": steps, "--init": o["init"]}
    if model is not None:
        if wrong := [name for name, value in of_run.items() if value]:
            raise UsageError(f"{', '.join(wrong)}: for a target of `train target`, not with -m; leave them out")
        gguf_drafter(model, out, o | {"draft_vocab": draft_vocab or DEFAULT_VOCAB, "layer_ids": ids})
        return
    if missing := [name for name in ("--data", "--target", "--steps") if not of_run[name]]:
        raise UsageError(f"give -m MODEL.gguf, or {', '.join(missing)} for a target of `train target`")
    assert target_run is not None and steps is not None
    drafters_of_run(data, target_run, out, draft_vocab or 3072, ids, steps=steps, **without_gguf(o))


def drafters_of_run(
    data: tuple[Path, ...], target_run: Path, out: Path, draft_vocab: int, ids: tuple[int, ...] | None, *, depth: int,
    feature_norm: str, feedback: str, residual: str, attention_reg: float, ffn: int | None, twin: bool, **o: Any,
) -> None:  # fmt: skip
    """Train the drafters of a run of `train target`."""
    from refspec.train.drafters import drafter_for, train_drafters

    switches = {"feature_norm": feature_norm, "feedback": feedback, "residual": residual}
    variants = {feedback: drafter_for(target_run, draft_vocab, ids, ffn=ffn, attention_reg=attention_reg, **switches)}
    if twin:
        plain = {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw"}
        if plain == switches:
            raise UsageError("--twin would train the same variant twice; leave it out")
        name = "twin" if feedback == "pre_norm" else "pre_norm"
        variants[name] = drafter_for(target_run, draft_vocab, ids, ffn=ffn, **plain)
    o["outtype"] = o["outtype"] or OUTTYPE
    _print(train_drafters(_one_or_more(data), target_run, out, variants, depth=depth, **o))


def _one_or_more(folders: tuple[Path, ...]) -> Path | tuple[Path, ...]:
    return folders[0] if len(folders) == 1 else folders


def _print(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        click.echo(f"{name}: {value}")
