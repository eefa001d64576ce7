"""`refspec/reference/tree_verify.py`, and its legend, from C or from there; errors as in `native/verify.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refspec.native.module import ffi, lib, to_c
from refspec.native.verify import _pointers, _row, _rows, _scratch, _tokens, c_sampler
from refspec.reference import tree_grow, tree_verify
from refspec.reference.ops import Array
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Distribution, Tree
from refspec.reference.tree_verify import TreeVerdict
from refspec.reference.verify import Rows


def verify_tree_deterministic(logits: Rows, tree: Tree, sampler: Sampler, coins: ArrayLike) -> TreeVerdict:
    """tree_verify.verify_tree_deterministic: logits [N+1, V], a tree of N nodes, coins [h+1] -> TreeVerdict."""
    u = np.ascontiguousarray(coins, dtype=np.float64)
    given = _given(logits, tree)
    if given is not None and u.ndim == 1 and len(u) > tree.height:
        rows, draft, parents = given
        tokens, path = np.empty(len(rows), np.int32), np.empty(len(rows), np.int32)  # [N+1]
        p, order = _scratch(len(rows[0]))
        accepted = lib.rs_verify_tree_deterministic(
            to_c(tokens), to_c(path), _pointers("float *[]", rows), to_c(draft), to_c(parents), c_sampler(sampler)[0],
            to_c(u), to_c(p), to_c(order), len(draft), len(rows[0]),
        )  # fmt: skip
        if accepted >= 0:
            return TreeVerdict(path[:accepted].tolist(), tokens[: accepted + 1].tolist())
    return tree_verify.verify_tree_deterministic(logits, tree, sampler, coins)


def verify_tree_rejection(
    logits: Rows, tree: Tree, sampler: Sampler, accept_coins: ArrayLike, residual_coins: ArrayLike
) -> TreeVerdict:
    """tree_verify.verify_tree_rejection: accept_coins [h, m], residual_coins [h+1] -> TreeVerdict."""
    u = np.ascontiguousarray(accept_coins, dtype=np.float64)
    v = np.ascontiguousarray(residual_coins, dtype=np.float64)
    given, after = _given(logits, tree), tree.distributions
    if given is not None and _fits(tree, u, v) and after is not None and len(after) == len(tree.tokens) + 1:
        rows, draft, parents = given
        held = [None if q is None else np.ascontiguousarray(q, dtype=np.float64) for q in after]
        if all(q is None or q.shape == rows[0].shape for q in held):
            pointers = ffi.new("double *[]", [ffi.NULL if q is None else to_c(q) for q in held])
            tokens, path = np.empty(len(rows), np.int32), np.empty(len(rows), np.int32)  # [N+1]
            p, order = _scratch(len(rows[0]))
            accepted = lib.rs_verify_tree_rejection(
                to_c(tokens), to_c(path), _pointers("float *[]", rows), to_c(draft), to_c(parents), pointers,
                c_sampler(sampler)[0], to_c(u), to_c(v), to_c(p), to_c(np.empty_like(p)), to_c(order), len(draft),
                u.shape[1], len(rows[0]),
            )  # fmt: skip
            if accepted >= 0:
                return TreeVerdict(path[:accepted].tolist(), tokens[: accepted + 1].tolist())
    return tree_verify.verify_tree_rejection(logits, tree, sampler, accept_coins, residual_coins)


def _fits(tree: Tree, u: NDArray[np.float64], v: NDArray[np.float64]) -> bool:
    h, m = tree.height, tree.width
    return u.ndim == 2 and u.shape[0] >= h and u.shape[1] >= m and v.ndim == 1 and len(v) > h


def without(q: Distribution, token: int) -> Distribution:
    """tree_verify.without: the distribution of the next draw from q [V] when `token` is not put back."""
    if lib is None or np.ndim(q) != 1 or not 0 <= token < len(q):
        return tree_verify.without(q, token)
    rest = np.array(q, dtype=np.float64)  # [V], a copy
    lib.rs_without(to_c(rest), token, len(rest))
    return rest


def top_probs(logits: NDArray[np.floating[Any]], k: int, temperature: float = 1.0) -> tuple[NDArray[np.int32], Array]:
    """tree_grow.top_probs: the k likeliest of logits [D] and their probabilities, [k] each."""
    row = _row(logits)
    if lib is not None and row is not None and 0 <= k <= len(row):
        ids, probs = np.empty(k, np.int32), np.empty(k, np.float32)
        n = lib.rs_top_probs(to_c(ids), to_c(probs), to_c(row), temperature, k, len(row))
        if n >= 0:
            return ids[:n], probs[:n]
    return tree_grow.top_probs(logits, k, temperature)


def _given(logits: Rows, tree: Tree) -> tuple[list[NDArray[Any]], NDArray[np.int32], NDArray[np.int32]] | None:
    """Rows, tokens and parents for C; None without C or for what C does not take."""
    if lib is None:
        return None
    rows, draft, parents = _rows(logits, np.float32), _tokens(tree.tokens), np.asarray(tree.parents)
    if draft is None or parents.shape != draft.shape or parents.dtype.kind not in "iu":
        return None
    if not rows or len(rows) != len(draft) + 1:
        return None
    if ((parents < ROOT) | (parents >= np.arange(len(parents)))).any():  # the height of such a tree is undefined
        return None
    return rows, draft, np.ascontiguousarray(parents, np.int32)
