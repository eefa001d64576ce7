"""Options of the commands that measure several drafters on one target, and the models they name."""

from __future__ import annotations

from typing import Any

import click

from refspec.cli.command import PATH, SPECIALISTS, old_flag, option, options, or_old
from refspec.cli.group import ctx_option, gpu_option, model_option, threads_option
from refspec.errors import UsageError

EXPERIMENTS = ("anchor", "grow")  # of `reference.eagle3.Eagle3Drafter`

pair_options = options(
    model_option,
    option(
        "-d", "--drafter", "drafters", type=PATH, metavar="MODEL", multiple=True, also=("-md", "--spec-draft-model"),
        help="Drafter: a GGUF, a directory with config.json and safetensors, or a name as of -m. May be repeated.",
    ),
    ctx_option,
    threads_option,
    gpu_option,
    option(
        "--reproducible", type=click.Choice(["f32"]), callback=or_old,
        help="f32: the target in F32 without flash attention, so that its rounding depends on nothing else.",
    ),
    old_flag("--strict", "reproducible", lambda on: "f32"),
    option(
        "--anchor", "anchors", type=click.FloatRange(0, min_open=True), multiple=True, metavar="X", section=SPECIALISTS,
        help="Measure each drafter once more with X added to the attention scores its guesses give true tokens "
        "(reference code). May be repeated.",
    ),
    option(
        "--grow", "growths", type=click.FloatRange(0, min_open=True), multiple=True, metavar="X", section=SPECIALISTS,
        help="Measure each drafter once more with the state it feeds back resized at every depth, X times the size at "
        "the depth before; 1 holds the first size (reference code). May be repeated.",
    ),
)  # fmt: skip


def strictly(o: dict[str, Any]) -> dict[str, Any]:
    """The options with `strict`, the name of --reproducible f32 in records."""
    return {name: value for name, value in o.items() if name != "reproducible"} | {"strict": bool(o["reproducible"])}


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
