"""An EAGLE-3 / EAGLE 3.1 checkpoint directory -> DrafterConfig + weights -> drafter GGUF.

Layouts: speculators (`layers.0.*`, nested `transformer_layer_config`); SafeAILab, SpecForge, specdrift, TorchSpec and
NVIDIA ModelOpt (`midlayer.*`); NeMo Automodel (`model.*`). Matrices stay on disk until they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refspec.convert import biases, flags, vocabulary
from refspec.convert.config_keys import check_keys, layout, without
from refspec.convert.files import read_tensors
from refspec.convert.names import Names, drafter_names
from refspec.convert.other_models import refuse_adapter, refuse_by_config, refuse_by_tensors
from refspec.convert.report import Report, Resolved, credit, recorded
from refspec.convert.rope import Rope, rope_settings
from refspec.convert.rope_out import kept_scaling
from refspec.convert.safetensors_io import Config, Stored, read_json, whole_number
from refspec.convert.shared_tensors import Tensors, check_target, check_tensors, lend
from refspec.convert.target_info import TargetFacts, target_facts
from refspec.errors import CheckpointError, ShapeError, UsageError, reads_file
from refspec.gguf.blocks import Progress
from refspec.gguf.drafter_meta import ROTATED, decimal, graph_reasons, stock_reasons
from refspec.gguf.header import FilePath
from refspec.gguf.io import interleaved, write_drafter
from refspec.gguf.lazy import Lazy
from refspec.reference.config import DrafterConfig, FeatureNorm, RopeStyle

Resolution = dict[str, Resolved]


@dataclass(frozen=True)
class Opened:
    """A checkpoint understood but not loaded: matrices are `Lazy`, RoPE order half-split."""

    config: DrafterConfig
    tensors: Tensors
    resolved: Resolution
    notes: list[str]
    rope: Rope  # as config.json states it, scaling included; llama.cpp runs the divisors it makes
    zero_biases: tuple[str, ...] = ()  # matrices whose bias is all zero, and left out


@reads_file
def open_checkpoint(
    directory: FilePath, target: FilePath | TargetFacts | None = None, overrides: Mapping[str, Any] | None = None
) -> Opened:
    """Resolve a drafter checkpoint. Nothing is guessed: an error names the override that decides.

    `target` (GGUF or Hugging Face directory) supplies what the checkpoint leaves out: default layers, embeddings, head.
    `overrides`: the keys of `flags.OVERRIDES`; layer_ids are boundaries, d2t is offsets or absolute, ignore names keys
    of config.json and tensors. Raises `CheckpointError`, `ShapeError`, `UsageError`.
    """
    directory = Path(directory)
    refuse_adapter(directory)
    where, given = str(directory / "config.json"), {k: v for k, v in (overrides or {}).items() if v is not None}
    if unknown := sorted(given.keys() - flags.OVERRIDES.keys()):
        raise UsageError(f"unknown override {unknown[0]!r}; known: {', '.join(flags.OVERRIDES)}")
    config = read_json(directory / "config.json")
    refuse_by_config(config, where)
    stored = read_tensors(directory)
    ignored = _ignored(given, config, stored)
    config, stored = without(config, ignored), {k: t for k, t in stored.items() if k not in ignored}
    said = recorded(config, where)
    overridden, given = set(given), said | given
    refuse_by_tensors(config, stored, where)
    check_keys(config, where)
    layer = config.get("transformer_layer_config") or config
    names, prefix = drafter_names(stored, str(directory))
    bias = biases.resolve(config, layer, stored, names, where)
    notes = [f"{name} is ignored, as --ignore asks" for name in ignored] + bias.notes
    facts = target if target is None or isinstance(target, TargetFacts) else target_facts(target)
    trainer, told = layout(config, stored, prefix)
    sizes = _sizes(layer, stored, names, where)
    layers, warnings = flags.layer_ids(config, trainer, facts.n_layer if facts else None, given.get("layer_ids"), where)
    if facts and (meant := config.get("num_target_layers")) not in (None, facts.n_layer):
        raise CheckpointError(
            f"{where}: num_target_layers = {str(meant)[:20]}, but {facts.path} has {facts.n_layer}; another target's"
        )
    fc_in, n_states = stored[names["fc"]].shape[1], len(layers.value)
    if (states := flags.count(config, where)) not in (None, n_states):
        raise CheckpointError(f"{where}: {states} captured states, but {n_states} layer ids; give --layer-ids")
    if fc_in % n_states:
        raise CheckpointError(f"{directory}: fc's {fc_in} columns are no multiple of {n_states}; give --layer-ids")
    draft_vocab, draft_source = _draft_vocab(config, stored, names, sizes["vocab_size"], where)
    rope, rope_source = _rope(config, layer, trainer, sizes["head_dim"], given.get("rope_theta"), where)
    eps = layer.get("rms_norm_eps")
    resolved: Resolution = {
        "layout": Resolved(trainer, told),
        "files": Resolved(", ".join(sorted({t.path.name for t in stored.values()})), "directory"),
        "feature_norm": flags.feature_norm(config, names, given.get("feature_norm"), where),
        "feedback": flags.feedback(config, trainer, given.get("feedback"), where),
        "residual": flags.residual(config, given.get("residual"), where),
        "head_norm": flags.head_norm(config, trainer, "output_norm" in names, given.get("head_norm"), where),
        "qk_norm": Resolved("q_norm" in names, "tensors"),
        "biases": bias.resolved,
        "capture_layers": layers,
        "rope": Resolved(f"theta {rope.theta:g}, {rope.words}", rope_source),
        "rms_norm_eps": Resolved(1e-6 if eps is None else eps, "absent: 1e-6" if eps is None else "config.json"),
        "draft_vocab": Resolved(draft_vocab, draft_source),
    }  # fmt: skip
    credit(resolved, said, overridden)
    switches: dict[str, Any] = {
        n: resolved[n].value for n in ("feature_norm", "feedback", "residual", "head_norm", "qk_norm")
    }
    try:
        drafter = DrafterConfig(
            target_hidden_size=fc_in // n_states, capture_layers=layers.value, draft_vocab_size=draft_vocab,
            rms_eps=_number(resolved["rms_norm_eps"].value, "rms_norm_eps", where), rope_theta=rope.theta,
            rope_style=RopeStyle.HALF_SPLIT, biases=bias.kept, **(switches | sizes),
            rope_attention_factor=decimal(rope.attention_factor),
        )  # fmt: skip
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None
    notes += warnings + check_target(drafter, config, facts, where)
    tensors: Tensors = {
        ours: t.lazy() if len((t := stored[theirs]).shape) == 2 else t.load()
        for ours, theirs in names.items()
        if ours not in ("d2t", "t2d", *(f"{name}.bias" for name in bias.zero))
    }
    if drafter.feature_norm is FeatureNorm.NONE:  # an override may switch stored norms off
        for name in [n for n in tensors if n.startswith("fc_norm")]:
            notes.append(f"{name} is present but --feature-norm none leaves it unused")
            del tensors[name]
    if rope.divisors is not None:
        tensors["rope_freqs"] = rope.divisors
    d2t, t2d = (stored[names[n]].load() if n in names else None for n in ("d2t", "t2d"))
    if draft_vocab == sizes["vocab_size"]:
        vocabulary.check_identity(d2t, t2d, str(directory))
    elif d2t is None:
        raise CheckpointError(f"{directory}: draft_vocab_size = {draft_vocab} needs the tensor 'd2t', which is missing")
    else:
        ids, how = vocabulary.absolute_d2t(d2t, t2d, sizes["vocab_size"], str(directory), given.get("d2t"))
        tensors["d2t"], resolved["d2t"] = ids, vocabulary.resolved(how, t2d, given.get("d2t"))
        if isinstance(head := tensors.get("output"), Lazy):
            vocabulary.check_head_rows(head, ids, str(directory))
    notes += lend(tensors, drafter, layer.get("tie_word_embeddings") is True, facts, str(directory))
    check_tensors(drafter, tensors, names, str(directory))
    return Opened(drafter, tensors, resolved, notes, rope, bias.zero)


def _ignored(given: Mapping[str, Any], config: Config, stored: Stored) -> list[str]:
    wanted = given.get("ignore") or []
    known = {*stored, *config}
    for section in ("transformer_layer_config", "eagle_config"):
        if isinstance(inner := config.get(section), dict):
            known |= inner.keys()
    for name in wanted:
        if name not in known:
            raise UsageError(f"--ignore {name!r}: neither a key of config.json nor a tensor of this checkpoint")
    return list(wanted)


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{where}: {key} = {str(value)[:40]!r} must be a number")
    return float(value)


def _sizes(layer: Config, stored: Stored, names: Names, where: str) -> dict[str, int]:
    key = "num_hidden_layers" if layer.get("draft_num_hidden_layers") is None else "draft_num_hidden_layers"
    if (blocks := whole_number(layer, key, where, 1)) != 1:
        raise CheckpointError(
            f"{where}: {key} = {blocks}, but one layer is stored, and refspec runs one; --ignore {key} if it is the "
            "target's number"
        )
    heads, hidden = whole_number(layer, "num_attention_heads", where), whole_number(layer, "hidden_size", where)
    if "fc" not in names or len(stored[names["fc"]].shape) != 2:
        raise CheckpointError(f"{where}: tensor 'fc.weight' is missing or not a matrix; this is not an EAGLE-3 drafter")
    return {
        "hidden_size": hidden, "n_heads": heads, "n_kv_heads": whole_number(layer, "num_key_value_heads", where, heads),
        "head_dim": whole_number(layer, "head_dim", where, _head_dim(stored, names, heads) or hidden // heads),
        "intermediate_size": whole_number(layer, "intermediate_size", where),
        "vocab_size": whole_number(layer, "vocab_size", where),
        "context_length": whole_number(layer, "max_position_embeddings", where, 2048),
    }  # fmt: skip


def _head_dim(stored: Stored, names: Names, heads: int) -> int | None:
    """What the rows of q_proj say; the default of a config without head_dim differs between Llama and Qwen3."""
    shape = stored[names["attn_q"]].shape if "attn_q" in names else ()
    return shape[0] // heads if shape and shape[0] % heads == 0 else None


def _draft_vocab(config: Config, stored: Stored, names: Names, vocab_size: int, where: str) -> tuple[int, str]:
    if config.get("draft_vocab_size") is not None:
        return whole_number(config, "draft_vocab_size", where), "config.json draft_vocab_size"
    for name in ("d2t", "output"):
        if name in names and stored[names[name]].shape:
            return stored[names[name]].shape[0], f"draft_vocab_size absent: rows of {names[name]}"
    return vocab_size, "draft_vocab_size absent: the whole vocabulary"


def _rope(config: Config, layer: Config, trainer: str, head_dim: int, given: Any, where: str) -> tuple[Rope, str]:
    """RoPE and where its base came from; SafeAILab's training class ignores the base its inference class reads."""
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < float("inf"):
            raise UsageError(f"--rope-theta {given!r} must be a positive number")
        return rope_settings(layer, head_dim, where, float(given)), "override --rope-theta"
    rope = rope_settings(layer, head_dim, where)
    if trainer != "SafeAILab" or rope.theta == 10000.0 or "refspec" in config:
        said = any("rope_theta" in (s or {}) for s in (layer, layer.get("rope_parameters")))
        return rope, "config.json" if said else "rope_theta absent: 10000"
    if rope.words.startswith("linear"):
        source = f"SafeAILab's linear scaling ignores rope_theta = {rope.theta:g}"
        return rope_settings(layer, head_dim, where, 10000.0), source
    raise CheckpointError(
        f"{where}: rope_theta = {rope.theta:g}, but SafeAILab's training class always uses 10000 and its inference "
        f"class the config's; decide with --rope-theta 10000 (as trained there) or --rope-theta {rope.theta:g}"
    )


def read_checkpoint(
    directory: FilePath, target: FilePath | TargetFacts | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[DrafterConfig, dict[str, np.ndarray], Resolution, list[str]]:
    """`open_checkpoint`, loaded: (config, float32 weights in half-split RoPE order, resolved flags, notes)."""
    opened = open_checkpoint(directory, target, overrides)
    weights = {k: a.load() if isinstance(a, Lazy) else a for k, a in opened.tensors.items()}
    return opened.config, weights, opened.resolved, opened.notes


def convert_drafter(
    directory: FilePath,
    target: FilePath | None,
    out: FilePath,
    outtype: str = "f16",
    overrides: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert a drafter checkpoint directory to GGUF and report every resolved flag with its source.

    `target` (its tokenizer too), `overrides` and errors as in `open_checkpoint`; `progress` is told the bytes just
    written and those in all.
    """
    facts = None if target is None else target_facts(target)
    opened = open_checkpoint(directory, facts, overrides)
    config = replace(opened.config, rope_style=RopeStyle.INTERLEAVED)
    tensors = {k: interleaved(a, config.head_dim) if k in ROTATED else a for k, a in opened.tensors.items()}
    report = Report(Path(out), "", resolved=opened.resolved, notes=opened.notes)
    values: dict[str, Any] = {"general.name": name or Path(directory).resolve().name, **report.provenance()}
    values |= kept_scaling(opened.rope)
    if opened.zero_biases:  # for the way back
        values["refspec.zero_biases"] = list(opened.zero_biases)
    values |= metadata or {}
    if facts is not None:
        values = {**facts.tokenizer(), **values}
    report.path = write_drafter(
        out, config, tensors, outtype=outtype, metadata=values, progress=progress, source=str(directory)
    )
    reasons = stock_reasons(config)
    report.arch = "refspec-eagle3" if reasons else "eagle3"
    report.notes += [f"stock llama.cpp cannot run it: {reason}" for reason in reasons]
    if reasons:
        how = "on its own kernels, one thread" if graph_reasons(config) else "on llama.cpp, with its norms around it"
        report.notes.append(f"refspec runs it {how}; --stock writes the nearest file stock llama.cpp runs")
    report.tensors, report.nbytes = len(tensors), report.path.stat().st_size
    return report
