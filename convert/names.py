"""How the public trainers spell the tensors of an EAGLE-3 drafter.

Speculators writes `layers.0.*`, SafeAILab, SpecForge and TorchSpec write `midlayer.*`; some writers put `model.` in
front. A name that is not in these tables is an error, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from refspec.errors import CheckpointError
from refspec.reference.config import BIASED

BLOCK = {
    "input_layernorm": "attn_norm", "hidden_norm": "hidden_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {
    "fc.weight": "fc", "input_norm.weight": "fc_norm", "norm.weight": "output_norm",
    "embed_tokens.weight": "token_embd", "lm_head.weight": "output", "d2t": "d2t", "t2d": "t2d",
    # ModelOpt keeps the norms of both inputs outside the block until it exports.
    "hidden_norm.weight": "hidden_norm", "input_embeds_norm.weight": "attn_norm",
}  # fmt: skip
Names = Mapping[str, str]  # refspec's name of a tensor -> the stored one
PREFIXES = ("layers.0.", "midlayer.")


def _bias(bare: str) -> str | None:
    """refspec's name of a stored bias, None where no matrix of the drafter has it."""
    name = bare.removesuffix(".bias")
    ours = TOP.get(f"{name}.weight")
    for prefix in PREFIXES:
        if name.startswith(prefix):
            ours = BLOCK.get(name.removeprefix(prefix))
    return f"{ours}.bias" if ours in BIASED else None


def drafter_names(stored: Iterable[str], where: str) -> tuple[dict[str, str], str]:
    """Map refspec's tensor names to the stored ones; the prefix of the block. `CheckpointError` on an unknown name."""
    out: dict[str, str] = {}
    prefixes = set()
    for name in stored:
        bare = name.removeprefix("model.")
        ours = TOP.get(bare)
        if ours is None and bare.startswith("fc_norm.") and bare.endswith(".weight") and bare.split(".")[1].isdigit():
            ours = "fc_norm." + bare.split(".")[1]
        for prefix in PREFIXES:
            if bare.startswith(prefix) and bare.endswith(".weight"):
                ours = BLOCK.get(bare.removeprefix(prefix).removesuffix(".weight"))
                prefixes.add(prefix)
        if ours is None and bare.endswith(".bias"):
            ours = _bias(bare)
        if ours is None and re.match(r"layers\.[1-9]", bare):
            raise CheckpointError(
                f"{where}: {name!r} is of a second layer, and EAGLE-3 drafters have one; name the drafter's directory"
                " (llama.cpp's convert_hf_to_gguf.py makes a GGUF of a whole model)"
            )
        if ours is None:
            raise CheckpointError(f"{where}: unknown tensor {name!r} of an EAGLE-3 drafter; --ignore {name} if unused")
        if ours in out:
            raise CheckpointError(f"{where}: {out[ours]!r} and {name!r} are the same tensor")
        out[ours] = name
    if len(prefixes) != 1:
        raise CheckpointError(f"{where}: no drafter block (layers.0.* or midlayer.*); is this a drafter checkpoint?")
    return out, prefixes.pop()
