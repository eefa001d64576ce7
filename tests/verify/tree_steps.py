"""The exact law of one verify step of a tree:

every coin of the judging by lattice cells, every draw of a sampled tree by its weight.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from verify_enumeration import Distribution, Tokens, path_law
from verify_toys import ToyDrafter, ToyModel

from refspec.reference.sampling import Sampler, p_target
from refspec.reference.tree import ROOT, Tree
from refspec.reference.tree_grow import draw_siblings
from refspec.reference.tree_verify import TreeVerdict, without
from refspec.reference.verify import residual

Draw = Callable[[np.ndarray], int]
Counts = Callable[[Tokens], int]


def tokens_of(tree: Tree, node: int) -> Tokens:
    return tuple(int(tree.tokens[i]) for i in tree.path(node))


def tree_rows(target: ToyModel, history: Tokens, tree: Tree) -> np.ndarray:
    # [N+1, V]
    return np.stack([target.logits(history + tokens_of(tree, node)) for node in range(ROOT, len(tree.tokens))])


def checked(verdict: TreeVerdict, tree: Tree) -> Tokens:
    assert len(verdict.tokens) == verdict.accepted + 1
    assert tree.path(verdict.path[-1] if verdict.path else ROOT) == verdict.path
    assert tuple(verdict.tokens[:-1]) == tuple(int(tree.tokens[i]) for i in verdict.path)
    return tuple(verdict.tokens)


def made(tokens: Any, parents: Any, distributions: Any = None) -> Tree:
    return Tree(
        np.array(tokens, np.int32), np.array(parents, np.int32), np.full(len(tokens), np.nan, np.float32), distributions
    )


@st.composite
def fixed_trees(draw: Any, vocab: int, largest: int) -> Tree:
    """Any tree at all: equal siblings, unlikely tokens, any shape and order."""
    n = draw(st.integers(0, largest))
    return made([draw(st.integers(0, vocab - 1)) for _ in range(n)], [draw(st.integers(-1, i - 1)) for i in range(n)])


def match_tree_step(
    verify: Callable[..., TreeVerdict], target: ToyModel, tree: Tree, sampler: Sampler, history: Tokens = ()
) -> Distribution:
    """The law of the tokens of one verify_tree_deterministic step."""
    logits = tree_rows(target, history, tree)
    depths = [0, *tree.depths().tolist()]
    hints = [[c for row, d in zip(logits, depths, strict=True) if d == level for c in np.cumsum(p_target(row, sampler))]
             for level in range(tree.height + 1)]  # fmt: skip
    law = path_law(lambda coins: checked(verify(logits, tree, sampler, coins), tree), hints)
    return {tokens: float(p) for tokens, p in law.items()}


def sampled_tree(drafter: ToyDrafter, counts: Counts, height: int, draw: Draw, history: Tokens = ()) -> Tree:
    """The node after `path` gets counts(path) children without replacement, as many as its law has tokens at most."""
    tree, distributions, frontier = made([], []), [None], [ROOT]
    for _ in range(height):
        following: list[int] = []
        for node in frontier:
            q = drafter.q(history + tokens_of(tree, node))
            count = min(counts(tokens_of(tree, node)), int(np.count_nonzero(q)))
            if not count:
                continue
            distributions[node + 1] = q  # type: ignore[call-overload]
            n, drawn = len(tree.tokens), draw_siblings(q, count, draw)
            tree = made([*tree.tokens, *drawn], [*tree.parents, *[node] * count])
            distributions += [None] * count
            following += range(n, n + count)
        frontier = following
    return tree._replace(distributions=distributions)


def drawn_trees(grow: Callable[[Draw], Tree]) -> Iterator[tuple[Tree, float]]:
    """Every tree that `grow` can draw, with its exact probability: each draw is followed to every token of its law."""
    branch: list[int] = []
    while True:
        sizes: list[int] = []
        weights: list[float] = []

        def draw(q: np.ndarray, sizes: list[int] = sizes, weights: list[float] = weights) -> int:
            support = np.flatnonzero(q)
            if len(branch) == len(sizes):
                branch.append(0)
            token = int(support[branch[len(sizes)]])
            sizes.append(len(support))
            weights.append(float(q[token] / q.sum()))
            return token

        tree = grow(draw)
        yield tree, float(np.prod(weights))
        while branch and branch[-1] + 1 == sizes[len(branch) - 1]:
            branch.pop()
        if not branch:
            return
        branch[-1] += 1


def thresholds(logits: np.ndarray, tree: Tree, sampler: Sampler) -> list[list[float]]:
    """Hints for the coins of each level in order: one per sibling, then the residual's."""
    hints: list[list[float]] = [[] for _ in range(tree.height * (tree.width + 1) + 1)]
    depths = [0, *tree.depths().tolist()]
    for node in range(ROOT, len(tree.tokens)):
        first, p = depths[node + 1] * (tree.width + 1), p_target(logits[node + 1], sampler)
        siblings = tree.children(node)
        if tree.distributions is not None and siblings:
            q = np.asarray(tree.distributions[node + 1])
            for j, child in enumerate(siblings):
                token = tree.tokens[child]
                hints[first + j].append(p[token] / q[token])
                p, q = residual(p, q), without(q, int(token))
        last = first + tree.width if depths[node + 1] < tree.height else len(hints) - 1
        hints[last] += np.cumsum(p).tolist()
    return hints


def rejection_tree_step(
    verify: Callable[..., TreeVerdict],
    target: ToyModel,
    grow: Callable[[Draw], Tree],
    sampler: Sampler,
    history: Tokens = (),
) -> Distribution:
    """The law of the tokens of one verify_tree_rejection step over everything that can be drawn."""
    law: Distribution = {}
    for tree, weight in drawn_trees(grow):
        logits = tree_rows(target, history, tree)
        h, m = tree.height, tree.width

        def run(coins: list[float], tree: Tree = tree, logits: Any = logits, h: int = h, m: int = m) -> Tokens:
            levels = np.array(coins[:-1]).reshape(h, m + 1)
            return checked(verify(logits, tree, sampler, levels[:, :m], [*levels[:, m], coins[-1]]), tree)

        for tokens, share in path_law(run, thresholds(logits, tree, sampler)).items():
            law[tokens] = law.get(tokens, 0.0) + weight * float(share)
    return law
