"""Lookup in draft trees:

the text stays the plain text, the most valuable nodes are kept, and what is counted is what happened.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import Adversarial, Noisy, Perfect, feature
from test_decode_cycle import prompts, samplers
from test_tree_cycle import GROWERS, ToyTreeTarget, plain_run, run, shapes, targets, with_trees

from refspec.decoding.cycle import prefill
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.tree_lookup import TreeLookupDrafter
from refspec.errors import UsageError
from refspec.llama.open_pair import describe
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Tree, TreeShape
from refspec.reference.tree_grow import with_path


class Watched(TreeLookupDrafter):
    """With the rows of the trained drafter where the tests of the cycle look for them."""

    @property
    def tokens(self) -> Any:
        return self.trained.tokens  # type: ignore[attr-defined]


@settings(max_examples=120, deadline=None)
@given(targets, prompts, samplers, st.sampled_from(GROWERS), shapes, st.integers(1, 30), st.integers(0, 2**40))
def test_text_and_stop_equal_plain_decoding_with_lookup_in_the_tree(
    target: Any, prompt: list[int], sampler: Sampler, temper: Any, shape: TreeShape, n: int, seed: int
) -> None:
    options = {"sampler": sampler, "seed": seed, "max_tokens": n}
    plain_steps, plain = plain_run(target, prompt, **options)
    steps, text = run(target, Watched(temper(target)), prompt, shape=shape, **options)
    assert text == plain and steps[-1].stop == plain_steps[-1].stop
    assert all(step.nodes <= shape.nodes and len(step.draft) <= shape.depth for step in steps)


class Periodic(ToyTreeTarget):
    """The text repeats with a period of five."""

    def law(self, tokens: Any) -> np.ndarray:
        logits = np.zeros(self.n_vocab, np.float32)
        logits[[3, 1, 4, 1, 5][len(tokens) % 5]] = 9.0
        return logits


def tau(drafter: Any, shape: TreeShape) -> float:
    statistics = Statistics()
    for step in run(Periodic(end=(), n_ctx=300), drafter, [1, 2], shape=shape, max_tokens=200)[0]:
        statistics.add(step)
    return statistics.tau


def test_a_text_that_repeats_is_followed_to_the_depth_of_the_tree() -> None:
    target = Periodic(end=(), n_ctx=300)
    shape = TreeShape(8, 3, 6)
    alone = tau(with_trees(Adversarial)(target), shape)
    assert alone == 1.0 and tau(Watched(with_trees(Adversarial)(target)), shape) > 5
    assert tau(Watched(with_trees(Perfect)(target)), shape) >= tau(with_trees(Perfect)(target), shape) > 6, (
        "lookup takes nothing from a drafter that is right"
    )


def test_where_the_text_never_repeats_the_tree_is_the_trained_drafters() -> None:
    grown = []
    for wrapped in (False, True):
        target = ToyTreeTarget(n_vocab=40, end=(), n_ctx=60)
        drafter = Watched(with_trees(Noisy)(target)) if wrapped else with_trees(Noisy)(target)
        list(prefill(target, drafter, [1, 7, 8, 9, 10]))
        grown.append(drafter.draft_tree(TreeShape(6, 3, 3)))
        assert not wrapped or drafter.lookup.matched == 0
    assert (
        grown[0].tokens.tolist() == grown[1].tokens.tolist() and grown[0].parents.tolist() == grown[1].parents.tolist()
    )


@st.composite
def valued_trees(draw: st.DrawFn) -> Tree:
    """Deterministic trees of distinct siblings, as a drafter grows them."""
    tokens, parents, confidence = [], [], []
    for i in range(draw(st.integers(0, 9))):
        parent = draw(st.integers(-1, i - 1))
        free = [t for t in range(6) if t not in [tokens[j] for j in range(i) if parents[j] == parent]]
        if not free:
            break
        tokens.append(draw(st.sampled_from(free)))
        parents.append(parent)
        confidence.append(draw(st.floats(0, 1, width=32)))
    return Tree(np.array(tokens, np.int32), np.array(parents, np.int32), np.array(confidence, np.float32))


def paths(tree: Tree) -> list[tuple[int, ...]]:
    return [tuple(tree.tokens[tree.path(node)].tolist()) for node in range(len(tree.tokens))]


@settings(max_examples=300, deadline=None)
@given(valued_trees(), st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=6), st.integers(1, 12))
def test_the_most_valuable_nodes_of_both_are_kept(tree: Tree, path: list[tuple[int, float]], n: int) -> None:
    said, chances = [t for t, _ in path], np.cumprod([c for _, c in path]).tolist()
    worth = {tuple(said[: j + 1]): chance for j, chance in enumerate(chances)}
    for node, tokens in enumerate(paths(tree)):
        own = float(np.prod(np.minimum(tree.confidence[tree.path(node)].astype(float), 1)))
        worth[tokens] = max(worth.get(tokens, 0.0), own)
    merged = with_path(tree, said, chances, n)
    kept = paths(merged)
    assert len(kept) == len(set(kept)) == min(n, len(worth)) and set(kept) <= worth.keys()
    assert all(ROOT <= parent < i for i, parent in enumerate(merged.parents.tolist()))
    left = [worth[p] for p in worth.keys() - set(kept)]
    assert not left or min(worth[p] for p in kept) >= max(left) - 1e-9


def test_chances_are_counted_from_what_the_text_did() -> None:
    target = Periodic(end=(), n_ctx=300)
    drafter = Watched(with_trees(Adversarial)(target))
    before = drafter.chances(4, 3)
    assert before == pytest.approx([4 / 6, (4 / 6) ** 2, (4 / 6) ** 3]), (
        "the guess n / (n + 2) before anything was seen"
    )
    run(target, drafter, [1, 2], shape=TreeShape(8, 3, 4), max_tokens=150)
    assert all(chance > 0.85 for chance in drafter.chances(4, 3))
    drafter._counts.clear()
    list(prefill(target, drafter, [1, 5, 2]))
    drafter._said = (2, [5, 6, 7])
    drafter.extend(
        np.array([5, 2, 7], np.int32), np.array([feature([1, 5, 2, *more]) for more in ([], [5], [5, 2])], np.float32)
    )
    assert drafter._counts == {(2, True): (1.0, 1.0), (2, False): (1.0, 0.0)}, "what follows a wrong token says nothing"


def test_what_was_counted_outlives_the_text_but_not_a_rollback_of_the_step() -> None:
    target = Periodic(end=(), n_ctx=300)
    drafter = Watched(with_trees(Adversarial)(target))
    run(target, drafter, [1, 2], shape=TreeShape(8, 3, 4), max_tokens=60)
    counted = dict(drafter._counts)
    assert counted
    drafter.rollback(2)
    assert drafter._said == (0, [])
    drafter.reset()
    assert drafter._counts == counted and drafter.n_rows == 0


def test_trees_drawn_from_a_law_are_refused_in_one_line() -> None:
    target = ToyTreeTarget(end=(), n_ctx=60)
    drafter = Watched(with_trees(Perfect)(target))
    with pytest.raises(UsageError, match="deterministic"):
        run(target, drafter, [1, 2], sampler=Sampler(temperature=1.0), draft_sampling=True)
    assert describe(drafter).endswith("+ lookup") and isinstance(drafter.lookup, LookupDrafter)
