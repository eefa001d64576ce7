"""`refspec/reference/sampling.py` and `refspec/reference/verify.py` from C, or from there without C.

Bit-equal: native/sampling.c does the same arithmetic in the same order. C answers a bad input with a status; the Python
function then runs on the same input and raises the reason in words, so both backends raise the same errors.

Legend: V vocabulary, k draft length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refspec.native.module import ffi, floats, lib, to_c
from refspec.reference import sampling, verify
from refspec.reference.sampling import Sampler
from refspec.reference.verify import Rows, Verdict


def coin(seed: int, position: int, stream: int = 0) -> float:
    """sampling.coin: the uniform number in [0, 1) that belongs to (seed, output position, stream)."""
    if lib is None:
        return sampling.coin(seed, position, stream)
    return float(lib.rs_coin(seed % 2**64, position % 2**64, stream % 2**64))


def p_target(logits: NDArray[np.floating[Any]], sampler: Sampler) -> NDArray[np.float64]:
    """sampling.p_target: the distribution of the next token, float64 [V], from logits [V]."""
    row = _row(logits)
    if lib is None or row is None:
        return sampling.p_target(logits, sampler)
    p, order = _scratch(len(row))
    if lib.rs_p_target(to_c(p), to_c(order), to_c(row), c_sampler(sampler)[0], len(row)) < 0:
        return sampling.p_target(logits, sampler)
    return p


def invert_cdf(p: NDArray[np.float64], coin: float) -> int:
    """sampling.invert_cdf: the lowest index whose cumulative probability exceeds the coin; p is [V]."""
    row = np.ascontiguousarray(p, dtype=np.float64)
    token = -1 if lib is None or row.ndim != 1 or not len(row) else int(lib.rs_invert_cdf(to_c(row), coin, len(row)))
    return token if token >= 0 else sampling.invert_cdf(p, coin)


def sample(logits: NDArray[np.floating[Any]], sampler: Sampler, coin: float) -> int:
    """sampling.sample: one token from logits [V]."""
    row = _row(logits)
    if lib is None or row is None:
        return sampling.sample(logits, sampler, coin)
    p, order = _scratch(len(row))
    token = int(lib.rs_sample(to_c(row), c_sampler(sampler)[0], coin, to_c(p), to_c(order), len(row)))
    return token if token >= 0 else sampling.sample(logits, sampler, coin)


def residual(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """verify.residual: max(p - q, 0) normalised, float64 [V]."""
    if lib is None or np.shape(p) != np.shape(q) or np.ndim(p) != 1:
        return verify.residual(p, q)
    p, q = np.ascontiguousarray(p, dtype=np.float64), np.ascontiguousarray(q, dtype=np.float64)
    rest = np.empty_like(p)
    lib.rs_residual(to_c(rest), to_c(p), to_c(q), len(p))
    return rest


def verify_deterministic(logits: Rows, draft: ArrayLike, sampler: Sampler, coins: ArrayLike) -> Verdict:
    """verify.verify_deterministic: logits [k+1, V], draft int [k], coins [k+1] -> Verdict."""
    proposed, u = _tokens(draft), np.ascontiguousarray(coins, dtype=np.float64)
    rows = _rows(logits, np.float32)
    if lib is not None and proposed is not None and rows:
        return MatchRule(sampler)(rows, proposed, u)
    return verify.verify_deterministic(logits, draft, sampler, coins)


class MatchRule:
    """`verify_deterministic` for one sampler, with everything C needs prepared once."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._rows, self._vocab = 0, 0
        self._c = None if lib is None else c_sampler(sampler)
        if lib is not None:
            self._floats, self._ints, self._doubles = map(ffi.typeof, ("float[]", "int32_t[]", "double[]"))

    def __call__(
        self, logits: Sequence[NDArray[np.float32]], draft: NDArray[np.int32], coins: NDArray[np.float64]
    ) -> Verdict:
        """logits k+1 rows [V], draft int32 [k], coins float64 [k+1] -> Verdict; raises as `verify_deterministic`."""
        rows, vocab = len(logits), len(logits[0])
        if self._c is None or rows != len(draft) + 1 or rows != len(coins):
            return verify.verify_deterministic(logits, draft, self.sampler, coins)
        if rows > self._rows or vocab != self._vocab:
            self._rows, self._vocab = rows, vocab
            self._pointers, self._tokens = ffi.new("float *[]", rows), ffi.new("int32_t[]", rows)
            self._p, self._order = ffi.new("double[]", vocab), ffi.new("int32_t[]", vocab)
        pointers = self._pointers
        for i, row in enumerate(logits):
            if row.dtype != np.float32 or len(row) != vocab:
                return verify.verify_deterministic(logits, draft, self.sampler, coins)
            pointers[i] = ffi.from_buffer(self._floats, row)
        tokens = self._tokens
        accepted = lib.rs_verify_deterministic(
            tokens, pointers, ffi.from_buffer(self._ints, draft), self._c[0], ffi.from_buffer(self._doubles, coins),
            self._p, self._order, rows - 1, vocab,
        )  # fmt: skip
        if accepted < 0:  # Python says in words what is wrong
            return verify.verify_deterministic(logits, draft, self.sampler, coins)
        return Verdict(accepted, ffi.unpack(tokens, accepted + 1))


def verify_rejection(
    logits: Rows, draft: ArrayLike, q_draft: Rows, sampler: Sampler, accept_coins: ArrayLike, residual_coins: ArrayLike
) -> Verdict:
    """verify.verify_rejection: logits [k+1, V], draft int [k], q_draft [k, V], coins [k] and [k+1] -> Verdict."""
    proposed, rows, distributions = _tokens(draft), _rows(logits, np.float32), _rows(q_draft, np.float64)
    u = np.ascontiguousarray(accept_coins, dtype=np.float64)
    v = np.ascontiguousarray(residual_coins, dtype=np.float64)
    k = len(distributions)
    fits = proposed is not None and len(rows) == len(v) == k + 1 and len(u) == len(proposed) == k
    if lib is not None and proposed is not None and fits and all(len(q) == len(rows[0]) for q in distributions):
        tokens = np.empty(len(rows), dtype=np.int32)  # [k+1]
        p, order = _scratch(len(rows[0]))
        accepted = lib.rs_verify_rejection(
            to_c(tokens), _pointers("float *[]", rows), to_c(proposed), _pointers("double *[]", distributions),
            c_sampler(sampler)[0], to_c(u), to_c(v), to_c(p), to_c(order), len(proposed), len(rows[0]),
        )  # fmt: skip
        if accepted >= 0:
            return Verdict(accepted, tokens[: accepted + 1].tolist())
    return verify.verify_rejection(logits, draft, q_draft, sampler, accept_coins, residual_coins)


def c_sampler(sampler: Sampler) -> tuple[Any, ...]:
    """The C struct, and the arrays it points to, which the caller must keep alive."""
    ids, values = to_c(sampler.bias_ids), to_c(sampler.bias_values)
    fields = (sampler.temperature, sampler.top_p, sampler.min_p, sampler.top_k, len(sampler.bias_ids), ids, values)
    return ffi.new("rs_sampler *", fields), ids, values


def _scratch(vocab: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    return np.empty(vocab, dtype=np.float64), np.empty(vocab, dtype=np.int32)


def _row(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32] | None:
    """logits [V] for C; None for what C does not take: other shapes, and float64 logits, which float32 would round."""
    x = np.asarray(logits)
    return floats(x) if x.dtype == np.float32 and x.ndim == 1 and len(x) else None


def _rows(rows: Rows, dtype: type[np.floating[Any]]) -> list[NDArray[Any]]:
    """Rows of one length for C; empty for what C does not take."""
    kept = [np.ascontiguousarray(row) for row in rows]
    same = all(row.dtype == dtype and row.ndim == 1 and len(row) == len(kept[0]) > 0 for row in kept)
    return kept if same else []


def _tokens(draft: ArrayLike) -> NDArray[np.int32] | None:
    """Draft token ids [k] for C; None for what is not a row of integers that fit."""
    x = np.asarray(draft)
    if x.ndim != 1 or (x.size and (x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= 2**31)):
        return None
    return x.astype(np.int32)


def _pointers(kind: str, rows: Sequence[NDArray[Any]]) -> Any:
    """An array of pointers to rows; the caller's list keeps the rows alive."""
    return ffi.new(kind, [ffi.from_buffer(kind.replace(" *[]", "[]"), row) for row in rows])
