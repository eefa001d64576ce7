"""Whether llama.cpp's weights laid out for AMX can be multiplied here, or end the process.

A llama.cpp built for a processor with AMX (Intel's matrix tiles) lays out quantized weights for it. In some builds the
first product with them is a segmentation fault (seen with GCC 12, at the load of the tile configuration; llama.cpp
issue 20824). Pull request 26954 there names two causes, not checked here: compilers that drop the stores filling that
configuration, kernels that give tiles only to threads that ask. No flag tells such a build from a good one, so one
product is tried in a child process, once per build and processor; the answer is kept in the user's cache directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from refspec.gguf.io import TensorOut, read_gguf_header, write_gguf
from refspec.llama import api
from refspec.llama.probe_cache import remembered

WIDTH, VOCAB = 64, 64  # tiles take matrices with a multiple of 32 rows
ROWS = (1, 3, 40)  # one row, a few, more than a tile
PATIENCE = 60  # seconds for the child; a start of Python and llama.cpp takes one
REFUSED = (
    "this llama.cpp would end the process where weights are laid out anew: its AMX kernels crash on this processor; leave --repack out"
    " (repack=None), or install a llama.cpp built without them"
)


@cache
def repacking_works() -> bool:
    """Whether weights may be laid out anew. At once True for a llama.cpp without AMX;

    else what the child process showed.
    """
    if b"AMX_INT8 = 1" not in api.system_info():
        return True
    return remembered("amx", [], _tried, bool)


def _tried() -> bool:
    if not sys.executable:
        return False
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.gguf"
        write_probe(file)
        try:
            child = subprocess.run(
                [sys.executable, "-m", "refspec.llama.amx", str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return False
    return child.returncode == 0


def write_probe(file: Path, *, width: int = WIDTH, outtype: str = "q8_0") -> None:
    """A Llama model of one layer and `width` channels, its matrices in a type of `formats.gguf_io.OUTTYPES`, without a
    tokenizer.
    """
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> TensorOut:
        values = np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape).astype(np.float32) / 8
        return TensorOut(name, shape, "f32" if len(shape) == 1 else outtype, lambda: values)

    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = [tensor(f"blk.0.{name}.weight", width, width) for name in square]
    tensors += [
        tensor("blk.0.attn_norm.weight", width),
        tensor("blk.0.ffn_norm.weight", width),
        tensor("output_norm.weight", width),
    ]
    tensors += [tensor("token_embd.weight", VOCAB, width), tensor("output.weight", VOCAB, width)]
    sizes = {"context_length": 128, "embedding_length": width, "block_count": 1, "feed_forward_length": width, "attention.head_count": 1,
             "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": width, "vocab_size": VOCAB}  # fmt: skip
    write_gguf(
        file,
        "llama",
        {f"llama.{key}": value for key, value in sizes.items()} | {"tokenizer.ggml.model": "none"},
        tensors,
    )


def _run(file: str, *, repack: bool) -> None:
    """The products that a crashing build does not survive with `repack`."""
    from refspec.llama.context import Context, RowBatch
    from refspec.llama.model import Model, Weights

    n_batch = max(ROWS)
    model = Model(read_gguf_header(file), held=Weights(repack=repack))
    context = Context(model, n_ctx=sum(ROWS), n_batch=n_batch, n_ubatch=n_batch, n_threads=2, n_threads_batch=2)
    batch, at = RowBatch(n_batch), 0
    for n in ROWS:
        batch.put(range(n))
        if code := api.decode(context.alive(), batch.prepare(n, at, "all")):
            raise context.failure(code, f"run {n} tokens at position {at}")
        at += n
    context.close()


if __name__ == "__main__":
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _run(sys.argv[1], repack=True)
