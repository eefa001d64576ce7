"""How a model's weights are held: by whose kernels they are multiplied, and whether llama.cpp may repack them.

Decided before a model is opened, by who opens it; `Model` obeys. What cannot be known without trying is tried in a
child process, once (`matmul_trial.py`, `amx.py`).
"""

from __future__ import annotations

from refspec.gguf.header import GgufInfo
from refspec.llama import matmul_hook, matmul_trial
from refspec.llama.amx import repacking_works
from refspec.llama.model import Weights


def why_not() -> str | None:
    """Why refspec's kernels cannot multiply here; None where they can."""
    return matmul_hook.not_linked() or (None if matmul_trial.works() else "a trial of them failed with this llama.cpp")


def choose(info: GgufInfo, *, n_gpu_layers: int = 0, repack: bool = True, panels: bool = True) -> Weights:
    """`panels` has refspec's kernels multiply where they can;

    `repack` lets llama.cpp repack the other weights where that does not crash.
    """
    packed = matmul_hook.fits(info) if panels and n_gpu_layers == 0 and why_not() is None else 0
    if packed and matmul_hook.takes_all(info):
        repack = False  # both would repack the same weights
    if not repack or repacking_works():
        return Weights(repack, packed)
    quantized = {t.type for t in info.tensors.values()} - {"F32", "F16", "BF16", "I64"}
    why = f"{info.path.name} keeps its weights as stored: the AMX kernels of this llama.cpp crash on this processor"
    return Weights(False, packed, why if quantized else None)
