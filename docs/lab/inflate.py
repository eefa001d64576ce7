"""`python docs/lab inflate`: a small target with a large one's memory traffic, and still the same function.

For benchmarks only. A small trained model has real acceptance at a toy's cost, a large random one real cost at no
acceptance; this has both. What is added computes nothing: feed-forward rows whose gate and up weights are zero (silu(0)
* 0 = 0) and whose down columns are zero, and layers behind the last one whose attention output and down projection are
zero, so that the residual stream passes through them unchanged. The stream keeps its width, hence hidden states and
drafters fit as they are. The file says what it is (`refspec.inflated`, general.name) and is not to be taken for a
better model.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import click
import numpy as np

from refspec.cli.command import Command
from refspec.cli.group import bytes_bar, check_names_file, output_option
from refspec.cli.measure import json_option
from refspec.errors import UsageError
from refspec.gguf.blocks import Progress
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import OUTTYPES, TensorOut, Typed, copy_metadata, read_gguf_header, read_tensor, write_gguf

ARCHS = ("llama", "qwen2", "qwen3")  # dense, one feed-forward block per layer, one width for all layers
UNIT = 256  # feed-forward rows come in multiples of this: every quantized block is full
MAX_LAYERS = 48
KEY = "refspec.inflated"
_GATES, _DOWN, _OUTPUT = ("ffn_gate.weight", "ffn_up.weight"), "ffn_down.weight", "attn_output.weight"


def parameters(text: str) -> int:
    """300M, 1B, 1.5e8 as a number of parameters; UsageError for anything else."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([kKmMbBgG]?)", text.strip())
    try:
        number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()] if match else 0.0
    except ValueError:
        number = 0.0
    if not 1 <= number <= 1e12:
        raise UsageError(f"--params {text!r} is not a number of parameters; give 300M or 1B")
    return int(number)


def inflate(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    params: int,
    layers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `model` with about `params` parameters in `layers` layers (twice as many as it has, if not given) to `out`.

    Returns {file, params, layers, feed_forward, label}. Raises UsageError for a model that cannot be inflated,
    CheckpointError for a file.
    """
    info = read_gguf_header(model)
    arch, name = info.arch, f"{info.arch}.feed_forward_length"
    if arch not in ARCHS or any("exps" in tensor or "gate_inp" in tensor for tensor in info.tensors):
        raise UsageError(
            f"{info.path}: architecture {arch!r} cannot be inflated; take a dense one of {', '.join(ARCHS)}"
        )
    old, width = int(info.need(f"{arch}.block_count", int)), int(info.need(f"{arch}.embedding_length", int))
    hidden = int(info.need(name, int))
    if wrong := next((t for t in info.tensors.values() if t.type.lower() not in OUTTYPES), None):
        raise UsageError(
            f"{info.path}: tensor {wrong.name!r} is {wrong.type}, which refspec does not write; start from F16 or Q8_0"
        )
    layers = min(2 * old, MAX_LAYERS) if layers is None else layers
    if not old <= layers <= 512:
        raise UsageError(f"--layers {layers} is outside {old}..512; the model has {old}")
    sizes = {n: int(np.prod(t.shape)) for n, t in info.tensors.items()}
    last = f"blk.{old - 1}."
    extra = layers - old
    in_layer = sum(size for n, size in sizes.items() if n.startswith(last))
    fixed = sum(sizes.values()) + extra * in_layer - layers * 3 * width * hidden
    feed = max((params - fixed) // (layers * 3 * width) // UNIT * UNIT, -(-hidden // UNIT) * UNIT)
    grew = f"{old} to {layers} layers, feed-forward {hidden} to {feed}"
    label = f"inflated by refspec for benchmarks: {grew}, the same function"
    metadata: dict[str, Any] = dict(copy_metadata(info, ""))
    for key, value in ((f"{arch}.block_count", layers), (name, feed)):
        metadata[key] = Typed(value, *info.value_types[key])
    metadata |= {KEY: label, "general.name": f"{info.metadata.get('general.name', info.path.stem)} ({label})"}
    tensors = [_tensor(info, n, n, hidden, feed, identity=False) for n in info.tensors]
    for i in range(old, layers):
        tensors += [
            _tensor(info, n, f"blk.{i}." + n.removeprefix(last), hidden, feed, identity=True)
            for n in info.tensors
            if n.startswith(last)
        ]
    path = write_gguf(out, arch, metadata, tensors, progress)
    total = sum(int(np.prod(t.shape)) for t in tensors)
    return {"file": str(Path(path)), "params": total, "layers": layers, "feed_forward": feed, "label": label}


def _tensor(info: GgufInfo, source: str, name: str, hidden: int, feed: int, *, identity: bool) -> TensorOut:
    """A tensor padded with zeros where it meets the feed-forward width, zero where an identity layer ends."""
    t = info.tensors[source]
    shape = list(t.shape)
    axis = 0 if source.endswith(_GATES) else 1 if source.endswith(_DOWN) else None
    if axis is not None:
        shape[axis] = feed
    silent = identity and source.endswith((_DOWN, _OUTPUT, "attn_output.bias", "ffn_down.bias"))

    def load() -> np.ndarray:
        array = read_tensor(info, source)
        if silent:
            return np.zeros(shape, array.dtype)
        if axis is None:
            return array
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, feed - hidden)
        return np.pad(array, padding)

    return TensorOut(name, tuple(shape), t.type.lower(), load)


@click.command("inflate", cls=Command)
@click.argument("target", metavar="TARGET")
@output_option("GGUF", "The file to write.")
@click.option("--params", required=True, metavar="N", help="Parameters to reach, such as 300M or 1B.")
@click.option(
    "--layers", type=click.IntRange(1), help="Layers of the result; twice as many as TARGET has if not given."
)
@json_option
def command(target: str, out: str, params: str, layers: int | None, as_json: bool) -> None:
    """Pad TARGET with zeros and identity layers: the same function and drafters, a large model's memory traffic."""
    check_names_file(out)
    wanted = parameters(params)
    read_gguf_header(target)
    with bytes_bar("bytes written") as progress:
        made = inflate(target, out, params=wanted, layers=layers, progress=progress)
    click.echo(
        json.dumps(made) if as_json else f"{made['file']}: {made['params'] / 1e6:.0f} M parameters; {made['label']}"
    )
