"""Trials in a child process: a tiny model is run where it may end the process that runs it.

`amx.py` and `matmul_trial.py` ask one question each; `probe_cache.py` keeps the answers.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from refspec.gguf.io import TensorOut, write_gguf
from refspec.llama import api
from refspec.llama.context import Context, RowBatch
from refspec.llama.model import Model
from refspec.reference.ops import Array

VOCAB = 64
BATCHES = (1, 3, 40)  # tokens: one, a few, and more than an AMX tile or `llamafile_sgemm` takes at once
PATIENCE = 60  # seconds for the child; starting Python and llama.cpp takes one


def survives(module: str, folder: str) -> bool:
    """Whether `python -m module folder` ends by itself, with exit code 0."""
    if not sys.executable:
        return False
    nothing = subprocess.DEVNULL
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, folder], stdin=nothing, stdout=nothing, stderr=nothing, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return child.returncode == 0


def leave_no_core_file() -> None:
    """For the child: a crash is an answer here, and not worth a core file."""
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def write_model(file: Path, *, width: int, outtype: str) -> None:
    """A one-layer Llama model of `width` channels, without a tokenizer, its matrices of type `outtype`."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> TensorOut:
        values = np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape).astype(np.float32) / 8
        return TensorOut(name, shape, "f32" if len(shape) == 1 else outtype, lambda: values)

    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    tensors = [tensor(f"blk.0.{name}.weight", width, width) for name in square]
    tensors += [tensor(f"{name}.weight", width) for name in norms]
    tensors += [tensor(f"{name}.weight", VOCAB, width) for name in ("token_embd", "output")]
    sizes = {
        "context_length": 128, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
        "attention.head_count": 1, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": width,
        "vocab_size": VOCAB,
    }  # fmt: skip
    metadata = {f"llama.{key}": value for key, value in sizes.items()} | {"tokenizer.ggml.model": "none"}
    write_gguf(file, "llama", metadata, tensors)


def run(model: Model) -> Array:
    """Logits [sum of BATCHES, V] of batches of each size, one after the other."""
    most, at, logits = max(BATCHES), 0, []
    context = Context(model, n_ctx=sum(BATCHES), n_batch=most, n_ubatch=most, n_threads=2, n_threads_batch=2)
    batch = RowBatch(most)
    for n in BATCHES:
        batch.put(range(n))
        if code := api.decode(context.alive(), batch.prepare(n, at, "all")):
            raise context.failure(code, f"run {n} tokens at position {at}")
        for i in range(n):
            address = api.get_logits_ith(context.handle, i)
            logits.append(np.array((ctypes.c_float * model.n_vocab).from_address(address)))
        at += n
    context.close()
    return np.stack(logits)
