"""The EAGLE-3 forward pass with its three normalization switches, in execution order: the heart of refspec.

One decoder layer predicts the next token from the newest token and a state. The state is a projection of the target's
hidden states in a true row, and the output of the row before it in a chained row.

    feature -> normalized -> fc -> state g            true rows only (`project`)
    token, g -> attention, feed-forward -> h          `block`
    h -> output norm -> head -> logits                `output_norm`, `head`
    h or its norm -> state of the next chained row    `feedback`

Functions of arrays and nothing else: rows, rollback and drafting are in `eagle3_rows.py` and `eagle3.py`. Every
function takes the configuration `c`, the weights `w` by name and the operations `ops`: the module `ops.py`, or another
with its functions. Source: EAGLE-3 (Li 2025) and the public trainers. Departure: those recognize features by their
width, which fails when n_states * Ht == H; here the caller says which rows have features, and `project` reads them.

Shape legend: T rows of this call, S rows held with them, H drafter width, Ht target width, nh query heads,
nkv key/value heads, hd head size, F feed-forward width, D draft vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.reference.cache import KVCache
from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual, Weights
from refspec.reference.draft import Ops
from refspec.reference.ops import Array, Ids


def linear(w: Weights, name: str, x: Array, ops: Ops) -> Array:
    """x times the matrix `name`, plus its bias where the drafter has one: [T, inputs] -> [T, outputs]."""
    y = ops.matvec(w[name], x)
    bias = w.get(f"{name}.bias")
    return y if bias is None else y + bias


def normalized(c: DrafterConfig, w: Weights, features: Array, ops: Ops) -> Array:
    """The feature norm, before fc: [T, n_states*Ht] -> same shape."""
    if c.feature_norm is FeatureNorm.NONE:
        return features
    if c.feature_norm is FeatureNorm.CONCAT:
        return ops.rms_norm(features, w["fc_norm"], c.rms_eps)
    states = np.split(features, c.n_states, axis=1)  # n_states x [T, Ht]
    return np.concatenate([ops.rms_norm(a, w[f"fc_norm.{i}"], c.rms_eps) for i, a in enumerate(states)], axis=1)


def project(c: DrafterConfig, w: Weights, features: Array, ops: Ops) -> Array:
    """Features, captured states of the target side by side, [T, n_states*Ht] -> states g [T, H] of true rows."""
    return linear(w, "fc", normalized(c, w, features, ops), ops)


class Attention(NamedTuple):
    """What attention did in T rows, for diagnostics."""

    weights: Array  # [nh, T, S], 0 where a row does not see
    residual: Array  # [T, H] what its output was added to
    added: Array  # [T, H] that output


def block(
    c: DrafterConfig, w: Weights, tokens: Ids, g: Array, cache: KVCache, ops: Ops, want_attention: bool,
    anchor: Anchor | None = None,
) -> tuple[Array, Attention | None]:  # fmt: skip
    """The decoder layer: tokens [T] and states g [T, H] -> h [T, H] and, if wanted, what attention did.

    Appends T rows to the cache. The RoPE position of a row is its index there; it sees itself and all rows before it.
    `anchor` is an experiment, see below.
    """
    n, eps = len(tokens), c.rms_eps
    positions = np.arange(len(cache), len(cache) + n)  # [T]

    e = ops.rms_norm(ops.gather_rows(w["token_embd"], tokens), w["attn_norm"], eps)  # [T, H]
    s = ops.rms_norm(g, w["hidden_norm"], eps)  # [T, H]
    x = np.concatenate([e, s], axis=1)  # [T, 2H], the embedding first

    q: Array = linear(w, "attn_q", x, ops).reshape(n, c.n_heads, c.head_dim)  # [T, nh, hd]
    k: Array = linear(w, "attn_k", x, ops).reshape(n, c.n_kv_heads, c.head_dim)  # [T, nkv, hd]
    v: Array = linear(w, "attn_v", x, ops).reshape(n, c.n_kv_heads, c.head_dim)  # [T, nkv, hd]
    if c.qk_norm:
        q = ops.rms_norm(q.reshape(-1, c.head_dim), w["q_norm"], eps).reshape(q.shape)  # [T, nh, hd]
        k = ops.rms_norm(k.reshape(-1, c.head_dim), w["k_norm"], eps).reshape(k.shape)  # [T, nkv, hd]
    q = ops.rope(q, positions, c.rope_theta, c.rope_style, w.get("rope_freqs"))  # [T, nh, hd]
    k = ops.rope(k, positions, c.rope_theta, c.rope_style, w.get("rope_freqs"))  # [T, nkv, hd]
    cache.append(k, v)
    a, weights = ops.attention(q, cache.keys, cache.values, positions + 1, want_attention or anchor is not None)
    # a [T, nh*hd], weights [nh, T, S]
    if anchor is not None and weights is not None:
        a, weights = anchored(weights, cache.values, anchor)  # [T, nh*hd], [nh, T, S]

    beside, added = residual(c, g, s), linear(w, "attn_output", a, ops)  # [T, H] each
    y = beside + added  # [T, H]
    z = ops.rms_norm(y, w["ffn_norm"], eps)  # [T, H]
    f = ops.swiglu(linear(w, "ffn_gate", z, ops), linear(w, "ffn_up", z, ops))  # [T, F]
    return y + linear(w, "ffn_down", f, ops), None if weights is None else Attention(weights, beside, added)  # [T, H]


def residual(c: DrafterConfig, g: Array, s: Array) -> Array:
    """What attention is added to: the state g [T, H], or its norm s [T, H]."""
    return s if c.residual is Residual.NORMED else g


def output_norm(c: DrafterConfig, w: Weights, h: Array, ops: Ops) -> Array:
    """The norm n of h before the head: [T, H] -> [T, H]; h itself where neither head nor feedback uses it."""
    return ops.rms_norm(h, w["output_norm"], c.rms_eps) if c.uses_output_norm else h


def head(c: DrafterConfig, w: Weights, h: Array, n: Array, ops: Ops) -> Array:
    """Logits over the draft vocabulary: [T, H] -> [T, D]."""
    return linear(w, "output", n if c.head_norm else h, ops)


def feedback(c: DrafterConfig, h: Array, n: Array) -> Array:
    """The state the next chained row starts from: the block output h [T, H], or its norm n [T, H]."""
    return n if c.feedback is Feedback.POST_NORM else h


# Two experiments against the drift of chained rows, off by default and part of no drafter's definition: `anchored`
# holds their attention on true rows, `resized` holds the size of their states.


class Anchor(NamedTuple):
    """A bonus on the scores of true rows, against chained rows drawing the attention to themselves."""

    n_true: int  # rows made from target features
    bonus: float  # in units of a score, after the 1/sqrt(hd)


def anchored(weights: Array, values: Array, anchor: Anchor) -> tuple[Array, Array]:
    """Attention with the bonus: weights [nh, T, S], values [S, nkv, hd] -> [T, nh*hd] and the new weights.

    softmax(score + bonus [s < n_true]) = weights * exp(bonus [s < n_true]) / its sum, so the odds of true against
    chained rows grow by the factor exp(bonus) in every head; ratios within either kind stay.
    """
    own = np.exp(np.float32(-anchor.bonus))  # chained rows lose the factor, not true ones gain it: nothing overflows
    scaled = weights * np.where(np.arange(weights.shape[-1]) < anchor.n_true, np.float32(1), own)  # [nh, T, S]
    new: Array = scaled / scaled.sum(-1, keepdims=True)  # [nh, T, S]
    group = len(weights) // values.shape[1]
    out = np.stack([p @ values[:, h // group] for h, p in enumerate(new)], axis=1)  # [T, nh, hd]
    return out.reshape(out.shape[0], -1), new


def resized(states: Array, sizes: npt.NDArray[np.float64]) -> Array:
    """States [T, H] scaled to the root mean squares `sizes` [T]; zeros stay zero."""
    now = np.sqrt(np.mean(np.square(states, dtype=np.float64), axis=1))  # [T]
    return states * np.where(now > 0, sizes / np.where(now > 0, now, 1), 1)[:, None].astype(np.float32)
