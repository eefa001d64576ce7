"""Growing a draft tree: which nodes are worth a row of the target's batch.

Not a drafter: the callables `Likeliest` and `Distributions` ask one what may follow nodes already found, level by
level. The value of a node is its cumulative draft probability, the product along its path: the drafter's own estimate
of the chance that the target accepts it (EAGLE-2, Li 2024). The target samples at its own temperature, so the drafter
should be asked at that temperature too (`TreeShape.temperature`): at temperature 0 its likeliest token is accepted far
more often than its softmax says, and a tree valued by the softmax is too broad.

- `grow` (EAGLE-2/3): the top_k likeliest children of each expanded node; of each level the top_k best nodes are
  expanded; in the end the N best of all nodes found are kept. They form a subtree: a child is never worth more than its
  parent, and ties go to the smaller depth, then to the node found first. Departures: nodes whose children could not be
  kept are not expanded (those outside the N best so far and, once there are N, the worst of these); a shape may have
  a `floor`, below which a node is not kept; the caller may end growing before any level but the first (`More`).
- `grow_sampled`: children drawn without replacement from the drafter's distribution, for `verify_tree_rejection`. This
  tree must not be pruned by what was drawn, so each level has a share of the N nodes, and the number of children of a
  node is decided from its value and its distribution before the first of them is drawn.

Legend: N nodes, F nodes expanded together, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError
from refspec.reference.ops import Array
from refspec.reference.tree import ROOT, Distribution, Tree, TreeShape, empty_tree
from refspec.reference.tree_verify import without


class Found(NamedTuple):
    """One node found so far, before it is known which are kept."""

    token: int
    parent: int  # index of a node found before, or ROOT
    depth: int
    confidence: float  # draft probability after its parent
    value: float  # product of confidences along its path


# What may follow each of F nodes, asked once per level, first for [ROOT]: (all nodes found, indices of the F nodes) ->
# F x (tokens [k], probs [k])
Likeliest = Callable[[Sequence[Found], Sequence[int]], Sequence[tuple[npt.NDArray[np.integer], Array]]]
Distributions = Callable[[Sequence[Found], Sequence[int]], Sequence[Distribution]]  # F x [V]

# Asked before each level but the first, with the tree so far: False ends growing. It depends on what was drafted, never
# on a coin.
More = Callable[[Tree], bool]


def grow(children: Likeliest, shape: TreeShape, more: More | None = None) -> Tree:
    """The N best nodes by cumulative draft probability; `children` gives tokens likeliest first."""
    found: list[Found] = []
    frontier = [ROOT]
    for depth in range(1, shape.depth + 1):
        offered = children(found, frontier)
        level = len(found)
        for node, (tokens, probs) in zip(frontier, offered, strict=True):
            value = 1.0 if node == ROOT else found[node].value
            for token, p in zip(tokens.tolist()[: shape.top_k], probs.tolist()[: shape.top_k], strict=True):
                worth = value * min(p, 1.0)  # softmax may round above 1: no child above its parent
                if worth < shape.floor:
                    break  # likeliest first
                found.append(Found(token, node, depth, p, worth))
        best = _best(found, range(len(found)), shape.nodes)
        # once N nodes are found, a child is kept only if it is worth more than the worst of them, hence its parent too
        beaten = found[best[-1]].value if len(best) == shape.nodes else -1.0
        frontier = _best(found, (i for i in best if i >= level and found[i].value > beaten), shape.top_k)
        if not frontier or depth == shape.depth or (more is not None and not more(_tree(found, sorted(best), None))):
            break
    return _tree(found, sorted(best), None)


def grow_sampled(distributions: Distributions, shape: TreeShape, draw: Callable[[Distribution], int]) -> Tree:
    """At most N nodes drawn without replacement; `draw` draws a token from [V] and is called once per node, in order.

    A level gets the nodes left divided by the levels left, rounded up. They go to the pairs (node, j-th child), j <
    top_k, with the largest value(node) * (j-th largest probability after it): planned before any of them is drawn.
    """
    found: list[Found] = []
    kept: dict[int, Distribution] = {}  # distribution after each node with children
    frontier = [ROOT]
    for depth in range(1, shape.depth + 1):
        room = -(-(shape.nodes - len(found)) // (shape.depth + 1 - depth))
        offered = dict(zip(frontier, distributions(found, frontier), strict=True))
        values = {node: 1.0 if node == ROOT else found[node].value for node in frontier}
        counts = _plan({node: (values[node], q) for node, q in offered.items()}, room, shape.top_k)
        level = len(found)
        for node, count in counts.items():
            q, value = offered[node], values[node]
            kept[node] = q
            for token in draw_siblings(q, count, draw):
                found.append(Found(token, node, depth, float(q[token]), value * min(float(q[token]), 1.0)))
        frontier = _best(found, range(level, len(found)), shape.top_k)
        if not frontier or len(found) >= shape.nodes:
            break
    return _tree(found, range(len(found)), [kept.get(row - 1) for row in range(len(found) + 1)])


def draw_siblings(q: Distribution, count: int, draw: Callable[[Distribution], int]) -> list[int]:
    """`count` tokens drawn from q [V] one after the other and not put back; q must have as many of probability > 0."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(draw(q))
        q = without(q, tokens[-1])
    return tokens


def with_path(tree: Tree, tokens: Sequence[int], chances: Sequence[float], nodes: int, floor: float = 0.0) -> Tree:
    """The `nodes` most valuable nodes of a deterministic tree joined with one more path from its root.

    `chances` [k] are the values of the path's tokens [k], each at most the one before; those below `floor` are left
    out. A token that both have keeps the larger value, so a child is still never worth more than its parent.
    """
    found: list[Found] = []
    for token, parent, p in zip(tree.tokens.tolist(), tree.parents.tolist(), tree.confidence.tolist(), strict=True):
        value, depth = (1.0, 0) if parent == ROOT else (found[parent].value, found[parent].depth)
        found.append(Found(token, parent, depth + 1, p, value * min(p, 1.0)))
    # (parent, token) -> node; of equal siblings the first, which is the one that verification follows
    at = {(node.parent, node.token): i for i, node in reversed(list(enumerate(found)))}
    above, before = ROOT, 1.0
    for depth, (token, chance) in enumerate(zip(tokens, chances, strict=True), start=1):
        if chance < floor:
            break
        confidence = chance / before if before else 0.0
        if (i := at.get((above, token))) is not None:
            found[i] = found[i]._replace(value=max(found[i].value, chance))
        else:
            i = len(found)
            found.append(Found(token, above, depth, confidence, chance))
        above, before = i, chance
    return _tree(found, sorted(_best(found, range(len(found)), nodes)), None)


def top_probs(
    logits: npt.NDArray[np.floating[Any]], k: int, temperature: float = 1.0
) -> tuple[npt.NDArray[np.int32], Array]:
    """The k largest of logits [D], the lowest index first on ties, and their softmax(logits / temperature): [k] each.

    Fewer where the rest is -inf. Raises BackendError when the largest is not finite.
    """
    x = np.asarray(logits, np.float32)
    top = x[np.argmax(x)]  # NumPy's argmax stops at a NaN
    if not np.isfinite(top):
        raise BackendError("the drafter's logits are not finite; its weights are damaged")
    k = min(k, len(x))
    candidates = np.arange(len(x))
    if 0 < k < len(x):
        candidates = np.flatnonzero(x >= np.partition(x, len(x) - k)[len(x) - k])  # with every tie of the last one
    order = candidates[np.argsort(-x[candidates], kind="stable")][:k]
    order = order[x[order] > -np.inf]
    with np.errstate(over="ignore"):  # a huge negative quotient is -inf, whose weight is the 0 we want
        weights = np.exp((x - top) / np.float32(temperature))  # [D]
    return order.astype(np.int32), np.asarray(weights[order] / weights.sum(dtype=np.float32), np.float32)


def _best(found: Sequence[Found], nodes: Any, n: int) -> list[int]:
    """The n most valuable of `nodes`, ties to the smaller depth and then to the one found first."""
    return sorted(nodes, key=lambda i: (-found[i].value, found[i].depth, i))[:n]


def _plan(nodes: dict[int, tuple[float, Distribution]], room: int, top_k: int) -> dict[int, int]:
    """How many of `room` children each node (value, distribution [V]) gets, none of them drawn yet."""
    offers: list[tuple[float, int, int]] = []
    for order, (value, q) in enumerate(nodes.values()):
        largest = np.sort(q)[::-1][:top_k]
        offers += [(-value * p, order, j) for j, p in enumerate(largest[largest > 0].tolist())]
    counts = dict.fromkeys(nodes, 0)
    names = list(nodes)
    for _, order, _ in sorted(offers)[:room]:  # of one node the j-th offer comes before the next one
        counts[names[order]] += 1
    return {node: count for node, count in counts.items() if count}


def _tree(
    found: Sequence[Found], nodes: Sequence[int] | range, distributions: Sequence[Distribution | None] | None
) -> Tree:
    if not len(nodes):
        return empty_tree()
    index = {ROOT: ROOT} | {node: i for i, node in enumerate(nodes)}
    chosen = [found[i] for i in nodes]
    parents = np.array([index[node.parent] for node in chosen], np.int32)
    tokens = np.array([node.token for node in chosen], np.int32)
    return Tree(tokens, parents, np.array([node.confidence for node in chosen], np.float32), distributions)
