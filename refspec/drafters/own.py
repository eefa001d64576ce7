"""An EAGLE-3 GGUF on refspec's own kernels: for drafters that llama.cpp's eagle3 graph does not compute.

Query and key norms, biases, other counts of captured states, no norm before the head: none of them acts on a buffer the host
sees, so no norm around the graph can add it. The forward pass is `eagle3_forward.py` on the C kernels (NumPy where they are not
built), one thread, float32 weights, llama.cpp runs the target only. Which of the two runs a file is decided by the file.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from refspec import native
from refspec.config import DrafterConfig
from refspec.drafters.base import Drafter
from refspec.drafters.eagle3 import Eagle3Drafter
from refspec.drafters.llama import LlamaEagle3Drafter
from refspec.engine import Lender, check_pair, drafter_config
from refspec.errors import CheckpointError
from refspec.formats import drafter_meta as meta
from refspec.formats.gguf_header import GgufInfo
from refspec.formats.gguf_io import read_drafter, read_gguf_header, read_tensor


class OwnEagle3Drafter(Eagle3Drafter):
    """The Drafter of a GGUF, by refspec itself; `note` says so, and why, in one line."""

    def __init__(self, path: str | os.PathLike[str], target: Lender) -> None:
        """Load a drafter made for `target`. Raises CheckpointError (file), ShapeError (for another target)."""
        info = read_gguf_header(path)
        config = drafter_config(info, in_graph=False)
        check_pair(info, config, target.info, target.hidden_size, target.n_vocab, target.n_layer)
        self.path = info.path
        config, weights = complete_weights(info, target.info)
        try:
            super().__init__(config, weights, native)
        except CheckpointError as error:
            raise CheckpointError(f"{info.path}: {error}") from None
        held = sum(array.nbytes for array in self.weights.values())
        kernels = "C kernels, one thread" if native.backend == "c" else "NumPy kernels, slow: the C module is not built"
        why = "; ".join(meta.graph_reasons(config)) or "asked for"
        self.note = f"{info.path.name} runs on refspec's own {kernels}, {held / 1e6:.0f} MB as float32; llama.cpp cannot run it: {why}"


def complete_weights(info: GgufInfo, target: GgufInfo) -> tuple[DrafterConfig, dict[str, np.ndarray]]:
    """Configuration and float32 weights of a drafter GGUF, what it leaves to the target filled in from there."""
    config, weights = read_drafter(info.path)
    for name in meta.SHARED:
        if name not in weights:
            own = meta.TENSORS[name]
            weights[name] = read_tensor(target, own if own in target.tensors else meta.TENSORS["token_embd"])
    return config, weights


def open_drafter(path: str | os.PathLike[str], target: Lender, **settings: Any) -> Drafter:
    """The drafter at `path` on llama.cpp where its graph computes it, else on refspec's own kernels.

    `settings` are those of `LlamaEagle3Drafter`. Raises CheckpointError, ShapeError, BackendError.
    """
    config = drafter_config(read_gguf_header(path), in_graph=False)
    return OwnEagle3Drafter(path, target) if meta.graph_reasons(config) else LlamaEagle3Drafter(path, target, **settings)
