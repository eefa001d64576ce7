"""How a model's weights are held: whose kernels multiply with them, and whether llama.cpp may repack them.

Decided before a model is opened, which obeys. What cannot be known without trying is tried once, in a
child process (`matmul_trial.py`, `amx.py`).
"""

from __future__ import annotations

from typing import Any

from refspec.gguf.header import GgufInfo
from refspec.llama import matmul_hook, matmul_trial
from refspec.llama.amx import repacking_works
from refspec.llama.memory import available
from refspec.llama.model import Model, Weights


def why_not() -> str | None:
    """Why refspec's kernels cannot multiply here, None where they can."""
    failed = "a trial of them failed with this llama.cpp"
    return matmul_hook.unavailable() or (None if matmul_trial.works() else failed)


def choose(info: GgufInfo, *, n_gpu_layers: int = 0, repack: bool = True, panels: bool = True) -> Weights:
    """How to hold a file's weights: `panels` for refspec's kernels, `repack` for llama.cpp's where they work."""
    packed, notes = matmul_hook.packed_bytes(info) if panels and n_gpu_layers == 0 and why_not() is None else 0, []
    room = available()
    if room is not None and packed > room:
        sizes = f"{packed >> 20} MiB, and {room >> 20} are free"
        packed = 0
        notes.append(f"{info.path.name}: memory has no room for refspec's fast kernels ({sizes}); it is slower so")
    if packed and not matmul_hook.left_to_llama(info):
        repack = False  # both would repack the same weights
    if repack and not repacking_works():
        repack = False
        if any(t.type not in matmul_hook.AS_STORED for t in info.tensors.values()):
            why = "the AMX kernels of this llama.cpp crash on this processor"
            notes.append(f"weights of {info.path.name} stay as stored: {why}")
    return Weights(repack, packed, "; ".join(notes) or None)


def load(
    info: GgufInfo, *, n_gpu_layers: int, panels: bool, repack: bool = True, arch_override: str | None = None
) -> Model:
    """The model of a file, its weights held as `choose` says; as without kernels where these cannot have them."""
    where: dict[str, Any] = {"n_gpu_layers": n_gpu_layers, "arch_override": arch_override}
    held = choose(info, n_gpu_layers=n_gpu_layers, repack=repack, panels=panels)
    model = Model(info, **where, held=held)
    if held.packed and model.packed is None:
        model.close()
        held = choose(info, n_gpu_layers=n_gpu_layers, repack=repack, panels=False)
        missed = f"{info.path.name}: refspec's fast kernels have no place for its weights (are thousands loaded?)"
        held = held._replace(note="; ".join(filter(None, [missed, held.note])))
        model = Model(info, **where, held=held)
    return model
