"""DrafterConfig <-> the metadata of a drafter GGUF, and the table of its tensor names.

Sizes use the keys of llama.cpp's eagle3 loader (`eagle3.*`). What llama.cpp has no key for is always written under
`refspec.*`, even where it equals the default, so that a file says what it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refspec.errors import CheckpointError, ShapeError
from refspec.gguf.header import GgufInfo
from refspec.reference.config import BIASED, DrafterConfig, FeatureNorm, Feedback, Residual, RopeStyle

STOCK_ARCH = "eagle3"
REFSPEC_ARCH = "refspec-eagle3"  # unknown to stock llama.cpp on purpose
ARCHS = (STOCK_ARCH, REFSPEC_ARCH)
MOST = 1 << 24  # of any size: what no model has, and no product of two overflows
STOCK_STATES = 3  # the eagle3 graph takes exactly three captured states

# weights name -> GGUF tensor name; per-state feature norms are metadata, see FC_NORM_KEY
TENSORS = {
    "fc": "fc.weight", "fc_norm": "enc.output_norm.weight",
    "attn_norm": "blk.0.attn_norm.weight", "hidden_norm": "blk.0.attn_norm_2.weight",
    "attn_q": "blk.0.attn_q.weight", "attn_k": "blk.0.attn_k.weight", "attn_v": "blk.0.attn_v.weight",
    "attn_output": "blk.0.attn_output.weight",
    "q_norm": "blk.0.attn_q_norm.weight", "k_norm": "blk.0.attn_k_norm.weight",
    "ffn_norm": "blk.0.ffn_norm.weight",
    "ffn_gate": "blk.0.ffn_gate.weight", "ffn_up": "blk.0.ffn_up.weight", "ffn_down": "blk.0.ffn_down.weight",
    "output_norm": "output_norm.weight", "token_embd": "token_embd.weight", "output": "output.weight",
    "d2t": "d2t", "rope_freqs": "rope_freqs.weight", "fc.bias": "fc.bias", "output.bias": "output.bias",
    **{f"{name}.bias": f"blk.0.{name}.bias" for name in BIASED if name not in ("fc", "output")},
}  # fmt: skip
_NAMES = {gguf: name for name, gguf in TENSORS.items()}
ROTATED = ("attn_q", "attn_k", "q_norm", "k_norm", "attn_q.bias", "attn_k.bias")  # their rows are RoPE's, in pairs
FC_NORM_KEY = "refspec.fc_norm.{}"
ATTENTION_FACTOR = "eagle3.rope.scaling.attn_factor"
SHARED = ("token_embd", "output")  # may be absent: the target's are used


def stock_reasons(config: DrafterConfig) -> list[str]:
    """Why stock llama.cpp would not compute this drafter, in words; empty when it computes it exactly."""
    reasons = []
    if config.feedback is Feedback.POST_NORM:
        reasons.append("it feeds the state back before the final norm, this drafter after it")
    if config.feature_norm is FeatureNorm.PER_STATE:
        reasons.append("it has no norm per captured state")
    return reasons + graph_reasons(config)


def graph_reasons(config: DrafterConfig) -> list[str]:
    """Why llama.cpp's eagle3 graph cannot compute it even with refspec's norms around it; empty when it can."""
    reasons = []
    if not config.head_norm:
        reasons.append("it always normalizes before the output head")
    if config.qk_norm:
        reasons.append("its eagle3 graph has no query and key norms")
    if config.n_states != STOCK_STATES:
        reasons.append(f"it takes exactly {STOCK_STATES} captured states, not {config.n_states}")
    if config.biases:
        reasons.append(f"its eagle3 graph has no biases ({', '.join(config.biases)})")
    return reasons


def to_metadata(config: DrafterConfig) -> dict[str, Any]:
    """Every key a drafter GGUF needs for `config`, except the per-state norm weights and the tokenizer."""
    p = STOCK_ARCH + "."
    factor = config.rope_attention_factor
    return {
        p + "context_length": config.context_length, p + "embedding_length": config.hidden_size, p + "block_count": 1,
        p + "feed_forward_length": config.intermediate_size,
        p + "attention.head_count": config.n_heads, p + "attention.head_count_kv": config.n_kv_heads,
        p + "attention.layer_norm_rms_epsilon": float(config.rms_eps),
        p + "attention.key_length": config.head_dim, p + "attention.value_length": config.head_dim,
        p + "rope.freq_base": float(config.rope_theta), p + "rope.dimension_count": config.head_dim,
        p + "vocab_size": config.vocab_size, p + "target_layers": [int(b) for b in config.capture_layers],
        p + "target_hidden_size": config.target_hidden_size,
        p + "norm_before_residual": config.residual is Residual.NORMED,
        p + "norm_before_fc": config.feature_norm is FeatureNorm.CONCAT,
        "refspec.feature_norm": config.feature_norm.value, "refspec.feedback": config.feedback.value,
        "refspec.residual": config.residual.value, "refspec.head_norm": config.head_norm,
        "refspec.qk_norm": config.qk_norm, "refspec.draft_vocab_size": config.draft_vocab_size,
        **({ATTENTION_FACTOR: factor} if factor != 1.0 else {}),  # llama.cpp reads it too
    }  # fmt: skip


def _flag(info: GgufInfo, name: str, stock: str) -> str:
    value = info.metadata.get(f"refspec.{name}", stock)
    if info.arch == STOCK_ARCH and value != stock:
        said = f"refspec.{name} = {str(value)[:40]!r}, but {STOCK_ARCH} means {stock!r}"
        raise CheckpointError(f"{info.path}: {said}; convert the drafter again")
    if info.arch == REFSPEC_ARCH and f"refspec.{name}" not in info.metadata:
        raise CheckpointError(f"{info.path}: metadata key 'refspec.{name}' is missing; convert the drafter again")
    return str(value)[:40]


def _vocab_size(info: GgufInfo) -> int:
    if (size := info.optional("eagle3.vocab_size", int, None)) is not None:
        return int(size)
    if (embd := info.tensors.get(TENSORS["token_embd"])) is not None:
        return embd.shape[0]
    if tokens := info.optional("tokenizer.ggml.tokens", list, None):
        return len(tokens)
    raise CheckpointError(f"{info.path}: metadata key 'eagle3.vocab_size' is missing; convert the drafter again")


def _draft_vocab_size(info: GgufInfo, vocab_size: int) -> int:
    held = (info.tensors[TENSORS[name]].shape[0] for name in ("output", "d2t") if TENSORS[name] in info.tensors)
    size = next(held, vocab_size)
    if (said := info.optional("refspec.draft_vocab_size", int, size)) != size:
        raise CheckpointError(
            f"{info.path}: refspec.draft_vocab_size = {said}, but its tensors have {size}; convert the drafter again"
        )
    return size


def decimal(value: Any) -> float:
    """The shortest decimal with this float32 value: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def from_metadata(info: GgufInfo) -> DrafterConfig:
    """The configuration a drafter GGUF declares; `CheckpointError` for a target, a missing key, contradicting flags."""
    if info.arch not in ARCHS:
        raise CheckpointError(f"{info.path}: general.architecture = {info.arch!r} is not a drafter; give it with -m")

    def whole(key: str, default: int | None = None, most: int = MOST) -> int:
        value = info.optional(f"eagle3.{key}", int, default)
        value = int(info.need(f"eagle3.{key}", int) if value is None else value)
        if not 0 <= value <= most:
            raise CheckpointError(f"{info.path}: eagle3.{key} = {value} is outside 0..{most}; convert it again")
        return value

    if whole("block_count") != 1:
        raise CheckpointError(f"{info.path}: eagle3.block_count = {whole('block_count')}; a drafter has one block")
    layers = info.need("eagle3.target_layers", list)
    if not all(type(b) is int for b in layers):
        raise CheckpointError(f"{info.path}: eagle3.target_layers = {layers} must be whole numbers")
    before_fc = info.optional("eagle3.norm_before_fc", bool, False)
    normed = info.optional("eagle3.norm_before_residual", bool, False)
    stock_norm = FeatureNorm.CONCAT if before_fc else FeatureNorm.NONE
    stock_residual = Residual.NORMED if normed else Residual.RAW
    hidden, heads, vocab_size = whole("embedding_length"), whole("attention.head_count"), _vocab_size(info)
    whole("vocab_size", vocab_size)
    head_dim = whole("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head_dim) != head_dim:
            raise CheckpointError(f"{info.path}: eagle3.{key} differs from the head size {head_dim}; not supported")
    try:
        return DrafterConfig(
            hidden_size=hidden, target_hidden_size=whole("target_hidden_size", hidden), capture_layers=tuple(layers),
            n_heads=heads, n_kv_heads=whole("attention.head_count_kv", heads), head_dim=head_dim,
            intermediate_size=whole("feed_forward_length"), context_length=whole("context_length", most=(1 << 31) - 1),
            vocab_size=vocab_size, draft_vocab_size=_draft_vocab_size(info, vocab_size),
            rms_eps=decimal(info.need("eagle3.attention.layer_norm_rms_epsilon", float)),
            rope_theta=decimal(info.optional("eagle3.rope.freq_base", float, 10000.0)),
            rope_style=RopeStyle.INTERLEAVED,
            rope_attention_factor=decimal(info.optional(ATTENTION_FACTOR, float, 1.0)),
            # DrafterConfig turns these strings into enums, and names the choices if it cannot
            feature_norm=_flag(info, "feature_norm", stock_norm.value),  # type: ignore[arg-type]
            feedback=_flag(info, "feedback", Feedback.PRE_NORM.value),  # type: ignore[arg-type]
            residual=_flag(info, "residual", stock_residual.value),  # type: ignore[arg-type]
            head_norm=info.optional("refspec.head_norm", bool, True),
            qk_norm=TENSORS["q_norm"] in info.tensors,
            biases=tuple(name for name in BIASED if TENSORS[f"{name}.bias"] in info.tensors),
        )  # fmt: skip
    except ShapeError as error:
        raise ShapeError(f"{info.path}: {error}") from None


def fc_norm_values(info: GgufInfo, config: DrafterConfig) -> dict[str, list[float]]:
    """The per-state norm weights stored as metadata, by weights name; lengths are checked."""
    if config.feature_norm is not FeatureNorm.PER_STATE:
        return {}
    out = {}
    for i in range(config.n_states):
        key = FC_NORM_KEY.format(i)
        values = info.need(key, list)
        if len(values) != config.target_hidden_size or not all(type(v) is float for v in values):
            raise CheckpointError(f"{info.path}: {key} must hold {config.target_hidden_size} floats, not {len(values)}")
        out[f"fc_norm.{i}"] = values
    return out


def weights_name(tensor: str) -> str | None:
    """The weights name of a GGUF tensor, or None if a drafter has no such tensor."""
    return _NAMES.get(tensor)
