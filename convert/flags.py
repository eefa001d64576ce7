"""Resolve every switch of an EAGLE-3 checkpoint from its config.json and the tensors it has, or refuse.

One flag name means different things in different trainers (`norm_output` above all), so each answer carries its source,
and where config and tensors leave two readings the error names the override that decides.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Any, TypeVar

from refspec.convert.report import Resolved
from refspec.convert.safetensors_io import Config
from refspec.errors import CheckpointError, ShapeError, UsageError
from refspec.reference.config import FeatureNorm, Feedback, Residual

# override name -> how the command line spells it
OVERRIDES = {
    "feature_norm": "--feature-norm", "feedback": "--feedback", "residual": "--residual", "head_norm": "--head-norm",
    "layer_ids": "--layer-ids", "rope_theta": "--rope-theta", "d2t": "--d2t", "ignore": "--ignore",
}  # fmt: skip
# Where `norm_output: true` has one meaning: the normed state is fed back.
_ONE_MEANING = ("speculators", "NeMo Automodel")
_Choice = TypeVar("_Choice", bound=Enum)


def choice(kind: type[_Choice], value: Any, name: str) -> _Choice:
    """`value` as a member of `kind`; `UsageError` that lists the choices."""
    try:
        return kind(value)
    except ValueError:
        options = ", ".join(m.value for m in kind)
        raise UsageError(f"{OVERRIDES[name]} {value!r} is unknown; choose one of {options}") from None


def flag(config: Config, key: str, where: str, layer: Config | None = None) -> bool | None:
    """A boolean of config.json: top level, nested eagle_config and `layer`, which must agree; None when absent."""
    sections = (config, layer or {}, config.get("eagle_config") or {})
    said = [v for section in sections if (v := section.get(key)) is not None]
    if wrong := [v for v in said if not isinstance(v, bool)]:
        raise CheckpointError(f"{where}: {key} = {str(wrong[0])[:40]!r} must be true or false")
    if len(set(said)) > 1:
        raise CheckpointError(f"{where}: {key} is true in one place and false in another; remove the wrong one")
    return said[0] if said else None


def count(config: Config, where: str) -> int | None:
    """The number of captured states in config.json, apart from its list of layers; None when absent."""
    said: dict[str, Any] = {}
    for section in (config, config.get("eagle_config") or {}):
        said |= {k: section[k] for k in ("num_aux_hidden_states", "num_capture_layers") if section.get(k) is not None}
    for key, value in said.items():
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {key} = {str(value)[:40]!r} must be a whole number of at least 1")
    if len(set(said.values())) > 1:
        raise CheckpointError(f"{where}: {said} contradict each other; remove the wrong one")
    return next(iter(said.values()), None)


def feature_norm(config: Config, names: Collection[str], given: Any, where: str) -> Resolved:
    """none | concat | per_state, from the flags AND the tensors; they must agree."""
    stored = FeatureNorm.NONE
    if "fc_norm" in names:
        stored = FeatureNorm.CONCAT
    if any(n.startswith("fc_norm.") for n in names):
        if stored is FeatureNorm.CONCAT:
            raise CheckpointError(f"{where}: input_norm and fc_norm.* both exist; refspec runs one feature norm")
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


def feedback(config: Config, layout: str, given: Any, where: str) -> Resolved:
    """pre_norm | post_norm. Only speculators and NeMo Automodel give `norm_output: true` one meaning."""
    if given is not None:
        return Resolved(choice(Feedback, given, "feedback"), "override --feedback")
    value, returned = flag(config, "norm_output", where), flag(config, "return_hidden_post_norm", where)
    if returned is not None and value is not None and returned != value:
        raise CheckpointError(
            f"{where}: return_hidden_post_norm = {returned}, norm_output = {value}; give --feedback pre_norm|post_norm"
        )
    if returned is not None:
        kind = Feedback.POST_NORM if returned else Feedback.PRE_NORM
        return Resolved(kind, f"config.json return_hidden_post_norm = {str(returned).lower()}")
    if not value:  # every trainer version feeds back h then
        return Resolved(Feedback.PRE_NORM, f"norm_output {'absent' if value is None else '= false'}: EAGLE-3")
    if layout not in _ONE_MEANING:
        raise CheckpointError(
            f"{where}: norm_output = true means two things in this layout: a norm before lm_head, which EAGLE-3 has "
            "anyway (older SpecForge: pre_norm), or that the normed state is fed back (newer SpecForge and specdrift: "
            "post_norm); decide with --feedback pre_norm|post_norm"
        )
    return Resolved(Feedback.POST_NORM, f"config.json norm_output = true, {layout} meaning")


def head_norm(config: Config, layout: str, has_norm: bool, given: Any, where: str) -> Resolved:
    """Whether the final norm comes before lm_head; one SpecForge version drops it for `norm_output: false`."""
    if given is not None:
        if not isinstance(given, bool):
            raise UsageError(f"{OVERRIDES['head_norm']} {given!r} must be yes or no")
        return Resolved(given, "override --head-norm")
    if (last := flag(config, "use_last_layernorm", where)) is not None:
        if last != has_norm:
            found = "exists" if has_norm else "is missing"
            raise CheckpointError(f"{where}: use_last_layernorm = {last}, norm.weight {found}; give --head-norm yes|no")
        return Resolved(last, f"config.json use_last_layernorm = {str(last).lower()}")
    if layout not in _ONE_MEANING and flag(config, "norm_output", where) is False:
        raise CheckpointError(
            f"{where}: norm_output = false means two things in this layout: no norm before lm_head (older SpecForge) "
            "or plain EAGLE-3 (newer); decide with --head-norm yes|no"
        )
    return Resolved(True, "every EAGLE-3 layout normalizes before lm_head")


def residual(config: Config, given: Any, where: str) -> Resolved:
    """raw | normed."""
    if given is not None:
        return Resolved(choice(Residual, given, "residual"), "override --residual")
    value = flag(config, "norm_before_residual", where)
    if value is None:
        return Resolved(Residual.RAW, "norm_before_residual absent: EAGLE-3")
    kind = Residual.NORMED if value else Residual.RAW
    return Resolved(kind, f"config.json norm_before_residual = {str(value).lower()}")


def layer_ids(config: Config, layout: str, n_layer: int | None, given: Any, where: str) -> tuple[Resolved, list[str]]:
    """Captured layers as boundaries of the residual stream (b = what enters layer b), and what to warn of."""
    if given is not None:
        return Resolved(_ids(given, "--layer-ids"), "override --layer-ids"), []
    key, readings, notes = "eagle_aux_hidden_state_layer_ids", [], []
    doubt = "; trainers count boundaries or layer outputs (one less): if acceptance is poor, try --layer-ids"
    if config.get(key):
        ids = _ids(config[key], where)
        readings.append(Resolved(ids, f"config.json {key}: boundaries as they are"))
        if layout != "speculators":
            notes.append(f"{key} = {list(ids)} taken as boundaries{doubt}")
    # ids of layer OUTPUTS: SGLang and SpecForge add one to the nested ones, DeepSpec to its own
    for outputs, said in ((f"eagle_config.{key}", (config.get("eagle_config") or {}).get(key)),
                          ("target_layer_ids", config.get("target_layer_ids"))):  # fmt: skip
        if said:
            raw = _ids(said, where, least=-1)
            how = f"{outputs} = {list(raw)} counts layer outputs: +1"
            readings.append(Resolved(tuple(i + 1 for i in raw), how))
            if outputs != "target_layer_ids" and raw[0] not in (0, 1) and len(readings) == 1:
                same = ",".join(map(str, raw))
                notes.append(f"{how}, as SGLang and SpecForge do; --layer-ids {same} if they are boundaries")
    if len({reading.value for reading in readings}) > 1:
        said = ", ".join(f"{list(reading.value)} ({reading.source})" for reading in readings)
        raise CheckpointError(f"{where}: the captured layers are {said}; decide with --layer-ids")
    if readings:
        return readings[0], notes if len(readings) == 1 else []
    if n_layer is None:
        raise CheckpointError(f"{where}: {key} is absent; give --target (for the default layers) or --layer-ids")
    if not (default := default_layers(n_layer)):
        raise ShapeError(
            f"{where}: {key} is absent, and its default 2, n/2, n-3 names no three distinct layers in order for the "
            f"target's {n_layer}; give --layer-ids"
        )
    return Resolved(default, f"absent: default 2, n/2, n-3 of the target's {n_layer} layers"), []


def default_layers(n_layer: Any) -> tuple[int, ...]:
    """The captured layers of EAGLE-3 for a target of `n_layer` layers; empty for fewer than 7, or for no number."""
    if type(n_layer) is not int:
        return ()
    layers = 2, n_layer // 2, n_layer - 3
    return layers if layers[0] < layers[1] < layers[2] else ()


def _ids(value: Any, where: str, least: int = 0) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(type(i) is int and i >= least for i in value):
        raise CheckpointError(f"{where}: captured layer ids {str(value)[:60]!r} must be a list of whole numbers")
    return tuple(value)
