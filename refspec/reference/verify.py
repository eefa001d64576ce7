"""The lossless rules: which draft tokens are accepted, and which token follows them.

The two verification rules, nothing else: no drafting, no cache, and coins are arguments (`sampling.coin`). Both emit
exactly the target's distribution `p_target`; tests/verify enumerates every path of both.

- `verify_deterministic`: the draft is any sequence fixed without looking at these coins. The target samples its own
  token at each position, and draft tokens are accepted as long as they are equal. Every emitted token is the target's
  own sample, so the same coins give the same output with any draft, or none. A draft token y is accepted with
  probability p(y).
- `verify_rejection`: the draft was sampled from q_draft. Leviathan 2023, Alg. 1: accept y with probability
  min(1, p(y) / q(y)), else draw from the residual max(p - q, 0). A token is accepted with probability sum min(p, q).
  The literature swaps p and q; here p is the target.

Legend: V vocabulary, k draft length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refspec.errors import BackendError, ShapeError
from refspec.reference.sampling import Sampler, invert_cdf, p_target, sample

Q_SUM_TOLERANCE = 1e-9  # of a distribution's sum: a float64 softmax is within 1e-12, a float32 one is not good enough

Rows = NDArray[np.floating] | Sequence[NDArray[np.floating]]  # [n, V], or n views of length V


class Verdict(NamedTuple):
    """Outcome of one verify step: `tokens` are the accepted draft tokens and one more (correction or bonus)."""

    accepted: int
    tokens: list[int]


def verify_deterministic(logits: Rows, draft: ArrayLike, sampler: Sampler, coins: ArrayLike) -> Verdict:
    """Match rule for a draft fixed in advance: logits [k+1, V], draft int [k], coins [k+1] (ignored when greedy).

    token_i = invert_cdf(p_i, coin_i), up to and including the first that differs from the draft. Raises ShapeError,
    BackendError (see p_target).
    """
    proposed = _draft_tokens(draft, logits)  # [k]
    u = _lengths("coins", coins, len(proposed) + 1)  # [k+1]
    tokens: list[int] = []
    for i in range(len(proposed) + 1):
        tokens.append(sample(logits[i], sampler, u[i]))
        if i < len(proposed) and tokens[i] != proposed[i]:
            break
    return Verdict(len(tokens) - 1, tokens)


def verify_rejection(
    logits: Rows, draft: ArrayLike, q_draft: Rows, sampler: Sampler, accept_coins: ArrayLike, residual_coins: ArrayLike
) -> Verdict:
    """Rejection rule for a draft sampled from q_draft (Leviathan 2023, Alg. 1).

    logits [k+1, V], draft int [k], q_draft float64 [k, V], accept_coins [k], residual_coins [k+1]. Raises ShapeError,
    and BackendError when a row of q_draft is not a distribution or gives its own draft token probability 0.
    """
    proposed = _draft_tokens(draft, logits)  # [k]
    k = len(proposed)
    if len(q_draft) != k:
        raise ShapeError(f"q_draft: {len(q_draft)} rows for {k} draft tokens; need one row per token")
    u = _lengths("accept_coins", accept_coins, k)  # [k]
    v = _lengths("residual_coins", residual_coins, k + 1)  # [k+1]
    for i, token in enumerate(proposed):
        p = p_target(logits[i], sampler)  # [V]
        q = _checked_q(q_draft[i], token, len(p))  # [V]
        if u[i] * q[token] < p[token]:  # u < p/q without the division; u < 1 accepts whenever p >= q
            continue
        return Verdict(i, [*proposed[:i], invert_cdf(residual(p, q), v[i])])
    return Verdict(k, [*proposed, sample(logits[k], sampler, v[k])])


def residual(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """max(p - q, 0) normalised, float64 [V]; p itself when nothing is left.

    Nothing is left only if p <= q everywhere, that is p = q up to rounding; a rejection then has probability 1e-16.
    """
    rest = np.maximum(p - q, 0.0)  # [V]
    total = np.cumsum(rest)[-1]  # sequential, as in C
    return rest / total if total > 0 else p


def _draft_tokens(draft: ArrayLike, logits: Rows) -> list[int]:
    tokens = np.asarray(draft)
    if tokens.size == 0:
        tokens = tokens.astype(np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ShapeError(f"draft: shape {tokens.shape} of {tokens.dtype} is not a row of token ids")
    if len(logits) != len(tokens) + 1:
        raise ShapeError(f"logits: {len(logits)} rows for {len(tokens)} draft tokens; need one more row than tokens")
    vocabulary = len(logits[0])
    for i, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise ShapeError(f"draft: token {token} at draft position {i} is outside the vocabulary of {vocabulary}")
    return [int(token) for token in tokens]


def _lengths(name: str, coins: ArrayLike, n: int) -> list[float]:
    values = np.asarray(coins, dtype=np.float64)
    if values.shape != (n,):
        raise ShapeError(f"{name}: shape {values.shape}, need [{n}]")
    return [float(value) for value in values]


def check_normalised(name: str, q: NDArray[np.float64]) -> None:
    """Raise BackendError unless q [V] is a distribution."""
    total = float(np.cumsum(q)[-1])
    if not abs(total - 1.0) <= Q_SUM_TOLERANCE or q.min() < 0:  # NaN fails too
        raise BackendError(f"{name}: row sum {total}, minimum {q.min()}; the drafter must return normalised float64")


def _checked_q(row: NDArray[np.floating], token: int, vocabulary: int) -> NDArray[np.float64]:
    q = np.asarray(row, dtype=np.float64)  # [V]
    if q.shape != (vocabulary,):
        raise ShapeError(f"q_draft: row of shape {q.shape}, need [{vocabulary}]")
    check_normalised("q_draft", q)
    if not q[token] > 0:
        raise BackendError(f"q_draft: draft token {token} has probability 0; it was not sampled from q_draft")
    return q
