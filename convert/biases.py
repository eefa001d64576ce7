"""Which biases a drafter checkpoint has, from its tensors and its flags, which must agree.

The flags are `attention_bias` (transformers: q, k, v and mostly o), `qkv_bias`, `mlp_bias`, `fc_bias`, and `bias`,
which means another matrix in every code base. A bias that is all zero is left out, so that llama.cpp can run the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refspec.convert.flags import flag
from refspec.convert.names import BLOCK, Names
from refspec.convert.report import Resolved
from refspec.convert.safetensors_io import Config, Stored
from refspec.errors import CheckpointError
from refspec.reference.config import BIASED

ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
# flag -> (matrices that have a bias when it is true, matrices that have none when it is false)
FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention_bias": (ATTENTION[:3], ATTENTION), "qkv_bias": (ATTENTION[:3], ATTENTION[:3]), "mlp_bias": (MLP, MLP),
    "fc_bias": (("fc",), ("fc",)), "bias": ((), BIASED),
}  # fmt: skip

_THEIRS = {ours: theirs for theirs, ours in BLOCK.items()} | {"fc": "fc", "output": "lm_head"}


class Biases(NamedTuple):
    """What was found: `kept` and `zero` name matrices, in order of execution."""

    kept: tuple[str, ...]
    zero: tuple[str, ...]
    resolved: Resolved
    notes: list[str]


def resolve(config: Config, layer: Config, stored: Stored, names: Names, where: str) -> Biases:
    """The biases among `names` (refspec's name -> the stored one) that are used; `CheckpointError` against a flag."""
    held = [name for name in BIASED if f"{name}.bias" in names]
    zero = [name for name in held if not np.any(stored[names[f"{name}.bias"]].load())]
    kept = [name for name in held if name not in zero]
    said = {key: value for key in FLAGS if (value := flag(config, key, where, layer)) is not None}
    for key, value in said.items():
        needed, excluded = FLAGS[key]
        if value and (missing := [name for name in needed if name not in held] or (not needed and not held and ["fc"])):
            raise CheckpointError(
                f"{where}: {key} = true, but {_THEIRS[missing[0]]}.bias is missing; --ignore {key} if it has none"
            )
        if not value and (wrong := [name for name in kept if name in excluded]):
            stored_name = names[f"{wrong[0]}.bias"]
            raise CheckpointError(
                f"{where}: {key} = false, but {stored_name!r} exists and is not zero; "
                f"decide with --ignore {key} (apply it) or --ignore {stored_name} (leave it out)"
            )
    notes = [f"{names[f'{name}.bias']} holds only zeros and is left out" for name in zero]
    true = [f"{key} = true" for key, value in said.items() if value]
    source = "no such tensor" if not held else "tensors" + (f", config.json {', '.join(true)}" if true else "")
    return Biases(tuple(kept), tuple(zero), Resolved(list(kept) or "none", source), notes)
