"""DrafterConfig: what an EAGLE-3 drafter is, and the one table of its tensors.

Not a file reader. Every rule is checked when the object is built, so that nothing later has to. Source of the
switches: EAGLE-3 (Li 2025) and the EAGLE 3.1 variants of the public trainers. One flag name means different things
there; here each meaning has a name of its own, with the trainers' flag in quotes beside it.

Shape legend: T rows (tokens), H drafter width, Ht target width, nh query heads, nkv key/value heads, hd head size,
F feed-forward width, V target vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec.errors import CheckpointError, ShapeError

Weights = Mapping[str, npt.NDArray[Any]]


class FeatureNorm(str, Enum):
    """What happens to a feature, the target's captured states side by side, before `fc`; never to a chained state."""

    NONE = "none"  # fc reads the states as captured
    CONCAT = "concat"  # one RMSNorm over all of them: the states keep their relative scale ("norm_before_fc")
    PER_STATE = "per_state"  # one RMSNorm per captured state: all states enter at the same scale ("fc_norm")


class Feedback(str, Enum):
    """Which vector a row hands to the chained row after it."""

    PRE_NORM = "pre_norm"  # the block output h: its magnitude may grow with draft depth (EAGLE-3)
    POST_NORM = "post_norm"  # RMSNorm(h; output_norm): bounded magnitude (EAGLE 3.1, "norm_output")


class Residual(str, Enum):
    """What the attention output is added to."""

    RAW = "raw"  # the state g itself (EAGLE-3)
    NORMED = "normed"  # RMSNorm(g; hidden_norm) ("norm_before_residual")


class RopeStyle(str, Enum):
    """Which two dimensions of a head rotate together."""

    INTERLEAVED = "interleaved"  # (2i, 2i+1): GGUF llama and eagle3 files
    HALF_SPLIT = "half_split"  # (i, i + hd/2): Hugging Face checkpoints


# Matrices that may have a bias, in order of execution; a bias is the tensor `<matrix>.bias`, [rows of the matrix].
BIASED = ("fc", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


@dataclass(frozen=True)
class DrafterConfig:
    """Sizes and switches of one EAGLE-3 drafter; raises ShapeError when they contradict each other."""

    hidden_size: int  # H
    target_hidden_size: int  # Ht, may differ from H
    capture_layers: tuple[int, ...]  # where a feature is read: b = the target's residual stream entering its layer b
    n_heads: int
    n_kv_heads: int
    head_dim: int  # hd; nh * hd need not be H
    intermediate_size: int  # F
    vocab_size: int  # V
    draft_vocab_size: int  # D
    rms_eps: float
    rope_theta: float
    rope_style: RopeStyle
    feature_norm: FeatureNorm
    feedback: Feedback
    residual: Residual
    head_norm: bool = True  # False: logits = output @ h with no norm in between (SpecForge a6b6b02, norm_output false)
    context_length: int = 0  # positions it was trained for; not enforced
    qk_norm: bool = False  # RMSNorm over hd on every query and key head before RoPE (Qwen3-style drafters)
    rope_attention_factor: float = 1.0  # YaRN: cos and sin are multiplied by it, so scores by its square
    biases: tuple[str, ...] = ()  # matrices of BIASED that have a bias; kept in that order

    @property
    def n_states(self) -> int:
        """Number of captured target states per row."""
        return len(self.capture_layers)

    @property
    def uses_output_norm(self) -> bool:
        """Whether the tensor output_norm is used."""
        return self.head_norm or self.feedback is Feedback.POST_NORM

    def __post_init__(self) -> None:
        kinds: tuple[type[Enum], ...] = (RopeStyle, FeatureNorm, Feedback, Residual)
        for name, kind in zip(("rope_style", "feature_norm", "feedback", "residual"), kinds, strict=True):
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                choices = " | ".join(member.value for member in kind)
                raise ShapeError(f"{name} = {getattr(self, name)!r} is not one of {choices}") from None
        widths = ("hidden_size", "target_hidden_size", "intermediate_size", "vocab_size", "draft_vocab_size")
        for name in (*widths, "n_heads", "n_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} = {getattr(self, name)} must be at least 1")
        for name in ("rms_eps", "rope_theta", "rope_attention_factor"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ShapeError(f"{name} = {getattr(self, name)} must be a positive number")
        if unknown := sorted(set(self.biases) - set(BIASED)):
            raise ShapeError(f"biases names {unknown[0]!r}; a bias can belong to {', '.join(BIASED)}")
        object.__setattr__(self, "biases", tuple(name for name in BIASED if name in self.biases))
        if self.n_heads % self.n_kv_heads:
            raise ShapeError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ShapeError(f"head_dim = {self.head_dim} must be even: RoPE rotates pairs")
        if self.draft_vocab_size > self.vocab_size:
            raise ShapeError(f"draft_vocab_size = {self.draft_vocab_size} exceeds vocab_size = {self.vocab_size}")
        if not self.capture_layers:
            raise ShapeError("capture_layers is empty: name at least one boundary of the target")
        if min(self.capture_layers) < 0 or len(set(self.capture_layers)) != self.n_states:
            raise ShapeError(f"capture_layers = {self.capture_layers} must be distinct boundaries >= 0")


def weight_shapes(c: DrafterConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The table of tensors: (required, optional), each name with its shape; a matrix is [outputs, inputs]."""
    required: dict[str, tuple[int, ...]] = {
        "token_embd": (c.vocab_size, c.hidden_size),
        "fc": (c.hidden_size, c.n_states * c.target_hidden_size),
        "attn_norm": (c.hidden_size,),  # of the token embedding (input_layernorm)
        "hidden_norm": (c.hidden_size,),  # of the state
        "attn_q": (c.n_heads * c.head_dim, 2 * c.hidden_size),
        "attn_k": (c.n_kv_heads * c.head_dim, 2 * c.hidden_size),
        "attn_v": (c.n_kv_heads * c.head_dim, 2 * c.hidden_size),
        "attn_output": (c.hidden_size, c.n_heads * c.head_dim),
        "ffn_norm": (c.hidden_size,),
        "ffn_gate": (c.intermediate_size, c.hidden_size),
        "ffn_up": (c.intermediate_size, c.hidden_size),
        "ffn_down": (c.hidden_size, c.intermediate_size),
        "output": (c.draft_vocab_size, c.hidden_size),
    }
    optional: dict[str, tuple[int, ...]] = {"rope_freqs": (c.head_dim // 2,)}  # divisors of the RoPE frequencies
    if c.feature_norm is FeatureNorm.CONCAT:
        required["fc_norm"] = (c.n_states * c.target_hidden_size,)
    if c.feature_norm is FeatureNorm.PER_STATE:
        required |= {f"fc_norm.{i}": (c.target_hidden_size,) for i in range(c.n_states)}
    if c.qk_norm:
        required |= {"q_norm": (c.head_dim,), "k_norm": (c.head_dim,)}
    required |= {f"{name}.bias": required[name][:1] for name in c.biases}
    (required if c.uses_output_norm else optional)["output_norm"] = (c.hidden_size,)
    (required if c.draft_vocab_size != c.vocab_size else optional)["d2t"] = (c.draft_vocab_size,)  # absolute target ids
    return required, optional


def fold_rope_attention(config: DrafterConfig, weights: Weights) -> dict[str, npt.NDArray[Any]]:
    """The weights with rope_attention_factor^2 in the queries: RoPE and scores are linear in q, a * q.k = (a * q).k."""
    factor, out = config.rope_attention_factor, dict(weights)
    if factor != 1.0:
        names = ("q_norm",) if config.qk_norm else ("attn_q", "attn_q.bias")  # a norm would undo what comes before it
        for name in names:
            if name in out:
                out[name] = (weights[name] * np.float32(factor * factor)).astype(np.float32)
    return out


def check_weights(config: DrafterConfig, weights: Weights, source: str = "drafter weights") -> None:
    """Raise unless `weights` is exactly the table: ShapeError for sizes, CheckpointError for names and values.

    An extra tensor is an error too: a norm that is present but not applied is the classic silent misload.
    """
    required, optional = weight_shapes(config)
    known = required | optional
    if missing := sorted(required.keys() - weights.keys()):
        raise CheckpointError(f"{source}: tensor {missing[0]!r} is missing ({len(missing)} in all); convert it again")
    if extra := sorted(weights.keys() - known.keys()):
        raise CheckpointError(f"{source}: tensor {extra[0]!r} would not be used; check the normalization switches")
    for name, array in weights.items():
        if array.shape != known[name]:
            raise ShapeError(f"{source}: tensor {name!r} is {list(array.shape)}, the config says {list(known[name])}")
        once = array[tuple(slice(1) if step == 0 else slice(None) for step in array.strides)]  # without repeated views
        if not np.isfinite(once.sum(dtype=np.float64)):  # a sum carries any NaN or infinity without a temporary array
            raise CheckpointError(f"{source}: tensor {name!r} holds NaN or infinite values; the file is damaged")
    if (d2t := weights.get("d2t")) is not None:
        if not np.issubdtype(d2t.dtype, np.integer) or d2t.min() < 0 or d2t.max() >= config.vocab_size:
            raise CheckpointError(f"{source}: d2t must hold target ids 0..{config.vocab_size - 1}, not offsets")
        if len(np.unique(d2t)) != len(d2t):
            raise CheckpointError(f"{source}: d2t names a target id twice; offsets stored as ids look like this")
    if (freqs := weights.get("rope_freqs")) is not None and freqs.min() <= 0:
        raise CheckpointError(f"{source}: rope_freqs holds {freqs.min()}; every divisor must be positive")
