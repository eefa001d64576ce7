"""What happens between calls of llama.cpp: captured states are gathered, a token is chosen, a state is fed back.

Nothing here calls llama.cpp. The evaluation callback (native/hooks.c) is used by `llama/capture.py` directly. Shape
legend: T rows, W width of a captured state, H drafter width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from refspec.errors import ShapeError
from refspec.native.module import ffi, floats, lib, require, to_c
from refspec.reference import ops
from refspec.reference.ops import Array


def gather_features(
    sources: Sequence[Array | int], rows: int, width: int, *, norms: Sequence[Array] | None = None, eps: float = 0.0,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """Captured states, each an array [T, W] or its address, side by side -> features [T, n_states*W], state 0 first.

    With `norms`, n_states weights [W], every state is RMS-normed on the way (FeatureNorm.PER_STATE). The result is a
    view of `out` [>=T, >=n_states*W] float32, rows contiguous, where that is given. Raises ShapeError.
    """
    n = len(sources)
    if out is None:
        out = np.empty((rows, n * width), dtype=np.float32)
    contiguous = out.dtype == np.float32 and out.ndim == 2 and out.strides[1] == 4
    require(contiguous, "gather_features: out must be float32 rows")
    fits = out.shape[0] >= rows and out.shape[1] >= n * width
    require(fits, f"gather_features: out {out.shape} for {rows} rows of {n} x {width}")
    weights = None if norms is None else [floats(norm) for norm in norms]
    if weights is not None:
        require([w.shape for w in weights] == [(width,)] * n, f"gather_features: norms must be {n} weights of {width}")
    states = [_state(source, rows, width) for source in sources]
    view = out[:rows, : n * width]
    if lib is None:
        for s, state in enumerate(states):
            view[:, s * width : (s + 1) * width] = state if weights is None else ops.rms_norm(state, weights[s], eps)
        return view
    pointers = ffi.new("float *[]", [to_c(state) for state in states])
    kept = [] if weights is None else [to_c(w) for w in weights]
    norm_pointers = ffi.NULL if weights is None else ffi.new("float *[]", kept)
    target = ffi.cast("float *", out.ctypes.data)
    lib.rs_gather_features(target, pointers, norm_pointers, eps, rows, n, width, width, out.strides[0] // 4)
    return view


def _state(source: Array | int, rows: int, width: int) -> Array:
    """One captured state as a contiguous [T, W] array; an address is trusted to hold that much."""
    if isinstance(source, int):
        require(source != 0, "gather_features: a state is missing (address 0)")
        return np.ctypeslib.as_array((ctypes.c_float * (rows * width)).from_address(source)).reshape(rows, width)
    fits = source.ndim == 2 and source.shape[0] >= rows and source.shape[1] == width
    require(fits, f"gather_features: state {source.shape}")
    return floats(source[:rows])


def argmax_prob(x: Array) -> tuple[int, float]:
    """The argmax of logits x [V], lowest index on ties, and its softmax probability (NaN at a NaN)."""
    if lib is None:
        best = ops.argmax(x)
        return best, float(ops.softmax(x)[best])
    x = floats(x)
    require(x.size > 0, "argmax_prob: empty row")
    probability = ffi.new("float *", float("nan"))
    best = int(lib.rs_argmax_prob(probability, to_c(x), x.size))
    return (best, float(probability[0])) if best >= 0 else (-1 - best, float("nan"))


def draft_feedback(h: Array, output_norm: Array | None, eps: float, post_norm: bool) -> Array:
    """The state a chained row starts from: h [H], or its RMSNorm with output_norm [H] if post_norm (Feedback)."""
    h = floats(h)
    if not post_norm:
        return h
    if output_norm is None or output_norm.shape != h.shape:
        given = "missing" if output_norm is None else list(output_norm.shape)
        raise ShapeError(f"draft_feedback: output_norm is {given} for a state of {list(h.shape)}")
    if lib is None:
        return ops.rms_norm(h, output_norm, eps)
    out, weight = np.empty_like(h), floats(output_norm)
    lib.rs_draft_feedback(to_c(out), to_c(h), to_c(weight), eps, 1, h.size)
    return out


def all_finite(x: Array) -> bool:
    """True when x holds neither NaN nor infinity."""
    if lib is None:
        return bool(np.isfinite(x).all())
    x = floats(x)
    return bool(lib.rs_all_finite(to_c(x), x.size))
