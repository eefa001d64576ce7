"""Draft trees by the reference drafter: chained rows, each of which sees only its own path.

Every node that is expanded gets one row of the cache. It reads the true rows, its ancestors' rows and itself: the
attention mask of a tree, written as the list of rows seen, so that a node's numbers are bit for bit those of a chain
forced onto its path. Its RoPE position is its depth after the last true row. How a tree grows is `tree_grow.py`.

Shape legend: T rows, S rows seen, F nodes run together, N nodes, the rest in `config.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.reference.cache import KVCache
from refspec.reference.draft_distribution import draft_distribution, forbids_all, restricted
from refspec.reference.eagle3_forward import Anchor, block, feedback, head, output_norm
from refspec.reference.eagle3_rows import Eagle3Rows
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler, invert_cdf, p_target
from refspec.reference.tree import ROOT, Distribution, Tree, TreeShape, empty_tree
from refspec.reference.tree_grow import Found, More, grow, grow_sampled, top_probs


class PathView(KVCache):
    """A cache as one path of a tree sees it: some rows of it, in order, and what is appended."""

    def __init__(self, cache: KVCache, rows: Sequence[int]) -> None:
        self.cache, self.seen = cache, list(rows)

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def keys(self) -> Array:
        """[S, Hkv, hd], a copy."""
        return self.cache.keys[self.seen]

    @property
    def values(self) -> Array:
        """[S, Hkv, hd], a copy."""
        return self.cache.values[self.seen]

    def append(self, k: Array, v: Array) -> None:
        """Add rows k and v, [T, Hkv, hd] each, to the cache and to the path."""
        first = len(self.cache)
        self.cache.append(k, v)
        self.seen += range(first, first + len(k))


class NodeRow(NamedTuple):
    """What the row of one node left behind."""

    seen: list[int]  # rows of the cache that a child of this node reads
    h: Array  # [1, H] block output
    n: Array  # [1, H] its norm
    g: Array  # [1, H] state that entered the block


class TreeRows:
    """Rows of tree nodes after the true rows of a drafter; they live until its next call."""

    def __init__(self, drafter: Eagle3Rows) -> None:
        drafter.rollback(drafter.n_rows)
        self.drafter = drafter
        h = drafter.hidden.rows[-1:].copy()  # [1, H]
        n = output_norm(drafter.config, drafter.weights, h, drafter.ops)
        self.rows = {ROOT: NodeRow(list(range(drafter.n_rows)), h, n, h)}  # the last true row; its g is never read

    def run(self, node: int, token: int, parent: int) -> None:
        """One row: `token` and the state its parent hands on, after the parent's path."""
        d, above = self.drafter, self.rows[parent]
        g = d.handed_on(feedback(d.config, above.h, above.n), len(above.seen) - d.n_rows + 1)  # [1, H]
        view = PathView(d.cache, above.seen)
        anchor = Anchor(d.n_rows, d.anchor) if d.anchor else None
        h, _ = block(d.config, d.weights, np.array([token]), g, view, d.ops, False, anchor)  # [1, H]
        d.hidden.append(h)
        self.rows[node] = NodeRow(view.seen, h, output_norm(d.config, d.weights, h, d.ops), g)

    def logits(self, node: int) -> Array:
        """[D] what may follow a node that was run, or the root."""
        row, d = self.rows[node], self.drafter
        return head(d.config, d.weights, row.h, row.n, d.ops)[0]


def draft_tree(
    d: Eagle3Rows, shape: TreeShape, coins: npt.NDArray[np.float64] | None, sampler: Sampler | None, more: More | None
) -> Tree:
    """A tree after the last true row: the likeliest tokens, or drawn by coins [nodes] without replacement."""
    if not d.n_rows:
        return empty_tree()
    rows = TreeRows(d)

    def ready(found: Sequence[Found], nodes: Sequence[int]) -> None:
        for node in nodes:
            if node != ROOT:
                rows.run(node, found[node].token, found[node].parent)

    def likeliest(found: Sequence[Found], nodes: Sequence[int]) -> list[tuple[Ids, Array]]:
        ready(found, nodes)
        logits = [rows.logits(node) for node in nodes]  # F x [D]
        ids = [top_probs(x, shape.top_k)[0] for x in logits]  # F x [k]
        at = np.float32(shape.temperature)
        return [(d.d2t[i], d.ops.softmax(x / at)[i]) for i, x in zip(ids, logits, strict=True)]

    if sampler is None or coins is None:
        return grow(likeliest, shape, more)
    if forbids_all(sampler, d.d2t):
        return empty_tree()
    narrow = restricted(sampler, d.d2t, d.config.draft_vocab_size)

    def distributions(found: Sequence[Found], nodes: Sequence[int]) -> list[Distribution]:
        ready(found, nodes)
        drawn = [p_target(rows.logits(node), narrow) for node in nodes]  # F x [D]
        return [draft_distribution(p, d.d2t, d.config.vocab_size) for p in drawn]

    given = iter(coins.tolist())
    return grow_sampled(distributions, shape, lambda q: invert_cdf(q, next(given)))


def forward_tree(d: Eagle3Rows, tokens: Ids, parents: Ids) -> tuple[Array, Array, Array]:
    """Teacher-forced nodes after the last true row: tokens [N], parents [N] -> logits [N, D], g [N, H], h [N, H]."""
    rows = TreeRows(d)
    for node, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
        rows.run(node, token, parent)
    nodes = range(len(tokens))
    logits = np.array([rows.logits(node) for node in nodes], np.float32).reshape(len(tokens), d.config.draft_vocab_size)
    width = d.config.hidden_size
    g, h = (np.array([rows.rows[node][i][0] for node in nodes], np.float32).reshape(-1, width) for i in (3, 1))
    return logits, g, h
