"""The config.json of each checkpoint layout, and the switches that a layout cannot express.

Sources: speculators 0.9 (`Eagle3SpeculatorConfig`), SpecForge (`LlamaForCausalLMEagle3`), SafeAILab (`cnets.Model`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from refspec.convert.biases import ATTENTION, MLP
from refspec.convert.rope_out import Scaling, rope_keys
from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual

Json = dict[str, Any]
Specials = Mapping[str, int]  # bos, eos and pad ids by the keys of config.json
Problem = tuple[bool, str, str]  # whether it applies, the switch as it is, why the layout cannot say it
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def _states(c: DrafterConfig) -> Problem:
    return c.n_states != 3, f"{c.n_states} captured states", "it has exactly three"


def _biases(c: DrafterConfig, allowed: tuple[str, ...] = ()) -> Problem:
    wrong = [name for name in c.biases if name not in allowed]
    return bool(wrong), f"biases = {', '.join(wrong)}", "its classes make these matrices without a bias"


def _not_speculators(c: DrafterConfig, scaling: Scaling) -> list[Problem]:
    return [
        (not c.head_norm, "head_norm = no", "it always norms before lm_head; use specforge"),
        _biases(c, ATTENTION if c.qk_norm else (*ATTENTION, *MLP)),  # its Qwen3 block has no mlp_bias
    ]


def with_whole_groups(c: DrafterConfig, zero: Collection[str]) -> DrafterConfig:
    """The drafter with the zero biases its checkpoint had, and those its classes make together with the ones it has."""
    held = {*c.biases, *zero}
    for group in (ATTENTION, MLP):
        if held & set(group):
            held |= set(group)
    return replace(c, biases=tuple(held))


def _not_specforge(c: DrafterConfig, scaling: Scaling) -> list[Problem]:
    contradiction = not c.head_norm and c.feedback is Feedback.POST_NORM
    return [
        _states(c),
        (c.feature_norm is FeatureNorm.CONCAT, "feature_norm = concat", "it has no norm_before_fc; use speculators"),
        (c.residual is Residual.NORMED, "residual = normed", "it has no norm_before_residual; use speculators"),
        (c.qk_norm, "qk_norm = yes", "its Llama block has no query and key norms; use speculators"),
        _biases(c),
        (contradiction, "feedback = post_norm with head_norm = no", "norm_output cannot be true and false"),
    ]  # fmt: skip


def _not_eagle(c: DrafterConfig, scaling: Scaling) -> list[Problem]:
    kind = (scaling or {}).get("rope_type")
    return [
        _states(c),
        (c.feature_norm is not FeatureNorm.NONE, f"feature_norm = {c.feature_norm.value}", "it has no feature norm"),
        (c.feedback is not Feedback.PRE_NORM, f"feedback = {c.feedback.value}",
         "it always feeds back the pre-norm state"),
        (c.residual is not Residual.RAW, f"residual = {c.residual.value}",
         "it always adds attention to the state itself"),
        (not c.head_norm, "head_norm = no", "it always norms before lm_head"),
        (c.qk_norm, "qk_norm = yes", "its Llama block has no query and key norms"),
        _biases(c),
        (c.head_dim * c.n_heads != c.hidden_size, f"head_dim = {c.head_dim}",
         f"it wants heads * head_dim = {c.hidden_size}"),
        (kind not in (None, "linear"), f"rope scaling {kind}", "it knows linear scaling only"),
        (kind == "linear" and c.rope_theta != 10000, f"rope_theta = {c.rope_theta:g} with linear scaling",
         "its linear scaling ignores rope_theta and uses 10000"),
    ]  # fmt: skip


NOT_SAID: dict[str, Callable[[DrafterConfig, Scaling], list[Problem]]] = {
    "speculators": _not_speculators, "specforge": _not_specforge, "eagle": _not_eagle,
}  # fmt: skip


def block(c: DrafterConfig, scaling: Scaling, specials: Specials) -> Json:
    """The keys of one Llama or Qwen3 decoder layer."""
    return {
        "model_type": "qwen3" if c.qk_norm else "llama", "hidden_size": c.hidden_size,
        "num_hidden_layers": 1, "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim, "intermediate_size": c.intermediate_size, "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context_length or 2048, "rms_norm_eps": c.rms_eps, "hidden_act": "silu",
        "attention_bias": "attn_q" in c.biases, "mlp_bias": "ffn_gate" in c.biases, "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False, "use_cache": True, **specials, **rope_keys(c.rope_theta, scaling),
    }  # fmt: skip


def about(c: DrafterConfig) -> dict[str, Any]:
    """The `refspec` object of config.json: every switch under the name of its override, so no flag can be misread."""
    return {
        "feature_norm": c.feature_norm.value, "feedback": c.feedback.value, "residual": c.residual.value,
        "head_norm": c.head_norm, "layer_ids": list(c.capture_layers),
    }  # fmt: skip


def _speculators(c: DrafterConfig, scaling: Scaling, dtype: str, verifier: str | None, specials: Specials) -> Json:
    layer = block(c, scaling, specials)
    if c.qk_norm:
        del layer["mlp_bias"]
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": "eagle3", "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1, "accept_tolerance": 0.0},
            ],
            "verifier": {"name_or_path": verifier, "architectures": []},
        },
        "draft_vocab_size": c.draft_vocab_size,
        "target_hidden_size": c.target_hidden_size if c.target_hidden_size != c.hidden_size else None,
        "eagle_aux_hidden_state_layer_ids": list(c.capture_layers),
        "norm_before_residual": c.residual is Residual.NORMED,
        "norm_before_fc": c.feature_norm is FeatureNorm.CONCAT,
        "fc_norm": c.feature_norm is FeatureNorm.PER_STATE,
        "norm_output": c.feedback is Feedback.POST_NORM,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "dtype": TORCH[dtype],
        "transformer_layer_config": layer,
    }  # fmt: skip


def _specforge(c: DrafterConfig, scaling: Scaling, dtype: str, verifier: str | None, specials: Specials) -> Json:
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], **block(c, scaling, specials),
        "draft_vocab_size": c.draft_vocab_size, "target_hidden_size": c.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(c.capture_layers),  # vLLM reads these first: boundaries
        "eagle_config": {  # SGLang and SpecForge add one to these: layer outputs
            "use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [b - 1 for b in c.capture_layers],
        },
        "dtype": TORCH[dtype], "torch_dtype": TORCH[dtype], "refspec": about(c),
    }  # fmt: skip
    if c.feature_norm is FeatureNorm.PER_STATE:
        config["fc_norm"] = True
    if c.feedback is Feedback.POST_NORM or not c.head_norm:  # absent is plain EAGLE-3 in every version
        config["norm_output"] = c.feedback is Feedback.POST_NORM
    return config


def _eagle(c: DrafterConfig, scaling: Scaling, dtype: str, verifier: str | None, specials: Specials) -> Json:
    layer = block(c, scaling, specials)
    if scaling is None:
        del layer["rope_scaling"]
    del layer["rope_parameters"]  # newer than that code base
    return {
        "architectures": ["LlamaForCausalLM"], **layer, "draft_vocab_size": c.draft_vocab_size,
        "torch_dtype": TORCH[dtype], "refspec": about(c),
    } | ({"target_hidden_size": c.target_hidden_size} if c.target_hidden_size != c.hidden_size else {})  # fmt: skip


CONFIGS: dict[str, Callable[[DrafterConfig, Scaling, str, str | None, Specials], Json]] = {
    "speculators": _speculators, "specforge": _specforge, "eagle": _eagle,
}  # fmt: skip
