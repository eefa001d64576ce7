"""Checkpoint directories of every public layout, written from the facts the trainers' code shows; random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from formats_toys import drafter_config, drafter_weights
from safetensors_toys import write_safetensors

from refspec.convert.names import BLOCK
from refspec.reference.config import BIASED, DrafterConfig

Stored = dict[str, np.ndarray]
SPELLED = {
    "fc": "fc",
    "output_norm": "norm",
    "token_embd": "embed_tokens",
    "output": "lm_head",
    "fc_norm": "input_norm",
}


def stored_weights(c: DrafterConfig, w: Stored, block: str, prefix: str = "", t2d: bool = True) -> Stored:
    """The tensors of a drafter under a trainer's names: `block` such as midlayer., everything after `prefix`."""
    names = {ours: f"{prefix}{block}{theirs}.weight" for theirs, ours in BLOCK.items()}
    names |= {ours: f"{prefix}{theirs}.weight" for ours, theirs in SPELLED.items()}
    names |= {f"{ours}.bias": names[ours].removesuffix("weight") + "bias" for ours in BIASED}
    names |= {f"fc_norm.{i}": f"{prefix}fc_norm.{i}.weight" for i in range(c.n_states)}
    out = {names[k]: a for k, a in w.items() if k not in ("d2t", "rope_freqs")}
    if "d2t" in w:
        out[prefix + "d2t"] = w["d2t"] - np.arange(len(w["d2t"]))
        if t2d:
            out[prefix + "t2d"] = np.isin(np.arange(c.vocab_size), w["d2t"])
    return out


def sizes(c: DrafterConfig, **changes: Any) -> dict[str, Any]:
    """The keys every layout shares."""
    return {
        "model_type": "llama", "hidden_size": c.hidden_size, "num_attention_heads": c.n_heads, "num_hidden_layers": 1,
        "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.intermediate_size,
        "vocab_size": c.vocab_size, "max_position_embeddings": 256, "rms_norm_eps": c.rms_eps, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "attention_bias": False,
        "mlp_bias": False, "attention_dropout": 0.0, "use_cache": True, "bos_token_id": 1, "eos_token_id": 2,
    } | changes  # fmt: skip


def extra(c: DrafterConfig) -> dict[str, Any]:
    return {"draft_vocab_size": c.draft_vocab_size, "target_hidden_size": c.target_hidden_size}


def modelopt(c: DrafterConfig, w: Stored) -> tuple[dict[str, Any], Stored]:
    """midlayer.*, d2t without t2d, layer ids that count outputs inside eagle_config."""
    eagle = {
        "eagle_aux_hidden_state_layer_ids": [b - 1 for b in c.capture_layers], "use_aux_hidden_state": True,
        "use_input_layernorm_in_first_layer": True, "use_last_layernorm": True, "use_mtp_layernorm": False,
        "next_layer_regular": True, "parallel_draft_step": 1, "parallel_draft_heads_num_layers": 1,
    }  # fmt: skip
    config = sizes(c, architectures=["LlamaForCausalLMEagle3"], rope_scaling=None, eagle_config=eagle) | extra(c)
    return config, stored_weights(c, w, "midlayer.", t2d=False)


def nemo(c: DrafterConfig, w: Stored) -> tuple[dict[str, Any], Stored]:
    """Everything after `model.`; norm_output means post-norm feedback."""
    flags = {"norm_output": c.feedback.value == "post_norm", "fc_norm": c.feature_norm.value == "per_state"}
    ids = {"eagle_aux_hidden_state_layer_ids": list(c.capture_layers), "num_aux_hidden_states": c.n_states}
    config = sizes(c, architectures=["LlamaForCausalLMEagle3"], **flags, **ids) | extra(c)
    return config, stored_weights(c, w, "layers.0.", "model.")


def specdrift(c: DrafterConfig, w: Stored) -> tuple[dict[str, Any], Stored]:
    """SpecForge's layout with both flags of EAGLE 3.1, nested ids of layer outputs."""
    eagle = {"eagle_aux_hidden_state_layer_ids": [b - 1 for b in c.capture_layers], "use_aux_hidden_state": True}
    flags = {"norm_output": True, "fc_norm": True, "eagle_config": eagle}
    return sizes(c, architectures=["LlamaForCausalLMEagle3"], **flags) | extra(c), stored_weights(c, w, "midlayer.")


def speculators_qwen3(c: DrafterConfig, w: Stored) -> tuple[dict[str, Any], Stored]:
    """Nested config of a Qwen3 block with query and key norms."""
    layer = sizes(c, model_type="qwen3", max_window_layers=28, use_sliding_window=False, sliding_window=None,
                  layer_types=["full_attention"])  # fmt: skip
    del layer["rope_theta"], layer["mlp_bias"]
    layer["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    config = {
        "speculators_model_type": "eagle3", "speculators_version": "0.9.0", "architectures": ["Eagle3DraftModel"],
        "speculators_config": {"algorithm": "eagle3"}, "transformer_layer_config": layer, "norm_before_residual": True,
        "norm_output": c.feedback.value == "post_norm", "fc_norm": c.feature_norm.value == "per_state",
        "norm_before_fc": c.feature_norm.value == "concat", "eagle_aux_hidden_state_layer_ids": list(c.capture_layers),
    }  # fmt: skip
    return config | extra(c), stored_weights(c, w, "layers.0.")


def specforge(c: DrafterConfig, w: Stored) -> tuple[dict[str, Any], Stored]:
    """SpecForge's own export, plain EAGLE-3."""
    nested = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [b - 1 for b in c.capture_layers]}}
    return sizes(c, architectures=["LlamaForCausalLMEagle3"], **nested) | extra(c), stored_weights(c, w, "midlayer.")


Writer = Callable[[DrafterConfig, Stored], tuple[dict[str, Any], Stored]]
WRITERS: dict[str, tuple[Writer, dict[str, Any], dict[str, Any]]] = {
    # layout -> writer, what the drafter is, the overrides it needs
    "ModelOpt": (modelopt, {"feature_norm": "none", "feedback": "pre_norm"}, {}),
    "NeMo Automodel": (nemo, {}, {}),
    "specdrift": (specdrift, {}, {"feedback": "post_norm"}),
    "speculators": (speculators_qwen3, {"qk_norm": True, "residual": "normed"}, {}),
    "SpecForge": (specforge, {"feature_norm": "none", "feedback": "pre_norm"}, {}),
}  # fmt: skip


def write(
    path: Path, layout: str, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None, **changes: Any
) -> DrafterConfig:
    """Write a checkpoint of `layout`; `config` and `tensors` replace what it would hold (None removes);

    returns what it is.
    """
    writer, switches, _ = WRITERS[layout]
    c = drafter_config(**({"capture_layers": (2, 3, 5)} | switches | changes))
    keys, stored = writer(c, drafter_weights(c))
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(keys | (config or {})))
    stored = {k: a for k, a in (stored | (tensors or {})).items() if a is not None}
    write_safetensors(path / "model.safetensors", stored)
    return c
