"""An EAGLE-3 / EAGLE 3.1 checkpoint directory -> DrafterConfig + weights -> drafter GGUF.

Layouts: speculators (`layers.0.*`, nested `transformer_layer_config`), and SafeAILab / SpecForge / TorchSpec
(`midlayer.*`). The stored d2t holds offsets (target id = j + d2t[j]); refspec and GGUF hold absolute ids.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refspec.config import DrafterConfig, FeatureNorm, RopeStyle
from refspec.convert import flags
from refspec.convert.facts import TargetFacts, target_facts
from refspec.convert.names import drafter_names
from refspec.convert.recorded import credit, recorded
from refspec.convert.report import Report, Resolved
from refspec.convert.rope import rope_settings
from refspec.convert.files import read_tensors
from refspec.convert.safetensors_io import StoredTensor, read_json
from refspec.drafter_meta import stock_reasons
from refspec.errors import CheckpointError, ShapeError, UsageError
from refspec.gguf_io import interleave_rows, write_drafter

Resolution = dict[str, Resolved]


def absolute_d2t(d2t: np.ndarray, t2d: np.ndarray | None, vocab_size: int, where: str) -> tuple[np.ndarray, str]:
    """Absolute ascending target ids [D] and how they were stored; `CheckpointError` if neither reading is valid."""
    for ids, how in ((np.arange(len(d2t)) + d2t.astype(np.int64), "offsets"), (d2t.astype(np.int64), "absolute ids")):
        if ids.min() < 0 or ids.max() >= vocab_size or (np.diff(ids) <= 0).any():
            continue
        if t2d is None and how == "absolute ids":
            break  # without t2d nothing confirms the unusual reading
        if t2d is None or (
            len(t2d) == vocab_size and t2d.astype(bool)[ids].all() and int(t2d.astype(bool).sum()) == len(ids)
        ):
            return ids, how
    raise CheckpointError(f"{where}: d2t does not map {len(d2t)} draft tokens to ascending ids below {vocab_size}"
                          + ("" if t2d is None else " that t2d marks") + "; the checkpoint is damaged")  # fmt: skip


def _sizes(
    layer: Mapping[str, Any], stored: Mapping[str, StoredTensor], names: Mapping[str, str], where: str
) -> dict[str, int]:
    def whole(key: str, default: Any = None) -> int:
        value = layer.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {key} = {value!r} must be a whole number of at least 1")
        return value

    if whole("num_hidden_layers", 1) != 1:
        raise CheckpointError(
            f"{where}: num_hidden_layers = {layer['num_hidden_layers']}; refspec runs one drafter layer"
        )
    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    if "fc" not in names or len(stored[names["fc"]].shape) != 2:
        raise CheckpointError(f"{where}: tensor 'fc.weight' is missing or not a matrix; this is not an EAGLE-3 drafter")
    return {
        "hidden_size": hidden, "n_heads": heads, "n_kv_heads": whole("num_key_value_heads", heads),
        "head_dim": whole("head_dim", hidden // heads), "intermediate_size": whole("intermediate_size"),
        "vocab_size": whole("vocab_size"), "context_length": whole("max_position_embeddings", 2048),
    }  # fmt: skip


def read_checkpoint(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str] | TargetFacts | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[DrafterConfig, dict[str, np.ndarray], Resolution, list[str]]:
    """Read a drafter checkpoint: (config, float32 weights in half-split RoPE order, resolved flags, notes).

    `target` (GGUF or Hugging Face directory) supplies what the checkpoint leaves out: default layers, embeddings, head.
    `overrides`: feature_norm, feedback, residual, head_norm, layer_ids (boundaries), rope_theta.
    """
    directory = Path(directory)
    where, given = str(directory / "config.json"), dict(overrides or {})
    if unknown := sorted(given.keys() - flags.OVERRIDES.keys()):
        raise UsageError(f"unknown override {unknown[0]!r}; known: {', '.join(flags.OVERRIDES)}")
    config, stored = read_json(directory / "config.json"), read_tensors(directory)
    said = recorded(config, where)
    overridden, given = set(given), said | given
    speculators = config.get("speculators_model_type") is not None
    if speculators and config["speculators_model_type"] != "eagle3":
        raise CheckpointError(
            f"{where}: speculators_model_type = {config['speculators_model_type']!r}, refspec reads eagle3"
        )
    layer = config.get("transformer_layer_config") or config
    for keys in (config, layer):
        flags.check_keys(keys, where)
    names, prefix = drafter_names(stored, str(directory))
    facts = target if target is None or isinstance(target, TargetFacts) else target_facts(target)
    sizes = _sizes(layer, stored, names, where)
    layers = flags.layer_ids(config, facts.n_layer if facts else None, given.get("layer_ids"), where)
    fc_in, n_states = stored[names["fc"]].shape[1], len(layers.value)
    if fc_in % n_states:
        raise CheckpointError(
            f"{directory}: fc has {fc_in} columns, which {n_states} captured layers cannot share equally"
        )
    draft_vocab = config.get("draft_vocab_size") or sizes["vocab_size"]
    theta, divisors, scaling = rope_settings(dict(layer), sizes["head_dim"], where)
    theta = float(given.get("rope_theta") or theta)
    layout = "speculators" if speculators else prefix + "*"
    resolved: Resolution = {
        "layout": Resolved(layout, "config.json" if speculators else "tensor names"),
        "feature_norm": flags.feature_norm(config, names, given.get("feature_norm"), where),
        "feedback": flags.feedback(config, speculators, given.get("feedback"), where),
        "residual": flags.residual(config, given.get("residual"), where),
        "head_norm": flags.head_norm(config, speculators, given.get("head_norm"), where),
        "capture_layers": layers,
        "rope": Resolved(f"theta {theta:g}, {scaling}", "override" if given.get("rope_theta") else "config.json"),
    }  # fmt: skip
    credit(resolved, said, overridden)
    drafter = DrafterConfig(
        target_hidden_size=fc_in // n_states, capture_layers=layers.value, draft_vocab_size=draft_vocab,
        rms_eps=float(layer.get("rms_norm_eps", 1e-6)), rope_theta=theta, rope_style=RopeStyle.HALF_SPLIT,
        feature_norm=resolved["feature_norm"].value, feedback=resolved["feedback"].value,
        residual=resolved["residual"].value, head_norm=resolved["head_norm"].value, qk_norm="q_norm" in names, **sizes,
    )  # fmt: skip
    notes = _check_target(drafter, config, facts, where)
    weights = {ours: stored[theirs].load() for ours, theirs in names.items() if ours not in ("d2t", "t2d")}
    if drafter.feature_norm is FeatureNorm.NONE:  # an override may switch stored norms off
        for name in [n for n in weights if n.startswith("fc_norm")]:
            notes.append(f"{name} is present but --feature-norm none leaves it unused")
            del weights[name]
    if divisors is not None:
        weights["rope_freqs"] = divisors
    if draft_vocab < sizes["vocab_size"]:
        if "d2t" not in names:
            raise CheckpointError(
                f"{directory}: draft_vocab_size = {draft_vocab} needs the tensor 'd2t', which is missing"
            )
        t2d = stored[names["t2d"]].load() if "t2d" in names else None
        weights["d2t"], how = absolute_d2t(stored[names["d2t"]].load(), t2d, sizes["vocab_size"], str(directory))
        resolved["d2t"] = Resolved(how, "checked against t2d" if t2d is not None else "ascending and in range")
    _lend(weights, drafter, facts, notes)
    return drafter, weights, resolved, notes


def _check_target(
    drafter: DrafterConfig, config: Mapping[str, Any], facts: TargetFacts | None, where: str
) -> list[str]:
    notes = []
    said, width = config.get("target_hidden_size"), drafter.target_hidden_size
    if said is not None and said != width:
        if width != drafter.hidden_size:  # speculators ignores the key and builds fc for the drafter's own width
            raise CheckpointError(
                f"{where}: target_hidden_size = {said} and {drafter.n_states} captured layers contradict the "
                f"{drafter.n_states * width} columns of fc; give the layers it was trained with (--layer-ids)"
            )
        notes.append(f"target_hidden_size = {said} is not what fc was built for: {width}")
    if facts is None:
        return [*notes, "no target given: the file has no tokenizer and fits only by width and vocabulary size"]
    pairs = (("width of the captured states", drafter.target_hidden_size, facts.hidden_size),
             ("vocabulary", drafter.vocab_size, facts.vocab_size))  # fmt: skip
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise ShapeError(
                f"{where}: {what} is {ours}, the target {facts.path} has {theirs}; this drafter is for another one"
            )
    if max(drafter.capture_layers) > facts.n_layer:
        raise ShapeError(
            f"{where}: captured layers {drafter.capture_layers}, but {facts.path} has {facts.n_layer} layers"
        )
    return notes


def _lend(weights: dict[str, np.ndarray], drafter: DrafterConfig, facts: TargetFacts | None, notes: list[str]) -> None:
    """Fill in an embedding or head the checkpoint leaves to the target, when the target is known and as wide."""
    fits = facts is not None and facts.hidden_size == drafter.hidden_size
    for name in ("token_embd", "output"):
        if name in weights:
            continue
        if facts is None or not fits:
            notes.append(f"{name} is not in the checkpoint: the GGUF leaves it to the target")
            continue
        rows = facts.load(name)
        weights[name] = rows[weights["d2t"]] if name == "output" and "d2t" in weights else rows
        notes.append(f"{name} copied from the target {facts.path}")


def convert_drafter(
    directory: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    outtype: str = "f16",
    overrides: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Report:
    """Convert a drafter checkpoint directory to GGUF and report every resolved flag with its source.

    `target`: the target as GGUF or Hugging Face directory (tokenizer, checks, missing tensors) or None. `overrides` as
    in `read_checkpoint`. Raises `CheckpointError`, `ShapeError`, `UsageError`.
    """
    facts = None if target is None else target_facts(target)
    config, weights, resolved, notes = read_checkpoint(directory, facts, overrides)
    for key in ("attn_q", "attn_k", "q_norm", "k_norm"):
        if key in weights:
            weights[key] = interleave_rows(weights[key], config.head_dim)
    config = replace(config, rope_style=RopeStyle.INTERLEAVED)
    report = Report(Path(out), "", resolved=resolved, notes=notes)
    values = {"general.name": name or Path(directory).resolve().name, **report.provenance(), **(metadata or {})}
    if facts is not None:
        values = {**facts.tokenizer(), **values}
    report.path = write_drafter(out, config, weights, outtype=outtype, metadata=values)
    reasons = stock_reasons(config)
    report.arch = "refspec-eagle3" if reasons else "eagle3"
    report.notes += [f"stock llama.cpp cannot run it: {reason}" for reason in reasons]
    report.tensors, report.nbytes = len(weights), report.path.stat().st_size
    return report
