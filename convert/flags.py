"""Resolve every switch of an EAGLE-3 checkpoint from its config.json and the tensors it has, or refuse.

One flag name means different things in different trainers (`norm_output` above all), so each answer carries its source, and where
config and tensors leave two readings the error names the override that decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any, TypeVar

from refspec.config import FeatureNorm, Feedback, Residual
from refspec.convert.report import Resolved
from refspec.errors import CheckpointError, UsageError

# override name -> how the command line spells it
OVERRIDES = {
    "feature_norm": "--feature-norm", "feedback": "--feedback", "residual": "--residual", "head_norm": "--head-norm",
    "layer_ids": "--layer-ids", "rope_theta": "--rope-theta",
}  # fmt: skip
# config.json keys with no influence on the forward pass; anything else that sounds like it had is refused
HARMLESS = {
    "model_type", "architectures", "layer_types", "use_aux_hidden_state", "eagle_config", "rope_scaling", "rope_parameters",
    "rope_theta", "rms_norm_eps", "hidden_size", "target_hidden_size", "draft_vocab_size", "num_hidden_layers", "head_dim",
    "num_attention_heads", "num_key_value_heads", "fc_norm", "norm_before_fc", "norm_output", "norm_before_residual",
    "eagle_aux_hidden_state_layer_ids", "hidden_act", "embed_requires_grad", "target_model_type", "transformer_layer_config",
}  # fmt: skip
_SOUNDS_RELEVANT = re.compile(r"norm|fc|aux|eagle|rope|bias|resid|feedback|head|draft|hidden|layer")
_UNSUPPORTED_IF_TRUE = (
    "attention_bias",
    "mlp_bias",
    "bias",
    "qkv_bias",
    "fc_bias",
    "next_layer_regular",
    "eh_proj_before_attn",
)
_Choice = TypeVar("_Choice", bound=Enum)


def choice(kind: type[_Choice], value: Any, name: str) -> _Choice:
    """`value` as a member of `kind`; `UsageError` that lists the choices."""
    try:
        return kind(value)
    except ValueError:
        options = ", ".join(m.value for m in kind)
        raise UsageError(f"{OVERRIDES[name]} {value!r} is unknown; choose one of {options}") from None


def flag(config: Mapping[str, Any], key: str, where: str) -> bool | None:
    """A boolean of config.json (top level, else nested eagle_config), None when absent."""
    nested = config.get("eagle_config") or {}
    value = config.get(key, nested.get(key))
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} = {value!r} must be true or false")
    return value


def check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config whose unknown keys sound as if they changed the forward pass."""
    for key, value in config.items():
        if key in _UNSUPPORTED_IF_TRUE and value:
            raise CheckpointError(f"{where}: {key} = {value!r} is not supported")
        if key in HARMLESS or key in _UNSUPPORTED_IF_TRUE or value is None or not _SOUNDS_RELEVANT.search(key):
            continue
        if not isinstance(value, dict):
            raise CheckpointError(
                f"{where}: unknown key {key!r} = {str(value)[:40]!r}; remove it if it does not matter"
            )
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{where}: hidden_act = {config['hidden_act']!r} is not supported; refspec computes silu")


def feature_norm(config: Mapping[str, Any], names: Collection[str], given: Any, where: str) -> Resolved:
    """none | concat | per_state, from the flags AND the tensors; they must agree."""
    stored = FeatureNorm.NONE
    if "fc_norm" in names:
        stored = FeatureNorm.CONCAT
    if any(n.startswith("fc_norm.") for n in names):
        if stored is FeatureNorm.CONCAT:
            raise CheckpointError(
                f"{where}: input_norm and fc_norm.* both exist; refspec runs one feature norm, not two"
            )
        stored = FeatureNorm.PER_STATE
    per_state, concat = flag(config, "fc_norm", where), flag(config, "norm_before_fc", where)
    said = FeatureNorm.PER_STATE if per_state else FeatureNorm.CONCAT if concat else FeatureNorm.NONE
    if given is not None:
        wanted = choice(FeatureNorm, given, "feature_norm")
        if wanted not in (stored, FeatureNorm.NONE):
            raise CheckpointError(f"{where}: --feature-norm {wanted.value} needs tensors the checkpoint does not have")
        return Resolved(wanted, "override --feature-norm")
    if (per_state and concat) or said is not stored:
        raise CheckpointError(
            f"{where}: fc_norm = {per_state}, norm_before_fc = {concat}, but the tensors say {stored.value!r}; "
            "decide with --feature-norm none|concat|per_state"
        )
    key = {FeatureNorm.PER_STATE: "fc_norm = true", FeatureNorm.CONCAT: "norm_before_fc = true"}.get(said)
    return Resolved(said, f"config.json {key} and its tensors" if key else "no feature norm flag and no such tensor")


def feedback(config: Mapping[str, Any], speculators: bool, given: Any, where: str) -> Resolved:
    """pre_norm | post_norm. Only the speculators layout gives `norm_output: true` one meaning."""
    if given is not None:
        return Resolved(choice(Feedback, given, "feedback"), "override --feedback")
    value = flag(config, "norm_output", where)
    if not value:  # every trainer version feeds back h then
        return Resolved(Feedback.PRE_NORM, f"norm_output {'absent' if value is None else '= false'}: EAGLE-3")
    if not speculators:
        raise CheckpointError(
            f"{where}: norm_output = true means two things in this layout (older SpecForge: a norm before lm_head, what "
            "EAGLE-3 does anyway; newer: the normed state is fed back); decide with --feedback pre_norm|post_norm"
        )
    return Resolved(Feedback.POST_NORM, "config.json norm_output = true, speculators meaning")


def head_norm(config: Mapping[str, Any], speculators: bool, given: Any, where: str) -> Resolved:
    """Whether the final norm stands before lm_head; one SpecForge version drops it for `norm_output: false`."""
    if given is not None:
        if not isinstance(given, bool):
            raise UsageError(f"{OVERRIDES['head_norm']} {given!r} must be yes or no")
        return Resolved(given, "override --head-norm")
    if not speculators and flag(config, "norm_output", where) is False:
        raise CheckpointError(
            f"{where}: norm_output = false means two things in this layout (older SpecForge: no norm before lm_head; newer: "
            "plain EAGLE-3); decide with --head-norm yes|no"
        )
    return Resolved(True, "every EAGLE-3 layout normalizes before lm_head")


def residual(config: Mapping[str, Any], given: Any, where: str) -> Resolved:
    """raw | normed."""
    if given is not None:
        return Resolved(choice(Residual, given, "residual"), "override --residual")
    value = flag(config, "norm_before_residual", where)
    if value is None:
        return Resolved(Residual.RAW, "norm_before_residual absent: EAGLE-3")
    return Resolved(
        Residual.NORMED if value else Residual.RAW, f"config.json norm_before_residual = {str(value).lower()}"
    )


def layer_ids(config: Mapping[str, Any], n_layer: int | None, given: Any, where: str) -> Resolved:
    """Captured layers as boundaries of the residual stream (b = what enters layer b)."""
    nested = config.get("eagle_config") or {}
    if given is not None:
        return Resolved(_ids(given, "--layer-ids"), "override --layer-ids")
    key = "eagle_aux_hidden_state_layer_ids"
    if (ids := config.get(key)) is not None:
        return Resolved(_ids(ids, where), f"config.json {key}: boundaries as they are")
    if (ids := nested.get(key)) is not None:
        raw = _ids(ids, where)
        if raw[0] == 1:  # the field's convention: ids that start at 1 count layer OUTPUTS
            return Resolved(tuple(i + 1 for i in raw), f"eagle_config.{key} = {list(raw)} counts layer outputs: +1")
        return Resolved(raw, f"eagle_config.{key}: taken as boundaries (first id is not 1)")
    if n_layer is None:
        raise CheckpointError(f"{where}: {key} is absent; give --target (for the default layers) or --layer-ids")
    return Resolved((2, n_layer // 2, n_layer - 3), f"absent: default 2, n/2, n-3 of the target's {n_layer} layers")


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(type(i) is int and i >= 0 for i in value):
        raise CheckpointError(f"{where}: captured layer ids {value!r} must be a list of whole numbers")
    return tuple(value)
