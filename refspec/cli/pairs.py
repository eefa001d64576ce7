"""Options of the commands that measure several drafters on one target, and the models they name."""

from __future__ import annotations

from typing import Any

import click

from refspec.cli.group import options
from refspec.errors import UsageError

EXPERIMENTS = ("anchor", "grow")  # of `drafters.eagle3.Eagle3Drafter`

pair_options = options(
    click.option("-m", "--model", metavar="GGUF", help="Target model; without it the embedded pair is measured."),
    click.option(
        "-d", "--drafter", "drafters", metavar="PATH", multiple=True,
        help="Drafter: a GGUF, or a directory with config.json and safetensors. May be repeated.",
    ),
    click.option(
        "-c", "--ctx", "n_ctx", type=click.IntRange(0), default=0, help="Context in tokens; 0 is the model's own."
    ),
    click.option("-t", "--threads", type=click.IntRange(1), help="Threads of the target."),
    click.option("-ngl", "--gpu-layers", type=click.IntRange(-1), default=0, help="Target layers on the GPU, -1 for all."),
    click.option(
        "--strict", is_flag=True, help="The target in F32, no flash attention: its rounding depends on nothing else."
    ),
    click.option(
        "--anchor", "anchors", type=click.FloatRange(0, min_open=True), multiple=True, metavar="X",
        help="Measure each drafter once more with X added to the attention scores its chained rows give true rows "
        "(reference code). May be repeated.",
    ),
    click.option(
        "--grow", "growths", type=click.FloatRange(0, min_open=True), multiple=True, metavar="X",
        help="Measure each drafter once more with the state it feeds back resized at every depth, X times the size at the depth before; 1 "
        "holds the first size (reference code). May be repeated.",
    ),
)  # fmt: skip


def whole_numbers(text: str | None, option: str) -> list[int]:
    """The numbers of a comma-separated list, ascending, each once; UsageError for anything else."""
    try:
        found = sorted({int(part) for part in text.split(",")}) if text else []
    except ValueError:
        raise UsageError(f"{option} {text!r}: give whole numbers with commas, such as 128,256") from None
    if found and found[0] < 1:
        raise UsageError(f"{option} {text!r}: {found[0]} is not a length; give 1 or more")
    return found


def about(drafters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The switches of each drafter, and its experiments where it has any."""
    out: dict[str, dict[str, Any]] = {}
    for name, drafter in drafters.items():
        if not drafter.capture_layers:  # a draft model or lookup: no switches
            out[name] = {}
            continue
        out[name] = {key: getattr(drafter.config, key).value for key in ("feature_norm", "feedback", "residual")}
        out[name] |= {key: value for key in EXPERIMENTS if (value := getattr(drafter, key, 0.0))}
    return out
