"""`refspec train drafter -m MODEL.gguf`: its options, the plan that is printed first, and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refspec.cli.command import GGUF, PATH, note, option, options
from refspec.errors import UsageError

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DEFAULT_TOKENS, DEFAULT_VOCAB = 400_000, 8192

gguf_options = options(
    option("-m", "--model", type=PATH, section=GGUF, help="The target, any GGUF that llama.cpp runs, or its name."),
    option(
        "--hours", type=click.FloatRange(0, min_open=True), section=GGUF,
        help="Time to spend; tokens and epochs follow from what each stage costs here.",
    ),
    option(
        "--tokens", type=click.IntRange(1), section=GGUF,
        help=f"Tokens of answers, prompts included, where --hours is not given ({DEFAULT_TOKENS:,}).",
    ),
    option("--epochs", type=click.FloatRange(0, min_open=True), section=GGUF, help="Times they are read (3)."),
    option(
        "--prompts", type=FILE, section=GGUF,
        help="JSONL with messages, turns, prompt or text, or one prompt a line; else the built-in ones.",
    ),
    option("--max-new", type=click.IntRange(1), section=GGUF, help="Longest answer in tokens (256)."),
    option("--max-prompt", type=click.IntRange(1), section=GGUF, help="Longest prompt in tokens (512)."),
    option("--greedy-share", type=click.FloatRange(0, 1), section=GGUF, help="Share of greedy answers (0.5)."),
    option("--parallel", type=click.IntRange(1, 256), default=32, section=GGUF, help="Answers at once (32)."),
    option("-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, section=GGUF, help="Layers on the GPU."),
)  # fmt: skip
NAMES = ("hours", "tokens", "epochs", "prompts", "max_new", "max_prompt", "greedy_share", "parallel", "gpu_layers")
OF_PLAN = (
    "depth",
    "draft_vocab",
    "ffn",
    "feature_norm",
    "feedback",
    "residual",
    "twin",
    "layer_ids",
    "teacher_temp",
    "seed",
)


def without_gguf(o: dict[str, Any]) -> dict[str, Any]:
    """The options of the other route; UsageError where one was given that is for a GGUF only."""
    defaults = {"parallel": 32, "gpu_layers": 0}
    if wrong := [name for name in NAMES if o[name] != defaults.get(name)]:
        raise UsageError(f"--{wrong[0].replace('_', '-')} is for a GGUF; name it with -m")
    return {name: value for name, value in o.items() if name not in NAMES}


def gguf_drafter(name: str, out: Path, o: dict[str, Any]) -> None:
    """Train and say what was reached."""
    from refspec import named
    from refspec.train.budget import Plan
    from refspec.train.from_gguf import train_from_gguf
    from refspec.train.outcome import described

    model = Path(named.model(name))
    if o["hours"] is not None and (o["tokens"] or o["epochs"]):
        raise UsageError("--hours excludes --tokens and --epochs, which follow from it; leave one of them out")
    renamed = {"greedy_share": "greedy"}
    fields = ("tokens", "epochs", "max_new", "max_prompt", "greedy_share")
    given = {renamed.get(name, name): o[name] for name in fields if o[name] is not None}
    plan = Plan(**given, **{name: o[name] for name in OF_PLAN})
    figures = train_from_gguf(
        model, out, plan, hours=o["hours"], prompts=o["prompts"], parallel=o["parallel"], threads=o["threads"],
        gpu_layers=o["gpu_layers"], device=o["device"], outtype=o["outtype"] or "q8_0", tell=note,
    )  # fmt: skip
    for made in [n for n in ("drafter", "drafter-plain") if f"{n}_loss" in figures]:
        click.echo("\n".join(described(made, figures)))
    note(f'try it: refspec generate -m {name} -d {out / "drafter.gguf"} --compare -p "..."')
