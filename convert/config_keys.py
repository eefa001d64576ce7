"""Which keys a drafter's config.json may have, and which trainer wrote it.

A key is read elsewhere (sizes, flags, RoPE), or has no influence on the forward pass, or could change it in a way
refspec does not compute and must then have the value that changes nothing. Any other key is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from refspec.convert.safetensors_io import Config
from refspec.errors import CheckpointError

READ = frozenset([
    "transformer_layer_config", "eagle_config", "refspec", "hidden_size", "target_hidden_size",
    "draft_vocab_size", "vocab_size", "num_hidden_layers", "head_dim", "num_attention_heads",
    "num_key_value_heads", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "rope_parameters", "fc_norm", "norm_before_fc", "norm_output", "norm_before_residual",
    "num_aux_hidden_states", "num_capture_layers", "eagle_aux_hidden_state_layer_ids", "tie_word_embeddings",
    "target_layer_ids", "draft_num_hidden_layers", "num_target_layers",
    "return_hidden_post_norm", "use_last_layernorm", "attention_bias", "qkv_bias", "mlp_bias", "fc_bias", "bias",
])  # fmt: skip
# next_layer_regular is about the second layer on, and a drafter has one
NO_INFLUENCE = frozenset([
    "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
    "decoder_start_token_id", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_name_or_path", "_commit_hash", "name_or_path", "tokenizer_class", "prefix",
    "problem_type", "finetuning_task", "task_specific_params", "id2label", "label2id", "num_labels",
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "pruned_heads",
    "tie_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention", "is_decoder",
    "is_encoder_decoder", "chunk_size_feed_forward", "pretraining_tp", "attention_dropout", "hidden_dropout",
    "max_window_layers", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "tf_legacy_loss", "speculators_model_type", "speculators_version",
    "speculators_config", "embed_requires_grad", "has_no_defaults_at_init", "_torchspec_version",
    "target_model_type", "target_model_name_or_path", "base_model_name_or_path", "next_layer_regular",
    "parallel_draft_heads_num_layers", "has_lm_head", "step_loss_decay", "ttt_length",
])  # fmt: skip
# key -> the values that leave the forward pass as refspec computes it; None and absence always do
MUST_BE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("use_mtp_layernorm", "eh_proj_before_attn", "use_qk_norm_after_rope"), (False,)),
    "rope_interleaved": (False,),
    **dict.fromkeys(("use_aux_hidden_state", "use_input_layernorm_in_first_layer"), (True,)),
    "hidden_act": ("silu",), "hidden_activation": ("silu",), "quantization_config": ({},),
    "partial_rotary_factor": (1, 1.0), "parallel_draft_step": (0, 1),
    "model_type": ("llama", "qwen3", "qwen2", "mistral", "eagle3", "eagle", "speculator_model"),
}  # fmt: skip
_MODELOPT = {
    "use_last_layernorm", "use_mtp_layernorm", "use_input_layernorm_in_first_layer", "next_layer_regular",
    "parallel_draft_step",
}  # fmt: skip
LAYOUTS = ("speculators", "TorchSpec", "ModelOpt", "NeMo Automodel", "SafeAILab", "SpecForge")


def check_keys(config: Config, where: str) -> None:
    """Refuse all keys that are unknown or change the forward pass, at once, in nested objects of the trainers too."""
    refused: list[tuple[str, str]] = []
    sections = [(config, "")]
    for name in ("transformer_layer_config", "eagle_config"):
        if (section := config.get(name)) is not None:
            if not isinstance(section, dict):
                raise CheckpointError(f"{where}: {name} = {str(section)[:40]!r} must be an object")
            sections.append((section, f"{name}."))
    for section, prefix in sections:
        for key, value in section.items():
            if value is None or key in READ or key in NO_INFLUENCE:
                continue
            if key in ("sliding_window", "use_sliding_window", "layer_types"):
                _check_attention(section, where)
            elif key not in MUST_BE:
                refused.append((key, f"unknown key {prefix + key!r} = {str(value)[:40]!r}"))
            elif not any(type(value) is type(v) and value == v for v in MUST_BE[key]):
                computed = " or ".join(map(repr, MUST_BE[key]))
                what = f"{prefix + key} = {str(value)[:40]!r} is not supported (refspec computes {computed})"
                refused.append((key, what))
    if refused:
        ignore = " ".join(f"--ignore {key}" for key in dict.fromkeys(key for key, _ in refused))
        them = "it does not change the model" if len(refused) == 1 else "these do not change the model"
        raise CheckpointError(f"{where}: {', '.join(what for _, what in refused)}; {ignore} if {them}")


def _check_attention(section: Config, where: str) -> None:
    """A window that limits attention; Qwen configs carry its size where it is switched off."""
    types = section.get("layer_types") or []
    size = section.get("sliding_window") if section.get("use_sliding_window", True) else None
    if size is not None and types != ["full_attention"]:
        raise CheckpointError(f"{where}: sliding_window = {size!r} is not supported; --ignore sliding_window if off")
    if any(t != "full_attention" for t in types):
        raise CheckpointError(f"{where}: layer_types = {str(types)[:60]} is not supported; only full attention is")


def without(config: Config, ignored: Collection[str]) -> dict[str, Any]:
    """The config without the keys of --ignore, at any of its levels."""
    return {
        k: without(v, ignored) if k in ("transformer_layer_config", "eagle_config") and isinstance(v, dict) else v
        for k, v in config.items()
        if k not in ignored
    }


def layout(config: Config, names: Iterable[str], prefix: str) -> tuple[str, str]:
    """Which trainer wrote the checkpoint and what shows it; the block's `prefix` where it is none of the known ones."""
    nested = config.get("eagle_config") or {}
    architectures = config.get("architectures")
    if config.get("speculators_model_type") is not None:
        return "speculators", "config.json speculators_model_type"
    if "_torchspec_version" in config:
        return "TorchSpec", "config.json _torchspec_version"
    if _MODELOPT & nested.keys():
        return "ModelOpt", f"config.json eagle_config.{min(_MODELOPT & nested.keys())}"
    if any(n.startswith("model.") and "layer" in n for n in names):
        return "NeMo Automodel", "tensor names start with 'model.'"
    if prefix == "midlayer." and architectures == ["LlamaForCausalLM"] and not nested:
        return "SafeAILab", "midlayer.* and architectures LlamaForCausalLM"
    if prefix == "midlayer.":
        return "SpecForge", "midlayer.* and architectures " + str((architectures or ["?"])[0])[:40]
    return prefix + "*", "tensor names"
