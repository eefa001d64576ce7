"""`python docs/lab convert-speed`: memory and time of `refspec convert` on a made-up drafter, beside copying the file.

Each run is a process of its own, so that its peak of resident memory is its own too. What is copied is the same file,
read and written once as the conversion reads and writes once; both end with the data on the disk. The bars are the
project's: 1 GB of memory above the input, and half the speed of copying.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from refspec.cli.command import Command, note
from refspec.cli.measure import json_option
from refspec.errors import RefspecError, UsageError

MEMORY_BAR = 1e9  # bytes
SPEED_BAR = 0.5  # of the speed of copying
HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, DRAFT_VOCAB = 4096, 32, 8, 14336, 32000  # a drafter for an 8B Llama
_UNIT = 1 << 22  # elements written at a time


def shapes(size: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a SpecForge checkpoint of about `size` bytes in bfloat16: width first, then vocabulary."""
    scale = min(max(size / 2e9, 1e-6) ** 0.5, 1.0)
    h = max(int(HIDDEN * scale) // 256 * 256, 256)
    f, draft = h * INTERMEDIATE // HIDDEN, min(DRAFT_VOCAB, max(int(DRAFT_VOCAB * scale), 256))
    q, kv = h, h * KV_HEADS // HEADS
    block = "midlayer."
    out = {
        "fc.weight": (h, 3 * h),
        "norm.weight": (h,),
        "lm_head.weight": (draft, h),
        f"{block}input_layernorm.weight": (h,),
        f"{block}hidden_norm.weight": (h,),
        f"{block}post_attention_layernorm.weight": (h,),
        f"{block}self_attn.q_proj.weight": (q, 2 * h),
        f"{block}self_attn.k_proj.weight": (kv, 2 * h),
        f"{block}self_attn.v_proj.weight": (kv, 2 * h),
        f"{block}self_attn.o_proj.weight": (h, q),
        f"{block}mlp.gate_proj.weight": (f, h),
        f"{block}mlp.up_proj.weight": (f, h),
        f"{block}mlp.down_proj.weight": (h, f),
    }
    used = 2 * sum(int(np.prod(s)) for s in out.values())
    out["embed_tokens.weight"] = (max(int((size - used) / 2 / h), draft), h)  # the rest is vocabulary
    return out


def write_checkpoint(folder: Path, size: float) -> int:
    """A random checkpoint of about `size` bytes, written block by block; returns its bytes."""
    held = shapes(size)
    (h, _), (vocab, _), (draft, _) = held["fc.weight"], held["embed_tokens.weight"], held["lm_head.weight"]
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": h,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": h // HEADS,
        "intermediate_size": held["midlayer.mlp.up_proj.weight"][0],
        "vocab_size": vocab,
        "draft_vocab_size": draft,
        "target_hidden_size": h,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 15, 28]},
    }
    header: dict[str, Any] = {}
    at = 0
    for name, shape in held.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    header["d2t"] = {"dtype": "I64", "shape": [draft], "data_offsets": [at, at + 8 * draft]}
    header["t2d"] = {"dtype": "BOOL", "shape": [vocab], "data_offsets": [at + 8 * draft, at + 8 * draft + vocab]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Patterns of bfloat16 between 0.004 and 1, shuffled: what weights look like to the converter, made at the speed of
    # the disk.
    pattern = np.random.default_rng(0).integers(0x3B80, 0x3F80, _UNIT, dtype=np.uint16)
    pattern[::2] |= 0x8000
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in (int(np.prod(shape)) for shape in held.values()):
            while left:
                file.write(pattern[: min(left, _UNIT)].data)
                left -= min(left, _UNIT)
        file.write(np.zeros(draft, np.int64).tobytes() + (np.arange(vocab) < draft).tobytes())
    (folder / "config.json").write_text(json.dumps(config))
    return (folder / "model.safetensors").stat().st_size


def measure(
    *,
    size: float,
    outtype: str,
    repeat: int,
    folder: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Convert and copy a synthetic drafter of `size` bytes in turn, `repeat` times; every number `table` prints.

    Everything is written below `folder` (the system's temporary directory) and removed. Raises `UsageError` without
    room.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="refspec-bench-") as name:
            return _measure(Path(name), size, outtype, repeat, progress)
    except OSError as error:
        raise UsageError(
            f"{folder or tempfile.gettempdir()}: cannot be written ({error.strerror or error}); name another with --dir"
        ) from None


def _measure(home: Path, size: float, outtype: str, repeat: int, progress: Callable[[str], None]) -> dict[str, Any]:
    wanted, free = size * (2 + {"f32": 2.0}.get(outtype, 1.0)), shutil.disk_usage(home).free
    if free < wanted * 1.1:
        raise UsageError(
            f"{home.parent}: {free / 1e9:.1f} GB are free, {wanted * 1.1 / 1e9:.1f} are needed; give --size or --dir"
        )
    progress(f"writing a checkpoint of {size / 1e9:.2f} GB")
    (home / "checkpoint").mkdir()
    written = write_checkpoint(home / "checkpoint", size)
    source = home / "checkpoint" / "model.safetensors"
    idle = _run("import refspec.convert")
    copied, converted, peaks = [], [], []
    for turn in range(repeat):
        progress(f"run {turn + 1} of {repeat}")
        copied.append(_run(_COPY.format(source=str(source), out=str(home / "copy")))["seconds"])
        (home / "copy").unlink()
        run = _run(_CONVERT.format(folder=str(home / "checkpoint"), out=str(home / "d.gguf"), outtype=outtype))
        converted.append(run["seconds"])
        peaks.append(run["peak"])
        result = (home / "d.gguf").stat().st_size
        (home / "d.gguf").unlink()
    speed = median(c / t for c, t in zip(copied, converted, strict=True))
    return {
        "checkpoint_bytes": written,
        "gguf_bytes": result,
        "outtype": outtype,
        "repeat": repeat,
        "copy_seconds": copied,
        "convert_seconds": converted,
        "speed_of_copying": speed,
        "peak_resident_bytes": max(peaks),
        "idle_resident_bytes": idle["peak"],
        "memory_bar": MEMORY_BAR,
        "speed_bar": SPEED_BAR,
        "within": max(peaks) <= MEMORY_BAR and speed >= SPEED_BAR,
    }


_BEFORE = "import json, os, resource, sys, time\nseconds = 0.0\n"
_AFTER = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
if os.path.exists("/proc/self/status"):  # there ru_maxrss begins with what the process that started this one held
    with open("/proc/self/status") as status:
        peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak": peak}))
"""
_COPY = """
with open({source!r}, "rb") as a, open({out!r}, "wb") as b:
    began = time.perf_counter()
    while block := a.read(1 << 20):
        b.write(block)
    b.flush(); os.fsync(b.fileno())
    seconds = time.perf_counter() - began
"""
_CONVERT = """
from refspec.convert import convert_drafter
began = time.perf_counter()
convert_drafter({folder!r}, None, {out!r}, {outtype!r})
with open({out!r}, "rb+") as file:
    os.fsync(file.fileno())
seconds = time.perf_counter() - began
"""


def _run(body: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + body + _AFTER], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RefspecError(f"convert-speed: {(done.stderr.strip().splitlines() or ['the process ended'])[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(m: dict[str, Any]) -> list[str]:
    """The lines that the command prints, from the dictionary of `measure`."""

    def rate(seconds: float) -> str:
        return f"{m['checkpoint_bytes'] / 1e6 / seconds:.0f} MB/s"

    copy, convert = median(m["copy_seconds"]), median(m["convert_seconds"])
    fast = "meets" if m["speed_of_copying"] >= m["speed_bar"] else "MISSES"
    small = "meets" if m["peak_resident_bytes"] <= m["memory_bar"] else "MISSES"
    return [
        f"checkpoint       {m['checkpoint_bytes'] / 1e9:.2f} GB (BF16) to {m['gguf_bytes'] / 1e9:.2f} GB "
        f"({m['outtype']}), {m['repeat']} runs of each",
        f"copying it       {copy:.2f} s (median), {rate(copy)}",
        f"converting it    {convert:.2f} s (median), {rate(convert)}",
        f"speed            {m['speed_of_copying']:.2f} of copying (median of pairs): {fast} the bar of "
        f"{m['speed_bar']:g}",
        f"resident memory  {m['peak_resident_bytes'] / 1e6:.0f} MB at its peak, {m['idle_resident_bytes'] / 1e6:.0f} "
        f"MB of it before any file: {small} the bar of {m['memory_bar'] / 1e6:.0f} MB",
    ]


@click.command("convert-speed", cls=Command)
@click.option(
    "--size",
    type=click.FloatRange(0.001),
    default=2.0,
    show_default=True,
    help="Gigabytes of the synthetic checkpoint.",
)
@click.option("--outtype", default="f16", show_default=True, help="Type of the matrices: f32 f16 bf16 q8_0 q4_0.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Runs of either kind, in turn.")
@click.option("--dir", "folder", metavar="DIR", help="Where to write; about three times the size must be free.")
@json_option
@click.pass_context
def command(ctx: click.Context, size: float, outtype: str, repeat: int, folder: str | None, as_json: bool) -> None:
    """Memory and speed of `refspec convert` beside copying the file; exit 1 below the bars."""
    measured = measure(size=size * 1e9, outtype=outtype, repeat=repeat, folder=folder, progress=note)
    click.echo(json.dumps(measured) if as_json else "\n".join(table(measured)))
    ctx.exit(0 if measured["within"] else 1)
