"""Growing a tree:

the nodes are those of EAGLE-2's rule, and the drafter is asked for no level that could not change them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lab import tree_replay
from refspec.reference.tree import NODES_LIMIT, ROOT, Tree, TreeShape
from refspec.reference.tree_grow import Found, grow


class Guesses:
    """What may follow a node: probabilities that depend on its path; `asked` are the nodes of every level."""

    def __init__(self, seed: int, certain: float = 0.0) -> None:
        self.seed, self.certain = seed, certain
        self.asked: list[list[int]] = []

    def __call__(self, found: Sequence[Found], nodes: Sequence[int]) -> list[tuple[Any, Any]]:
        self.asked.append(list(nodes))
        return [self.after(path_of(found, node)) for node in nodes]

    def after(self, path: list[int]) -> tuple[Any, Any]:
        rng = np.random.default_rng([self.seed, len(path), *path])
        p = rng.dirichlet(np.full(5, 0.5))
        if rng.random() < self.certain:
            p = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
        order = np.argsort(-p, kind="stable")
        return order.astype(np.int32), p[order].astype(np.float32)


def path_of(found: Sequence[Any], node: int) -> list[int]:
    return [] if node == ROOT else [*path_of(found, found[node].parent), found[node].token]


def by_definition(guesses: Guesses, shape: TreeShape) -> set[tuple[int, ...]]:
    """Every level's top_k best nodes expanded, whatever they are worth, and the N best of all."""
    values: dict[tuple[int, ...], float] = {}
    frontier: list[tuple[int, ...]] = [()]
    for _ in range(shape.depth):
        level: list[tuple[int, ...]] = []
        for path in frontier:
            tokens, probs = guesses.after(list(path))
            for token, p in list(zip(tokens.tolist(), probs.tolist(), strict=True))[: shape.top_k]:
                worth = values.get(path, 1.0) * min(p, 1.0)
                if worth >= shape.floor:
                    values[(*path, token)] = worth
                    level.append((*path, token))
        frontier = sorted(level, key=lambda path: -values[path])[: shape.top_k]
    found = list(values)
    return set(sorted(found, key=lambda path: (-values[path], len(path), found.index(path)))[: shape.nodes])


shapes = st.builds(
    TreeShape, st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), floor=st.sampled_from([0.0, 0.05, 0.3])
)


@given(shapes, st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_not_expanded_would_have_changed_nothing(shape: TreeShape, seed: int, certain: float) -> None:
    tree = grow(Guesses(seed, certain), shape)
    assert {tuple(tree.tokens[tree.path(i)].tolist()) for i in range(len(tree.tokens))} == by_definition(
        Guesses(seed, certain), shape
    )


@given(shapes, st.integers(0, 10**6), st.integers(1, 5))
def test_growing_that_is_ended_leaves_the_tree_of_so_many_levels(shape: TreeShape, seed: int, levels: int) -> None:
    seen: list[Tree] = []

    def more(tree: Tree) -> bool:
        seen.append(tree)
        return len(seen) < levels

    guesses = Guesses(seed)
    tree, expected = grow(guesses, shape, more), grow(Guesses(seed), shape._replace(depth=min(shape.depth, levels)))
    assert (
        all(np.array_equal(a, b) for a, b in zip(tree[:3], expected[:3], strict=True)) and len(guesses.asked) <= levels
    )
    assert [part.height for part in seen] == list(range(1, len(seen) + 1)) and len(seen) <= min(shape.depth - 1, levels)


@given(shapes, st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 0.5]))
def test_what_is_replayed_of_a_recorded_tree_is_what_would_have_been_grown(
    shape: TreeShape, seed: int, levels: int, certain: float
) -> None:
    class Patience(tree_replay.AlwaysTree):
        def more(self, tree: Tree) -> bool:
            return tree.height < levels

    shape = shape._replace(top_k=min(shape.top_k, 3))  # then the limit is more than there can be
    whole, guesses, policy = (
        grow(Guesses(seed, certain), shape._replace(nodes=NODES_LIMIT, floor=0.0)),
        Guesses(seed, certain),
        Patience(shape.nodes),
    )
    expected = grow(guesses, shape, policy.more)
    part, asked = tree_replay.grown(whole, shape.nodes, shape.floor, policy)
    assert sorted(zip(*named(part), strict=True)) == sorted(zip(*named(expected), strict=True))
    assert asked == len(guesses.asked)


def named(tree: Tree) -> tuple[list[tuple[int, ...]], list[float]]:
    return [tuple(tree.tokens[tree.path(i)].tolist()) for i in range(len(tree.tokens))], tree.confidence.tolist()


def test_a_tree_of_one_node_takes_one_level() -> None:
    guesses = Guesses(1)
    assert len(grow(guesses, TreeShape(1, 4, 8)).tokens) == 1 and guesses.asked == [[ROOT]]
