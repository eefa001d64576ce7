"""Negative controls: tree rules and ways of drawing trees that are nearly right are caught by the same enumeration."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tree_backends import TreeBackend
from tree_steps import Draw, checked, made, rejection_tree_step, sampled_tree, tree_rows
from verify_enumeration import Distribution, Tokens, path_law
from verify_steps import LOSSLESS, LOSSY, variation
from verify_toys import ToyDrafter, ToyModel

from refspec.reference.sampling import Sampler, invert_cdf, p_target
from refspec.reference.tree import ROOT, Tree
from refspec.reference.tree_verify import TreeVerdict, verify_tree_rejection, without
from refspec.reference.verify import residual

TARGET = ToyModel(3, 1, 1.0, False, False)
DRAFTER = ToyDrafter(ToyModel(3, 101, 1.0, False, False), 3)
PLAIN = Sampler(temperature=1.0)


def two(draw: Draw) -> Tree:
    return sampled_tree(DRAFTER, lambda path: 2, 1, draw)


def variation_of(verify: Callable[..., TreeVerdict], grow: Callable[[Draw], Tree] = two, length: int = 2) -> float:
    return variation(rejection_tree_step(verify, TARGET, grow, PLAIN), TARGET, PLAIN, length)


def test_control_the_right_rule_passes_where_the_wrong_ones_fail(trees: TreeBackend) -> None:
    assert variation_of(trees.rejection) <= LOSSLESS


# --- the right rule, given trees that were not drawn as it assumes ---


def test_control_top_k_children_judged_by_rejection_are_caught(trees: TreeBackend) -> None:
    """What a published example does:

    the likeliest tokens of q, accepted with min(1, p/q) as if they had been drawn from it.
    """

    def likeliest(draw: Draw) -> Tree:
        q = DRAFTER.q(())
        return made(np.argsort(-q)[:2], [ROOT, ROOT], [q, None, None])

    assert variation_of(trees.rejection, likeliest) > LOSSY


def test_control_a_tree_pruned_by_what_was_drawn_is_caught(trees: TreeBackend) -> None:
    """Why grow_sampled decides the number of children first:

    keeping a drawn child only if it is likely is a biased draw.
    """

    def pruned(draw: Draw) -> Tree:
        tree = two(draw)
        likely = [i for i in range(2) if DRAFTER.q(())[tree.tokens[i]] > 0.25]
        return made(tree.tokens[likely], [ROOT] * len(likely), [DRAFTER.q(()), *[None] * len(likely)])

    assert variation_of(trees.rejection, pruned) > LOSSY


def test_control_siblings_judged_in_another_order_are_caught(trees: TreeBackend) -> None:
    def reordered(draw: Draw) -> Tree:
        tree = two(draw)
        return tree._replace(tokens=np.sort(tree.tokens))

    assert variation_of(trees.rejection, reordered) > LOSSY


def test_control_a_law_that_is_not_the_one_drawn_from_is_caught(trees: TreeBackend) -> None:
    def mislabelled(draw: Draw) -> Tree:
        q = 0.5 * DRAFTER.q(()) + 0.5 / 3
        return two(draw)._replace(distributions=[q, None, None])

    assert variation_of(trees.rejection, mislabelled) > LOSSY


# --- rules with a planted mistake ---

Mistake = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def planted(after_rejection: Mistake) -> Callable[..., TreeVerdict]:
    """verify_tree_rejection of one level, with another update of (p, q) after a sibling was rejected."""

    def verify(logits: Any, tree: Tree, sampler: Sampler, accept: Any, rest: Any) -> TreeVerdict:
        assert tree.distributions is not None
        p, q = p_target(logits[0], sampler), np.asarray(tree.distributions[0])
        for j, token in enumerate(tree.tokens.tolist()):
            if q[token] > 0 and accept[0][j] < p[token] / q[token]:
                return TreeVerdict([j], [token, invert_cdf(p_target(logits[j + 1], sampler), rest[1])])
            p, q = after_rejection(p, q, token)
        return TreeVerdict([], [invert_cdf(p, rest[0])])

    return verify


def struck_out(p: np.ndarray, token: int) -> np.ndarray:
    return without(p, token) if np.count_nonzero(p) > 1 else p


MISTAKES: dict[str, Mistake] = {
    "the target's law is kept": lambda p, q, x: (p, without(q, x)),
    "the draft's law is kept, as for draws with replacement": lambda p, q, x: (residual(p, q), q),
    "the token is put back before the residual": lambda p, q, x: (residual(p, without(q, x)), without(q, x)),
    "the token is struck out of p, as for fixed trees": lambda p, q, x: (struck_out(p, x), without(q, x)),
    "the draft's law is not normalised again": lambda p, q, x: (residual(p, q), np.where(np.arange(len(q)) == x, 0, q)),
}


def test_control_the_planted_rule_without_a_mistake_is_right() -> None:
    assert variation_of(planted(lambda p, q, x: (residual(p, q), without(q, x)))) <= LOSSLESS


@pytest.mark.parametrize("mistake", MISTAKES)
def test_control_a_wrong_update_after_a_rejection_is_caught(mistake: str) -> None:
    assert variation_of(planted(MISTAKES[mistake])) > LOSSY


def test_control_one_coin_for_all_siblings_is_caught() -> None:
    def shared(logits: Any, tree: Tree, sampler: Sampler, accept: Any, rest: Any) -> TreeVerdict:
        same = np.repeat(np.asarray(accept)[:, :1], tree.width, axis=1)
        return verify_tree_rejection(logits, tree, sampler, same, rest)

    assert variation_of(shared) > LOSSY


# --- trees fixed in advance ---


def match_variation(rule: Callable[[np.ndarray, Tree, list[float]], TreeVerdict], tree: Tree, n_coins: int) -> float:
    logits = tree_rows(TARGET, (), tree)
    law = path_law(lambda coins: checked(rule(logits, tree, coins), tree), [()] * n_coins)
    step: Distribution = {tokens: float(p) for tokens, p in law.items()}
    return variation(step, TARGET, PLAIN, tree.height + 1)


def test_control_a_new_draw_for_each_sibling_is_caught() -> None:
    def redraw(logits: np.ndarray, tree: Tree, coins: list[float]) -> TreeVerdict:
        p = p_target(logits[0], PLAIN)
        for j, token in enumerate(tree.tokens.tolist()):
            if invert_cdf(p, coins[j]) == token:
                return TreeVerdict([j], [token, invert_cdf(p_target(logits[j + 1], PLAIN), coins[-1])])
        return TreeVerdict([], [invert_cdf(p, coins[-2])])

    assert match_variation(redraw, made([0, 1], [ROOT, ROOT]), 4) > LOSSY


def test_control_one_coin_for_two_levels_is_caught(trees: TreeBackend) -> None:
    tree = made([0, 1, 2, 0], [ROOT, ROOT, ROOT, 0])

    def reused(logits: np.ndarray, tree: Tree, coins: list[float]) -> TreeVerdict:
        return trees.deterministic(logits, tree, PLAIN, [coins[0], coins[0], coins[1]])

    def right(logits: np.ndarray, tree: Tree, coins: list[float]) -> TreeVerdict:
        return trees.deterministic(logits, tree, PLAIN, coins)

    assert match_variation(right, tree, 3) <= LOSSLESS
    assert match_variation(reused, tree, 3) > LOSSY


def test_control_rows_that_belong_to_other_nodes_are_caught(trees: TreeBackend) -> None:
    tree = made([0, 1, 2, 0], [ROOT, ROOT, 0, 0])

    def shifted(logits: np.ndarray, tree: Tree, coins: list[float]) -> TreeVerdict:
        return trees.deterministic(logits[[0, 2, 1, 3, 4]], tree, PLAIN, coins)

    assert match_variation(shifted, tree, 3) > LOSSY


def test_control_tokens_are_read_from_the_path_that_stands() -> None:
    tree = made([0, 1], [ROOT, ROOT])
    with pytest.raises(AssertionError):
        checked(TreeVerdict([1], [0, 2]), tree)
    with pytest.raises(AssertionError):
        checked(TreeVerdict([0, 1], [0, 1, 2]), tree)
    verdict: Tokens = checked(TreeVerdict([1], [1, 2]), tree)
    assert verdict == (1, 2)
