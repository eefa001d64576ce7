"""Which biases a drafter checkpoint has: tensors and flags together, because a program that goes by the flags alone
drops some.

The flags are `attention_bias` (transformers: q, k, v and mostly o), `qkv_bias`, `mlp_bias`, `fc_bias`, and `bias`,
which means another matrix in every code base. Biases that are all zero are left out, so that llama.cpp can run what is
left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refspec.convert.names import BLOCK
from refspec.convert.report import Resolved
from refspec.convert.safetensors_io import StoredTensor
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


def resolve(
    config: Mapping[str, Any],
    layer: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    names: Mapping[str, str],
    where: str,
) -> Biases:
    """The biases among `names` (refspec's name -> the stored one) that take part;

    `CheckpointError` where a flag says otherwise.
    """
    held = [name for name in BIASED if f"{name}.bias" in names]
    zero = [name for name in held if not np.any(stored[names[f"{name}.bias"]].load())]
    kept = [name for name in held if name not in zero]
    said = {key: value for key in FLAGS if (value := _flag(config, layer, key, where)) is not None}
    for key, value in said.items():
        needed, excluded = FLAGS[key]
        if value and (missing := [name for name in needed if name not in held] or (not needed and not held and ["fc"])):
            raise CheckpointError(
                f"{where}: {key} = true, but {_THEIRS[missing[0]]}.bias is missing; --ignore {key} if the drafter has none"
            )
        if not value and (wrong := [name for name in kept if name in excluded]):
            stored_name = names[f"{wrong[0]}.bias"]
            raise CheckpointError(
                f"{where}: {key} = false, but {stored_name!r} is there and not zero; decide with --ignore {key} (apply it) "
                f"or --ignore {stored_name} (leave it out)"
            )
    notes = [f"{names[f'{name}.bias']} holds only zeros and is left out" for name in zero]
    true = [f"{key} = true" for key, value in said.items() if value]
    source = "no such tensor" if not held else "tensors" + (f", config.json {', '.join(true)}" if true else "")
    return Biases(tuple(kept), tuple(zero), Resolved(list(kept) or "none", source), notes)


def _flag(config: Mapping[str, Any], layer: Mapping[str, Any], key: str, where: str) -> bool | None:
    values = [v for section in (config, layer, config.get("eagle_config") or {}) if (v := section.get(key)) is not None]
    if wrong := [v for v in values if not isinstance(v, bool)]:
        raise CheckpointError(f"{where}: {key} = {str(wrong[0])[:40]!r} must be true or false")
    if len(set(values)) > 1:
        raise CheckpointError(f"{where}: {key} is true in one place and false in another; remove the wrong one")
    return values[0] if values else None
