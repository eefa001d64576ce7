"""The arithmetic refspec does around llama.cpp's drafter: feature norm, feedback rule, choice of the drafted token.

Runs once per drafted token, so addresses go in and nothing is allocated; in C where the module is built. The rules
themselves are `ops.rms_norm`, `ops.softmax` and `ops.argmax`. Shape legend: T rows, N captured states, Ht target width,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refspec import native
from refspec.llama.capture import Floats, Views
from refspec.reference import ops


def copy_rows(features: Floats, out: Floats) -> None:
    """Features as they were captured: [T, W] -> out [>=T, W]."""
    out[: len(features)] = features


def _floats(array: Floats) -> Any:
    return native.ffi.cast("float *", array.ctypes.data)


class PerStateNorm:
    """RMSNorm of each captured state by its own weights (EAGLE 3.1 `fc_norm`): [T, N*Ht] -> out [>=T, N*Ht]."""

    def __init__(self, weights: Floats, eps: float, rows: int) -> None:
        self._weights, self._eps = np.ascontiguousarray(weights, np.float32), np.float32(eps)  # [N, Ht]
        self._scale = np.empty((rows, len(weights)), np.float32)
        if native.lib is not None:
            self._states = native.ffi.new("float *[]", len(weights))
            self._pointers = native.ffi.new("float *[]", [_floats(row) for row in self._weights])

    def __call__(self, features: Floats, out: Floats) -> None:
        n = len(features)
        if native.lib is not None:
            (states, width), features = self._weights.shape, np.ascontiguousarray(features, np.float32)
            first, stride = _floats(features), states * width
            for i in range(states):
                self._states[i] = first + i * width
            native.lib.rs_gather_features(
                _floats(out),
                self._states,
                self._pointers,
                float(self._eps),
                n,
                states,
                width,
                stride,
                out.strides[0] // 4,
            )
            return
        x, y = features.reshape(n, *self._weights.shape), out[:n].reshape(n, *self._weights.shape)  # [T, N, Ht]
        scale = np.einsum("tnh,tnh->tn", x, x, out=self._scale[:n])  # sums of squares
        scale /= np.float32(self._weights.shape[1])
        scale += self._eps
        np.sqrt(scale, out=scale)
        np.divide(x, scale[:, :, None], out=y)
        y *= self._weights


def pre_norm(width: int) -> Callable[[int, Floats], None]:
    """The chained state is the block output h itself (EAGLE-3)."""
    views = Views()

    def feed_back(state: int, out: Floats) -> None:
        out[0] = views.at(state, 1, width)[0]

    return feed_back


def post_norm(weight: Floats, eps: float) -> Callable[[int, Floats], None]:
    """The chained state is RMSNorm(h; output_norm) (EAGLE 3.1)."""
    if native.lib is not None:
        weight = np.ascontiguousarray(weight, np.float32)
        cast, call, c_weight = native.ffi.cast, native.lib.rs_draft_feedback, native.ffi.from_buffer("float[]", weight)

        def feed_back_c(state: int, out: Floats) -> None:
            call(cast("float *", out.ctypes.data), cast("float *", state), c_weight, eps, 1, len(weight))

        return feed_back_c
    views = Views()

    def feed_back(state: int, out: Floats) -> None:
        out[:1] = ops.rms_norm(views.at(state, 1, len(weight)), weight, eps)

    return feed_back


def argmax_prob(vocab: int) -> Callable[[int], tuple[int, float]]:
    """The most probable token of logits at an address, lowest id on ties, and its probability; -1 when not finite."""
    if native.lib is not None:
        cast, call = native.ffi.cast, native.lib.rs_argmax_prob
        prob = native.ffi.new("float *")

        def best_c(address: int) -> tuple[int, float]:
            token: Any = call(prob, cast("float *", address), vocab)
            return token, prob[0]

        return best_c
    views = Views()
    scratch = np.empty(vocab, np.float32)

    def best(address: int) -> tuple[int, float]:
        logits = views.at(address, 1, vocab)[0]
        token = int(logits.argmax())  # the first NaN, if there is one
        top = logits[token]
        if not math.isfinite(top):
            return -1, math.nan
        np.subtract(logits, top, out=scratch)
        return token, 1.0 / float(np.exp(scratch, out=scratch).sum())

    return best
