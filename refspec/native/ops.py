"""`refspec/reference/ops.py` from C, or from there without C: same names, arguments, shapes and legend.

Shapes are checked before C sees them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.native.module import ffi, floats, lib, require, to_c
from refspec.reference import ops
from refspec.reference.ops import Array, Ids

ROPE_STYLES = {"interleaved": 0, "half_split": 1}  # enum rs_rope_style


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """ops.rms_norm: x [T, D], weight [D] -> [T, D]."""
    if lib is None:
        return ops.rms_norm(x, weight, eps)
    x, weight = floats(x), floats(weight)
    width = x.shape[-1]
    require(weight.shape == (width,), f"rms_norm: weight {list(weight.shape)} for rows of {width}")
    out = np.empty_like(x)
    lib.rs_rms_norm(to_c(out), to_c(x), to_c(weight), eps, x.size // max(width, 1), width)
    return out


def rope(x: Array, positions: Ids, theta: float, style: str, freqs: Array | None = None) -> Array:
    """ops.rope: x [T, H, hd], positions [T], freqs [hd/2] divisors -> [T, H, hd]."""
    if lib is None:
        return ops.rope(x, positions, theta, style, freqs)
    x, positions = floats(x), np.ascontiguousarray(positions, dtype=np.int64)
    rows, heads, head_dim = x.shape
    if style not in ROPE_STYLES:
        raise ValueError(f"rope style {style!r} is neither 'interleaved' nor 'half_split'")
    require(positions.shape == (rows,), f"rope: positions {list(positions.shape)} for {rows} rows")
    require(head_dim % 2 == 0, f"rope: head size {head_dim} is odd")
    if freqs is not None:
        freqs = floats(freqs)
        require(freqs.shape == (head_dim // 2,), f"rope: freqs {list(freqs.shape)} for head size {head_dim}")
    out = np.empty_like(x)
    divisors = ffi.NULL if freqs is None else to_c(freqs)
    lib.rs_rope(to_c(out), to_c(x), to_c(positions), divisors, theta, ROPE_STYLES[style], rows, heads, head_dim)
    return out


def matvec(w: Array, x: Array) -> Array:
    """ops.matvec: w [O, I], x [T, I] -> [T, O]."""
    if lib is None:
        return ops.matvec(w, x)
    w, x = floats(w), floats(x)
    fits = w.ndim == 2 and x.ndim == 2 and w.shape[1] == x.shape[1]
    require(fits, f"matvec: w {list(w.shape)} with x {list(x.shape)}")
    out = np.empty((x.shape[0], w.shape[0]), dtype=np.float32)
    lib.rs_matvec(to_c(out), to_c(w), to_c(x), x.shape[0], *w.shape)
    return out


def softmax(x: Array, axis: int = -1) -> Array:
    """ops.softmax: exp(x) / sum(exp(x)) along axis, same shape."""
    if lib is None:
        return ops.softmax(x, axis)
    x = floats(np.moveaxis(x, axis, -1))
    out = np.empty_like(x)
    lib.rs_softmax(to_c(out), to_c(x), x.size // max(x.shape[-1], 1), x.shape[-1])
    return np.moveaxis(out, -1, axis)


def swiglu(gate: Array, up: Array) -> Array:
    """ops.swiglu: gate and up [T, F] -> [T, F]."""
    if lib is None:
        return ops.swiglu(gate, up)
    gate, up = floats(gate), floats(up)
    require(gate.shape == up.shape, f"swiglu: gate {list(gate.shape)} with up {list(up.shape)}")
    out = np.empty_like(gate)
    lib.rs_swiglu(to_c(out), to_c(gate), to_c(up), gate.size)
    return out


def attention(q: Array, k: Array, v: Array, visible: Ids, return_weights: bool = False) -> tuple[Array, Array | None]:
    """ops.attention: q [T, H, hd], k and v [S, Hkv, hd], visible [T] -> [T, H*hd] and, if wanted, [H, T, S]."""
    if lib is None:
        return ops.attention(q, k, v, visible, return_weights)
    q, k, v, visible = floats(q), floats(k), floats(v), np.ascontiguousarray(visible, dtype=np.int64)
    (rows, heads, head_dim), (keys, kv_heads, _) = q.shape, k.shape
    require(k.shape == v.shape and k.shape[2] == head_dim, f"attention: q {q.shape}, k {k.shape}, v {v.shape}")
    require(heads % kv_heads == 0, f"attention: {heads} query heads over {kv_heads} key/value heads")
    fits = visible.shape == (rows,) and (rows == 0 or 1 <= visible.min() <= visible.max() <= keys)
    require(fits, f"attention: visible must be [T] with values 1..{keys}")
    out = np.empty((rows, heads * head_dim), dtype=np.float32)
    weights = np.empty((heads, rows, keys), dtype=np.float32) if return_weights else None
    scratch = np.empty(keys, dtype=np.float32)
    p = ffi.NULL if weights is None else to_c(weights)
    sizes = (rows, keys, heads, kv_heads, head_dim)
    lib.rs_attention(to_c(out), p, to_c(scratch), to_c(q), to_c(k), to_c(v), to_c(visible), *sizes)
    return out, weights


def gather_rows(table: Array, ids: Ids) -> Array:
    """ops.gather_rows: rows of table [V, D] at ids [T] -> [T, D]; ids outside 0..V-1 raise ShapeError."""
    if lib is None:
        return ops.gather_rows(table, ids)
    table, ids = floats(table), np.ascontiguousarray(ids, dtype=np.int64)
    bad = ids[(ids < 0) | (ids >= len(table))]
    require(not bad.size, f"gather_rows: id {bad[:1]} is outside the table of {len(table)} rows")
    out = np.empty((len(ids), table.shape[1]), dtype=np.float32)
    lib.rs_gather_rows(to_c(out), to_c(table), to_c(ids), len(ids), table.shape[1])
    return out


def argmax(x: Array) -> int:
    """ops.argmax: index of the largest of x [V], the lowest on ties; of the first NaN if there is one."""
    if lib is None:
        return ops.argmax(x)
    x = floats(x)
    require(x.size > 0, "argmax: empty row")
    best = int(lib.rs_argmax(to_c(x), x.size))
    return best if best >= 0 else -1 - best  # C reports a NaN as -1 - index; NumPy stops there


def quantize_q8_0(x: Array) -> npt.NDArray[np.uint8]:
    """Rows [R, W] float32, W a multiple of 32 -> Q8_0 bytes [R, W / 32 * 34], bit for bit those of `gguf`; needs C."""
    x = floats(x)
    require(x.ndim == 2 and x.shape[1] % 32 == 0, f"quantize_q8_0: shape {x.shape} is not rows of blocks of 32")
    blocks = x.size // 32
    out, scale = np.empty((blocks, 34), np.uint8), np.empty(blocks, np.float32)
    lib.rs_quantize_q8_0(ffi.cast("uint8_t *", out.ctypes.data), to_c(scale), to_c(x), blocks)
    out[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(blocks, 2)
    return out.reshape(len(x), -1)
