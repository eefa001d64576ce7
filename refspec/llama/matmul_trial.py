"""Whether products in panels come out right in this llama.cpp, or end the process.

What `panels.py` relies on is the name and the arguments of two functions inside llama.cpp, which no header promises. So
before the first model is multiplied that way, two tiny ones are in a child process, with panels and without; the answer
is kept in the user's cache directory, once per build of either library and processor.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from refspec import native
from refspec.llama import api, matmul_hook
from refspec.llama.amx import PATIENCE, write_probe
from refspec.llama.probe_cache import remembered

WIDTH = 256  # a block of ggml's K types
ROWS = (1, 3, 40)  # one row, a few, more than llama.cpp leaves to the same function
NEAR = 0.05  # of the largest logit, what rounding at other places may change
Q4_K_S = 14  # llama_ftype


@cache
def works() -> bool:
    """What the child process showed, once."""
    state = os.stat(native.path())
    return remembered("panels", [state.st_size, state.st_mtime_ns], _tried, bool)


def _tried() -> bool:
    if not sys.executable:
        return False
    with tempfile.TemporaryDirectory() as folder:
        write_probe(Path(folder) / "q8_0.gguf", width=WIDTH)
        write_probe(Path(folder) / "f32.gguf", width=WIDTH, outtype="f32")
        try:
            child = subprocess.run(
                [sys.executable, "-m", "refspec.llama.matmul_trial", folder], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, timeout=PATIENCE, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return False
    return child.returncode == 0


def _logits(file: Path, panels: bool) -> np.ndarray:
    """Of batches of ROWS rows [sum of ROWS, V]; AssertionError where llama.cpp did not ask for the products."""
    from refspec.gguf.io import read_gguf_header
    from refspec.llama.context import Context, RowBatch
    from refspec.llama.model import Model, Weights

    info = read_gguf_header(file)
    model = Model(
        info, held=Weights(packed=matmul_hook.fits(info) if panels and matmul_hook.not_linked() is None else 0)
    )
    context = Context(model, n_ctx=sum(ROWS), n_batch=max(ROWS), n_ubatch=max(ROWS), n_threads=2, n_threads_batch=2)
    batch, at, rows = RowBatch(max(ROWS)), 0, []
    for n in ROWS:
        batch.put(range(n))
        if code := api.decode(context.alive(), batch.prepare(n, at, "all")):
            raise context.failure(code, f"run {n} tokens at position {at}")
        asked = model.panels.products if model.panels else 0
        assert asked > 0 or not panels
        rows += [
            np.ctypeslib.as_array(
                (ctypes.c_float * model.n_vocab).from_address(api.get_logits_ith(context.handle, i))
            ).copy()
            for i in range(n)
        ]
        at += n
    context.close()
    return np.stack(rows)


def _run(folder: Path) -> None:
    """AssertionError, or the end of the process, where they are not to be used."""
    params = api.api.llama_model_quantize_default_params()
    params.ftype = Q4_K_S
    api.api.llama_model_quantize(os.fsencode(folder / "f32.gguf"), os.fsencode(folder / "q4_k.gguf"), params)
    for name in ("q8_0.gguf", "q4_k.gguf"):
        ours, theirs = _logits(folder / name, True), _logits(folder / name, False)
        assert np.isfinite(theirs).all() and np.abs(ours - theirs).max() <= NEAR * np.abs(theirs).max()


if __name__ == "__main__":
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _run(Path(sys.argv[1]))
