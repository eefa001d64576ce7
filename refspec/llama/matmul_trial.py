"""Whether refspec's kernels multiply correctly inside this llama.cpp, or end the process.

`matmul_hook.py` relies on the names and the arguments of two functions inside llama.cpp, which no header promises. So
before the first real model is multiplied that way, two tiny ones are run in a child process, with refspec's kernels and
without, once per build of either library and processor.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from refspec import native
from refspec.gguf.io import read_gguf_header
from refspec.llama import api, matmul_hook, trial
from refspec.llama.model import Model, Weights
from refspec.llama.probe_cache import ask_once
from refspec.reference.ops import Array

WIDTH = 256  # a block of ggml's K types
NEAR = 0.05  # of the largest logit: what rounding at other places may change
Q4_K_S = 14  # llama_ftype
Q8_0, F32, Q4_K = "q8_0.gguf", "f32.gguf", "q4_k.gguf"  # the last is made of the second by llama.cpp


@cache
def works() -> bool:
    """What the child process showed, once."""
    state = os.stat(native.path())
    return ask_once("matmul", [state.st_size, state.st_mtime_ns], _tried, bool)


def _tried() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        return trial.survives(__name__, folder)


def write_models(folder: Path) -> None:
    """The files that `run` reads."""
    trial.write_model(folder / Q8_0, width=WIDTH, outtype="q8_0")
    trial.write_model(folder / F32, width=WIDTH, outtype="f32")


def logits_of(file: Path, *, ours: bool) -> Array:
    """Logits of one file by refspec's kernels (AssertionError where they were not called), or by llama.cpp's."""
    info = read_gguf_header(file)
    packed = matmul_hook.packed_bytes(info) if ours and matmul_hook.unavailable() is None else 0
    model = Model(info, held=Weights(packed=packed))
    logits = trial.run(model)
    assert not ours or (model.packed is not None and model.packed.calls > 0)
    return logits


def run(folder: Path) -> None:
    """What the child does: AssertionError, or the end of the process, where the kernels are not to be used."""
    params = api.api.llama_model_quantize_default_params()
    params.ftype = Q4_K_S
    api.api.llama_model_quantize(os.fsencode(folder / F32), os.fsencode(folder / Q4_K), params)
    for name in (Q8_0, Q4_K):
        ours, theirs = logits_of(folder / name, ours=True), logits_of(folder / name, ours=False)
        assert np.isfinite(theirs).all() and np.abs(ours - theirs).max() <= NEAR * np.abs(theirs).max()


if __name__ == "__main__":
    trial.leave_no_core_file()
    run(Path(sys.argv[1]))
