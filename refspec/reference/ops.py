"""The numerical specification: the few operations a drafter is made of, in NumPy.

Not fast; `refspec/native/ops.py` offers the same names in C. Float32 in, float32 out, statistics in float32, RoPE
angles in float64. Sources: the papers named at each function.

Batch-invariant: a row's result depends on that row alone, bit for bit. BLAS chooses the order of a sum by the shape of
the matrices, so a matrix is applied to one row at a time here, and an attention row reads exactly the keys it may see
instead of a longer, masked set.

Shape legend: T rows, D or I or O widths, H query heads, Hkv key/value heads, hd head size, S cached rows, V vocabulary.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.integer[Any]]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm (Zhang 2019, eq. 4): x [T, D], weight [D] -> [T, D], y = w * x / sqrt(mean(x^2) + eps).

    Engines in half precision round x / rms before multiplying by w; in float32 the two orders are one.
    """
    x = np.ascontiguousarray(x, dtype=np.float32)
    mean_square: Array = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)  # [T, 1]
    rms: Array = np.sqrt(mean_square + np.float32(eps))  # [T, 1]
    return weight * (x / rms)  # [T, D]


def rope(x: Array, positions: Ids, theta: float, style: str, freqs: Array | None = None) -> Array:
    """Rotary embedding (Su 2021, eq. 34): x [T, H, hd], positions [T] -> [T, H, hd].

    Pair i turns by position * theta^(-2i/hd) / freqs[i]; freqs [hd/2] are divisors that express linear, llama3 and yarn
    scaling. style "interleaved" pairs (2i, 2i+1), "half_split" pairs (i, i + hd/2).
    """
    half = x.shape[-1] // 2
    first: tuple[EllipsisType, slice]
    second: tuple[EllipsisType, slice]
    frequency = theta ** (-np.arange(half, dtype=np.float64) / half)  # [hd/2]
    if freqs is not None:
        frequency = frequency / freqs  # [hd/2]
    # float64, because a float32 angle of position 100000 is off by 0.004 radians
    angle = np.asarray(positions, dtype=np.float64)[:, None, None] * frequency  # [T, 1, hd/2]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)  # [T, 1, hd/2]
    if style == "interleaved":
        first, second = np.s_[..., 0::2], np.s_[..., 1::2]
    elif style == "half_split":
        first, second = np.s_[..., :half], np.s_[..., half:]
    else:
        raise ValueError(f"rope style {style!r} is neither 'interleaved' nor 'half_split'")
    out = np.empty_like(x, dtype=np.float32)  # [T, H, hd]
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out


def matvec(w: Array, x: Array) -> Array:
    """Each row of x [T, I] times w [O, I] transposed -> [T, O]; one row at a time, so that rows stay independent."""
    out = np.empty((x.shape[0], w.shape[0]), dtype=np.float32)  # [T, O]
    for t, row in enumerate(np.ascontiguousarray(x, dtype=np.float32)):
        out[t] = w @ row  # [O]
    return out


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / sum(exp(x)) along axis, same shape; -inf gives exactly 0."""
    x = np.ascontiguousarray(np.moveaxis(x, axis, -1), dtype=np.float32)
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))  # the maximum is subtracted so that exp cannot overflow
    return np.moveaxis(e / np.sum(e, axis=-1, keepdims=True), -1, axis)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up (Shazeer 2020): [T, F], [T, F] -> [T, F], silu(z) = z / (1 + exp(-z))."""
    with np.errstate(over="ignore"):  # exp(-z) = inf for very negative z, and z / inf = 0 is the right answer
        silu: Array = gate / (1 + np.exp(-gate))  # [T, F]
    return silu * up  # [T, F]


def attention(q: Array, k: Array, v: Array, visible: Ids, return_weights: bool = False) -> tuple[Array, Array | None]:
    """Grouped-query attention (Ainslie 2023): q [T, H, hd], k and v [S, Hkv, hd] -> [T, H*hd], scale 1/sqrt(hd).

    Row t sees the first visible[t] cached rows (1..S). Query head h reads key/value head h // (H / Hkv). With
    return_weights also the weights [H, T, S], 0 where not visible, else None.
    """
    n_rows, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    out = np.empty((n_rows, n_heads, head_dim), dtype=np.float32)  # [T, H, hd]
    weights = np.zeros((n_heads, n_rows, k.shape[0]), dtype=np.float32) if return_weights else None  # [H, T, S]
    for t in range(n_rows):
        s = int(visible[t])
        for h in range(n_heads):
            keys, values = k[:s, h // group], v[:s, h // group]  # [s, hd]; exactly what row t sees
            scores = (keys @ q[t, h]) / np.float32(np.sqrt(head_dim))  # [s]
            p = softmax(scores)  # [s]
            out[t, h] = p @ values  # [hd]
            if weights is not None:
                weights[h, t, :s] = p
    return out.reshape(n_rows, n_heads * head_dim), weights


def gather_rows(table: Array, ids: Ids) -> Array:
    """Rows of table [V, D] at ids [T] -> [T, D], a copy; the caller checks that ids are within 0..V-1."""
    return table[ids]


def argmax(x: Array) -> int:
    """Index of the largest value of x [V], the lowest one on ties (NumPy's rule, stated because C must match)."""
    return int(np.argmax(x))
