"""The lossless rules for trees: which path of a draft tree is accepted, and which token follows it.

`verify.py` for trees, and equal to it, coin by coin, where the tree is a chain. Both rules emit exactly the target's
distribution; tests/verify enumerates every path of both.

- `verify_tree_deterministic`: any tree fixed without looking at these coins. At each node the target draws its own
  token y with the one coin of that output position. A child equal to y is followed; without one, y ends the step. So
  the output is that of plain decoding with these coins, whatever the tree, and one of the children C is accepted with
  probability sum_{x in C} p(x). EAGLE-2 states the same rule with one coin per sibling: accept x_j with p_j(x_j), else
  p_{j+1}(y) = p_j(y) [y != x_j] / (1 - p_j(x_j)), and after the last sibling draw from what is left. The joint
  distribution of (followed child, token) is the same; here one coin decides.

- `verify_tree_rejection`: siblings x_1..x_m drawn without replacement from a distribution q, in this order, m fixed
  before they were drawn. Recursive rejection (Miao 2024, SpecInfer, with a distribution for each sibling; Jeon 2024
  and Chen 2024, Sequoia, without replacement). With p_1 = p and q_1 = q, for j = 1..m:
      accept x_j with probability min(1, p_j(x_j) / q_j(x_j)), else
      p_{j+1} = max(p_j - q_j, 0) / sum,    q_{j+1}(y) = q_j(y) [y != x_j] / (1 - q_j(x_j)).
  If none is accepted, draw from p_{m+1}. Lossless by induction: x_j ~ q_j given the siblings before it, so step j is
  Leviathan 2023, Alg. 1, for (p_j, q_j), and p_{j+1} does not depend on x_j. m must not depend on x_1..x_m: a sampled
  tree that is pruned by what was drawn is lossy (tests/verify/test_tree_controls.py shows it), so
  `tree_grow.grow_sampled` decides m first.

Legend: N nodes, V vocabulary, h height of the tree, m siblings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refspec.errors import BackendError, ShapeError
from refspec.reference.sampling import Sampler, invert_cdf, p_target, sample
from refspec.reference.tree import ROOT, Distribution, Tree, check_tree
from refspec.reference.verify import Rows, check_normalised, residual


class TreeVerdict(NamedTuple):
    """Outcome of one verify step: the accepted nodes, a path from the root, and their tokens and one more."""

    path: list[int]  # [accepted] nodes
    tokens: list[int]  # [accepted + 1], the last one a correction or bonus

    @property
    def accepted(self) -> int:
        """Number of accepted draft tokens."""
        return len(self.path)


def verify_tree_deterministic(logits: Rows, tree: Tree, sampler: Sampler, coins: ArrayLike) -> TreeVerdict:
    """Match rule for a tree fixed in advance: logits [N+1, V], coins [h+1] or more, one per level (unused if greedy).

    Of equal siblings the first is followed. Raises ShapeError, BackendError (see p_target).
    """
    _check(logits, tree)
    u = _at_least("coins", coins, tree.height + 1)  # [h+1]
    node, verdict = ROOT, TreeVerdict([], [])
    while True:
        token = sample(logits[node + 1], sampler, float(u[verdict.accepted]))
        verdict.tokens.append(token)
        node = next((i for i in tree.children(node) if tree.tokens[i] == token), ROOT)
        if node == ROOT:
            return verdict
        verdict.path.append(node)


def verify_tree_rejection(
    logits: Rows, tree: Tree, sampler: Sampler, accept_coins: ArrayLike, residual_coins: ArrayLike
) -> TreeVerdict:
    """Recursive rejection for siblings drawn without replacement from tree.distributions [N+1][V].

    logits [N+1, V]; accept_coins [h, m] or more, by level and order of the sibling; residual_coins [h+1] or more.
    Raises ShapeError, and BackendError when a distribution is missing or cannot have given its siblings: a token
    with probability 0 or twice.
    """
    _check(logits, tree)
    u = _at_least("accept_coins", accept_coins, tree.height, tree.width)  # [h, m]
    v = _at_least("residual_coins", residual_coins, tree.height + 1)  # [h+1]
    node, verdict = ROOT, TreeVerdict([], [])
    while True:
        level, siblings = verdict.accepted, tree.children(node)
        if not siblings:
            verdict.tokens.append(sample(logits[node + 1], sampler, float(v[level])))
            return verdict
        p, q = p_target(logits[node + 1], sampler), _distribution(tree, node, logits)  # [V], [V]
        followed = ROOT
        for j, child in enumerate(siblings):
            token = int(tree.tokens[child])
            if not q[token] > 0:
                raise BackendError(f"tree: token {token} of node {child} has probability 0 after its siblings")
            if u[level, j] * q[token] < p[token]:  # u < p/q without the division, as for chains
                followed = child
                break
            p = residual(p, q)
            q = without(q, token)
        if followed == ROOT:
            verdict.tokens.append(invert_cdf(p, float(v[level])))
            return verdict
        verdict.path.append(followed)
        verdict.tokens.append(int(tree.tokens[followed]))
        node = followed


def without(q: Distribution, token: int) -> Distribution:
    """The distribution of the next draw from q [V] when `token` is not put back; all 0 when nothing is left."""
    rest = q.copy()  # [V]
    rest[token] = 0.0
    total = np.cumsum(rest)[-1]  # sequential, as in C
    return rest / total if total > 0 else rest


def _check(logits: Rows, tree: Tree) -> None:
    if len(logits) != len(tree.tokens) + 1:
        raise ShapeError(f"logits: {len(logits)} rows for {len(tree.tokens)} nodes; need one more row than nodes")
    check_tree(tree, len(logits[0]))


def _at_least(name: str, coins: ArrayLike, *needed: int) -> NDArray[np.float64]:
    array = np.asarray(coins, dtype=np.float64)
    if array.ndim != len(needed) or any(have < need for have, need in zip(array.shape, needed, strict=True)):
        raise ShapeError(f"{name}: shape {list(array.shape)}, need at least {list(needed)} for this tree")
    return array


def _distribution(tree: Tree, node: int, logits: Rows) -> Distribution:
    distribution = None if tree.distributions is None else tree.distributions[node + 1]
    if distribution is None:
        raise BackendError(f"tree: the children of node {node} come without the distribution they were drawn from")
    q = np.asarray(distribution, dtype=np.float64)  # [V]
    if q.shape != (len(logits[0]),):
        raise ShapeError(f"tree: a distribution of shape {q.shape}, need [{len(logits[0])}]")
    check_normalised("tree", q)
    return q
