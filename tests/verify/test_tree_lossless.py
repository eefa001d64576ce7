"""Trees are lossless, by exact enumeration of the real functions: total variation <= 1e-12 against the target's law."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tree_backends import TreeBackend
from tree_steps import (
    Draw,
    checked,
    drawn_trees,
    fixed_trees,
    made,
    match_tree_step,
    rejection_tree_step,
    sampled_tree,
    tree_rows,
)
from verify_enumeration import Distribution, Tokens, continued, path_law, total_variation
from verify_steps import LOSSLESS, targets_law, variation
from verify_toys import ToyDrafter, ToyModel, drafters, models, samplers

from refspec.reference.sampling import Sampler, coins, p_target
from refspec.reference.tree import ROOT, Tree, TreeShape, chain
from refspec.reference.tree_grow import grow_sampled
from refspec.reference.tree_verify import TreeVerdict
from refspec.reference.verify import verify_deterministic, verify_rejection

few = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fewer = settings(few, max_examples=15)
HOT = (1.0, 1.7, 0.6)


# --- trees fixed in advance ---


@few
@given(data=st.data(), vocab=st.integers(2, 4))
def test_match_rule_on_any_tree_emits_exactly_p_target(trees: TreeBackend, data: st.DataObject, vocab: int) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    tree = data.draw(fixed_trees(vocab, 7).filter(lambda t: t.height <= 3))
    step = match_tree_step(trees.deterministic, target, tree, sampler)
    assert variation(step, target, sampler, tree.height + 1) <= LOSSLESS


@few
@given(data=st.data(), vocab=st.integers(2, 4))
def test_match_rule_accepts_a_candidate_set_with_its_probability(
    trees: TreeBackend, data: st.DataObject, vocab: int
) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    candidates = data.draw(st.sets(st.integers(0, vocab - 1)))
    step = match_tree_step(trees.deterministic, target, made(sorted(candidates), [ROOT] * len(candidates)), sampler)
    accepted = sum(weight for tokens, weight in step.items() if len(tokens) == 2)
    assert abs(accepted - p_target(target.logits(()), sampler)[sorted(candidates)].sum()) <= LOSSLESS


def coin_per_sibling(logits: Any, tree: Tree, sampler: Sampler, accept: Any, rest: Any) -> TreeVerdict:
    """EAGLE-2's statement of the set rule:

    each sibling is accepted with what p has left for it, and then struck out of p.
    """
    node, verdict = ROOT, TreeVerdict([], [])
    while True:
        p = p_target(logits[node + 1], sampler)
        level, followed = verdict.accepted, ROOT
        for j, child in enumerate(tree.children(node)):
            if accept[level][j] < p[tree.tokens[child]]:
                followed = child
                break
            p[tree.tokens[child]] = 0.0
            p = p / p.sum()
        if followed == ROOT:
            return TreeVerdict(
                verdict.path, [*verdict.tokens, int(np.searchsorted(np.cumsum(p), rest[level], side="right"))]
            )
        verdict = TreeVerdict([*verdict.path, followed], [*verdict.tokens, int(tree.tokens[followed])])
        node = followed


@settings(fewer, max_examples=5)
@given(data=st.data(), vocab=st.integers(3, 4))
def test_one_coin_per_position_is_the_set_rule_with_a_coin_per_sibling(
    trees: TreeBackend, data: st.DataObject, vocab: int
) -> None:
    target, sampler = data.draw(models(vocab)), Sampler(temperature=data.draw(st.sampled_from(HOT)))
    distinct = data.draw(st.permutations(range(vocab)))[: data.draw(st.integers(1, vocab - 1))]
    tree = made([*distinct, 0, 2], [*[ROOT] * len(distinct), 0, 0])
    logits = tree_rows(target, (), tree)

    def several(c: list[float]) -> Tokens:
        levels = np.array(c[:-1]).reshape(tree.height, tree.width + 1)
        return checked(coin_per_sibling(logits, tree, sampler, levels, [*levels[:, -1], c[-1]]), tree)

    by_siblings = path_law(several, [()] * (tree.height * (tree.width + 1) + 1))
    step = match_tree_step(trees.deterministic, target, tree, sampler)
    assert total_variation(step, {tokens: float(w) for tokens, w in by_siblings.items()}) <= LOSSLESS


# --- trees drawn without replacement ---

# (vocabulary, children of the root, of each node after it): each draw is followed to every token, so these stay small
SIZES = [
    (2, 1, 0),
    (2, 2, 0),
    (3, 2, 0),
    (3, 3, 0),
    (4, 2, 0),
    (4, 3, 0),
    (2, 2, 1),
    (3, 1, 2),
    (2, 1, 2),
    (2, 2, 2),
    (3, 2, 1),
]


@fewer
@given(data=st.data())
@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_recursive_rejection_emits_exactly_p_target(
    trees: TreeBackend, data: st.DataObject, size: tuple[int, int, int]
) -> None:
    vocab, first, then = size
    target, drafter = data.draw(models(vocab)), data.draw(drafters(vocab))
    sampler = data.draw(samplers(vocab, temperatures=HOT))

    def grow(draw: Draw) -> Tree:
        return sampled_tree(drafter, lambda path: then if path else first, 2, draw)

    step = rejection_tree_step(trees.rejection, target, grow, sampler)
    assert variation(step, target, sampler, 3) <= LOSSLESS


def test_recursive_rejection_of_two_siblings_and_three_levels(trees: TreeBackend) -> None:
    target, drafter = ToyModel(3, 5, 1.5, False, False), ToyDrafter(ToyModel(3, 6, 1.5, False, False), 3)
    sampler = Sampler(temperature=0.8, top_p=0.95, logit_bias={2: 0.5})

    def grow(draw: Draw) -> Tree:
        return sampled_tree(drafter, lambda path: 2 if not path else int(path[-1] == 0), 3, draw)

    step = rejection_tree_step(trees.rejection, target, grow, sampler)
    assert {len(tokens) for tokens in step} == {1, 2, 3, 4}  # every accepted length occurs
    assert variation(step, target, sampler, 4) <= LOSSLESS


@fewer
@given(
    data=st.data(), vocab=st.integers(2, 3), nodes=st.integers(1, 3), top_k=st.integers(1, 3), depth=st.integers(1, 3)
)
def test_trees_grown_by_grow_sampled_emit_exactly_p_target(
    trees: TreeBackend, data: st.DataObject, vocab: int, nodes: int, top_k: int, depth: int
) -> None:
    target, drafter = data.draw(models(vocab)), data.draw(drafters(vocab))
    sampler = data.draw(samplers(vocab, temperatures=HOT))
    step = rejection_tree_step(trees.rejection, target, grown(drafter, TreeShape(nodes, top_k, depth)), sampler)
    assert variation(step, target, sampler, min(nodes, depth) + 1) <= LOSSLESS


def grown(drafter: ToyDrafter, shape: TreeShape, history: Tokens = ()) -> Any:
    """The production growth on a toy drafter, waiting for its draws."""

    def distributions(found: Any, nodes: Any) -> list[np.ndarray]:
        def path(node: int) -> Tokens:
            return () if node == ROOT else (*path(found[node].parent), found[node].token)

        return [drafter.q(history + path(node)) for node in nodes]

    return lambda draw: grow_sampled(distributions, shape, draw)


@fewer
@given(data=st.data(), vocab=st.integers(2, 3))
def test_siblings_that_exhaust_the_law_of_a_perfect_drafter_always_stand(
    trees: TreeBackend, data: st.DataObject, vocab: int
) -> None:
    target, sampler = data.draw(models(vocab)), Sampler(temperature=1.0)

    def grow(draw: Draw) -> Tree:
        return sampled_tree(ToyDrafter(target, vocab), lambda path: vocab, 1, draw)

    step = rejection_tree_step(trees.rejection, target, grow, sampler)
    assert sum(weight for tokens, weight in step.items() if len(tokens) == 1) <= LOSSLESS
    assert variation(step, target, sampler, 2) <= LOSSLESS


@fewer
@given(data=st.data(), vocab=st.integers(3, 4))
def test_a_second_sibling_accepts_more_than_one_alone(trees: TreeBackend, data: st.DataObject, vocab: int) -> None:
    target, drafter = data.draw(models(vocab)), ToyDrafter(data.draw(models(vocab)), vocab)
    sampler = Sampler(temperature=1.0)
    rates = []
    for m in (1, 2):
        step = rejection_tree_step(
            trees.rejection, target, lambda draw, m=m: sampled_tree(drafter, lambda path: m, 1, draw), sampler
        )
        rates.append(sum(weight for tokens, weight in step.items() if len(tokens) == 2))
    assert abs(rates[0] - np.minimum(p_target(target.logits(()), sampler), drafter.q(())).sum()) <= LOSSLESS
    assert rates[1] >= rates[0] - LOSSLESS


# --- verify steps that follow one another ---


@fewer
@given(data=st.data(), vocab=st.integers(2, 3))
def test_generation_by_trees_has_the_targets_law(trees: TreeBackend, data: st.DataObject, vocab: int) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    every = [data.draw(fixed_trees(vocab, 4).filter(lambda t: t.height <= 2)) for _ in range(3)]

    def step(history: Tokens) -> Distribution:
        return match_tree_step(trees.deterministic, target, every[sum(history) % 3], sampler, history)

    assert total_variation(continued(step, 4), targets_law(target, sampler, 4)) <= LOSSLESS


@settings(fewer, max_examples=6)
@given(data=st.data())
def test_generation_by_sampled_trees_has_the_targets_law(trees: TreeBackend, data: st.DataObject) -> None:
    target, drafter = data.draw(models(2)), data.draw(drafters(2))
    sampler = data.draw(samplers(2, temperatures=HOT))

    def step(history: Tokens) -> Distribution:
        shape = TreeShape(1 + (len(history) + sum(history)) % 3, 2, 2)  # adaptive: depends on what was emitted
        return rejection_tree_step(trees.rejection, target, grown(drafter, shape, history), sampler, history)

    assert total_variation(continued(step, 3), targets_law(target, sampler, 3)) <= LOSSLESS


# --- the same seed, and chains ---


@few
@given(data=st.data(), vocab=st.sampled_from([2, 3, 17]), seed=st.integers(0, 2**64 - 1))
def test_same_seed_same_tokens_for_any_tree(trees: TreeBackend, data: st.DataObject, vocab: int, seed: int) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    text: Tokens = ()
    while len(text) < 12:
        tree = data.draw(fixed_trees(vocab, 8))
        u = coins(seed, len(text), tree.height + 1)
        text += tuple(trees.deterministic(tree_rows(target, text, tree), tree, sampler, u).tokens)
    plain: Tokens = ()
    for position in range(12):
        plain += tuple(verify_deterministic([target.logits(plain)], [], sampler, coins(seed, position, 1)).tokens)
    assert text[:12] == plain


@few
@given(data=st.data(), vocab=st.integers(2, 5), k=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_a_tree_that_is_a_chain_is_judged_as_the_chain(
    trees: TreeBackend, data: st.DataObject, vocab: int, k: int, seed: int
) -> None:
    target, drafter = data.draw(models(vocab)), data.draw(drafters(vocab))
    sampler = data.draw(samplers(vocab, temperatures=HOT))
    draw = np.random.default_rng(seed)
    draft: list[int] = []
    distributions: list[np.ndarray] = []
    for _ in range(k):
        distributions.append(drafter.q(tuple(draft)))
        draft.append(int(draw.choice(vocab, p=distributions[-1])))
    logits = [target.logits(tuple(draft[:i])) for i in range(k + 1)]
    u, v = draw.random(k), draw.random(k + 1)
    for verdict, of_chain in (
        (trees.deterministic(logits, chain(draft), sampler, v), verify_deterministic(logits, draft, sampler, v)),
        (
            trees.rejection(logits, chain(draft, distributions), sampler, u[:, None], v),
            verify_rejection(logits, draft, distributions, sampler, u, v),
        ),
    ):
        assert (verdict.accepted, verdict.tokens) == (of_chain.accepted, of_chain.tokens)
        assert verdict.path == list(range(verdict.accepted))


def test_every_tree_is_drawn_once_and_the_weights_are_a_law() -> None:
    drafter = ToyDrafter(ToyModel(3, 2, 1.0, False, False), 3)
    drawn = list(drawn_trees(lambda draw: sampled_tree(drafter, lambda path: 2 if not path else 1, 2, draw)))
    assert len(drawn) == len({tuple(tree.tokens) for tree, _ in drawn}) == 3 * 2 * 3 * 3
    assert abs(sum(weight for _, weight in drawn) - 1) <= LOSSLESS
