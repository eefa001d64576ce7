"""Trees of the reference drafter:

each node computes what a chain forced onto its path computes, and growth keeps what is best.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_drafters import (
    EVERYTHING_ON,
    SWITCHES,
    assert_same_state,
    small_config,
    small_drafter,
    small_rows,
    small_weights,
)

from refspec import native
from refspec.errors import UsageError
from refspec.reference import ops
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_tree import forward_tree
from refspec.reference.sampling import Sampler, p_target
from refspec.reference.tree import ROOT, Tree, TreeShape
from refspec.reference.tree_verify import without

N = 6
PARENTS = np.array([-1, -1, 0, 0, 1, 2, 2, 4, 5])
TOKENS = np.array([3, 7, 3, 9, 3, 12, 0, 30, 1])


def primed(config: Any = None, backend: Any = ops) -> Eagle3Drafter:
    config = config or small_config(**EVERYTHING_ON)
    drafter = Eagle3Drafter(config, small_weights(config), backend)
    drafter.extend(*small_rows(config, N))
    return drafter


def forced_chain(drafter: Eagle3Drafter, tokens: list[int]) -> np.ndarray:
    """Logits [k+1, D] of the last true row and of a chain forced onto tokens [k]."""
    values, features = small_rows(drafter.config, N)
    drafter.reset()
    rows = drafter.forward_rows(values, features, is_target_feature=True)
    logits = [rows.logits[-1]]
    for token in tokens:
        rows = drafter.forward_rows(np.array([token]), rows.state_out[-1:], is_target_feature=False)
        logits.append(rows.logits[-1])
    return np.array(logits)


def path(parents: np.ndarray, node: int) -> list[int]:
    return [] if node == ROOT else [*path(parents, int(parents[node])), node]


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(x.value for x in s))
def test_every_path_of_a_tree_equals_the_chain_forced_onto_it(switches: Any, backend: str) -> None:
    config = small_config(feature_norm=switches[0], feedback=switches[1], residual=switches[2], qk_norm=True)
    drafter = primed(config, native if backend == "native" else ops)
    logits, _, h = forward_tree(drafter, TOKENS, PARENTS)
    assert logits.shape == (len(TOKENS), config.draft_vocab_size) and h.shape == (len(TOKENS), config.hidden_size)
    for node in range(len(TOKENS)):
        along = path(PARENTS, node)
        chain = forced_chain(primed(config, drafter.ops), TOKENS[along].tolist())
        assert np.array_equal(chain[1:], logits[along])  # to the bit; the issue asks for 1e-5


@pytest.mark.parametrize("experiment", [{"anchor": 1.5}, {"grow": 1.4}])
def test_a_tree_with_an_experiment_equals_chains_with_it(experiment: dict[str, float]) -> None:
    # where the size of a state matters
    plain = primed(small_config(feature_norm="none", feedback="pre_norm", residual="raw"))
    drafter = plain.varied(**experiment)
    drafter.extend(*small_rows(drafter.config, N))
    logits, _, _ = forward_tree(drafter, TOKENS, PARENTS)
    for leaf in (3, 6, 7, 8):
        along = path(PARENTS, leaf)
        chain = forced_chain(drafter.varied(**experiment), TOKENS[along].tolist())
        assert np.array_equal(chain[1:], logits[along])
    assert np.abs(logits - forward_tree(plain, TOKENS, PARENTS)[0]).max() > 1e-4


def test_control_a_tree_without_its_mask_would_not_agree() -> None:
    drafter = primed()
    as_tree, _, _ = forward_tree(drafter, TOKENS[:3], np.array([-1, -1, 1]))
    as_chain, _, _ = forward_tree(drafter, TOKENS[:3], np.array([-1, 0, 1]))
    assert np.array_equal(as_tree[0], as_chain[0]) and np.abs(as_tree[1:] - as_chain[1:]).min() > 1e-4


def test_control_the_wrong_feedback_would_not_agree() -> None:
    post, pre = (primed(small_config(**(EVERYTHING_ON | {"feedback": name}))) for name in ("post_norm", "pre_norm"))
    a, b = forward_tree(post, TOKENS, PARENTS)[0], forward_tree(pre, TOKENS, PARENTS)[0]
    assert np.abs(a - b).max() > 1e-2


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_tree_of_one_child_per_node_is_the_chain(k: int) -> None:
    tree, draft = primed().draft_tree(TreeShape(k, 1, k)), primed().draft(k)
    assert tree.tokens.tolist() == draft.tokens.tolist() and tree.parents.tolist() == list(range(-1, k - 1))
    assert np.array_equal(tree.confidence, draft.confidence) and tree.distributions is None


@pytest.mark.parametrize("k", [1, 4])
def test_a_sampled_tree_of_one_child_per_node_is_the_sampled_chain(k: int) -> None:
    coins, sampler = np.random.default_rng(k).random(k), Sampler(temperature=1.2, top_p=0.9, logit_bias={3: 1.0})
    tree = primed().draft_tree(TreeShape(k, 1, k), coins=coins, sampler=sampler)
    draft = primed().draft(k, coins=coins, sampler=sampler)
    assert tree.tokens.tolist() == draft.tokens.tolist() and tree.parents.tolist() == list(range(-1, k - 1))
    assert tree.distributions is not None and draft.q_draft is not None and tree.distributions[k] is None
    assert all(np.array_equal(law, q) for law, q in zip(tree.distributions, draft.q_draft, strict=False))


def every_node(drafter: Eagle3Drafter, depth: int, top_k: int) -> dict[tuple[int, ...], float]:
    """Cumulative draft probability of every path of at most `depth` tokens within the top_k of each node, by forced
    chains.
    """
    values = {(): 1.0}
    for length in range(depth):
        for tokens in [t for t in values if len(t) == length]:
            logits = forced_chain(primed(drafter.config), list(tokens))[-1]
            p = ops.softmax(logits)
            for j in sorted(range(len(p)), key=lambda i: (-logits[i], i))[:top_k]:
                values[(*tokens, int(drafter.d2t[j]))] = values[tokens] * float(p[j])
    del values[()]
    return values


@pytest.mark.parametrize("nodes, top_k, depth", [(1, 1, 1), (3, 3, 1), (5, 2, 3), (12, 3, 3), (9, 3, 2)])
def test_a_tree_holds_the_most_probable_nodes(nodes: int, top_k: int, depth: int) -> None:
    drafter = primed()
    tree = drafter.draft_tree(TreeShape(nodes, top_k, depth))
    kept = {tuple(tree.tokens[tree.path(i)].tolist()): i for i in range(len(tree.tokens))}
    values = every_node(drafter, depth, top_k)
    for tokens, i in kept.items():
        assert np.prod(tree.confidence[tree.path(i)].astype(float)) == pytest.approx(values[tokens], rel=1e-5)
    assert len(kept) == len(tree.tokens) == min(nodes, len(values)) and tree.height <= depth and tree.width <= top_k
    # of each level only the top_k best nodes are expanded, so the nodes left out are compared within what was offered
    offered = {t for t in values if len(t) == 1}
    for length in range(1, depth):
        best = sorted((t for t in offered if len(t) == length), key=lambda t: -values[t])[:top_k]
        offered |= {t for t in values if t[:-1] in best}
    assert kept.keys() <= offered
    assert min(values[t] for t in kept) >= max((values[t] for t in offered - kept.keys()), default=0.0) * (1 - 1e-5)


def test_a_colder_value_makes_a_deeper_tree_of_the_same_tokens() -> None:
    shapes = [TreeShape(9, 3, 6, temperature) for temperature in (3.0, 1.0, 0.2, 0.02)]
    trees = [primed().draft_tree(shape) for shape in shapes]
    heights = [tree.height for tree in trees]
    assert heights == sorted(heights) and heights[0] < heights[-1] == 6
    assert trees[-1].tokens.tolist()[:1] == primed().draft(1).tokens.tolist()
    with pytest.raises(UsageError, match=r"temperature = 0\.0 is not a positive number"):
        primed().draft_tree(TreeShape(9, temperature=0.0))


def test_ties_go_to_the_smaller_depth_and_the_lower_token() -> None:
    config = small_config(**EVERYTHING_ON)
    weights = small_weights(config) | {"output": np.zeros((config.draft_vocab_size, config.hidden_size), np.float32)}
    drafter = Eagle3Drafter(config, weights)
    drafter.extend(*small_rows(config, N))
    tree = drafter.draft_tree(TreeShape(4, 3, 4))
    assert tree.tokens.tolist() == [*drafter.d2t[:3].tolist(), int(drafter.d2t[0])] and tree.parents.tolist() == [
        -1,
        -1,
        -1,
        0,
    ]


def test_a_certain_drafter_makes_a_chain_and_not_a_bush() -> None:
    config = small_config(**EVERYTHING_ON)
    weights = small_weights(config)
    weights["output"] = weights["output"] * 200  # every softmax is 1 and 0: value(child) = value(parent) exactly
    drafter = Eagle3Drafter(config, weights)
    drafter.extend(*small_rows(config, N))
    tree = drafter.draft_tree(TreeShape(5, 4, 5))
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3] and tree.tokens.tolist() == drafter.draft(5).tokens.tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1.0, 0.6, 0.2]))
def test_sampled_trees_come_from_the_laws_they_carry(
    nodes: int, top_k: int, depth: int, seed: int, top_p: float
) -> None:
    coins, sampler = np.random.default_rng(seed).random(nodes), Sampler(temperature=1.0, top_p=top_p)
    drafter = primed()
    tree = drafter.draft_tree(TreeShape(nodes, top_k, depth), coins=coins, sampler=sampler)
    assert 1 <= len(tree.tokens) <= nodes and tree.height <= depth and tree.width <= top_k
    assert tree.distributions is not None
    again = forward_tree(primed(), tree.tokens, tree.parents)[0]
    for node in range(ROOT, len(tree.tokens)):
        siblings, q = tree.children(node), tree.distributions[node + 1]
        assert (q is None) == (not siblings)
        if q is None:
            continue
        logits = forced_chain(primed(), [])[-1] if node == ROOT else again[node]
        assert np.array_equal(q[drafter.d2t], p_target(logits, sampler)) and q.sum() == pytest.approx(1)
        for child in siblings:
            assert q[tree.tokens[child]] > 0
            q = without(q, int(tree.tokens[child]))


def test_a_deep_sampled_tree_uses_all_its_nodes() -> None:
    tree = primed().draft_tree(
        TreeShape(12, 3, 4), coins=np.random.default_rng(0).random(12), sampler=Sampler(temperature=1.0)
    )
    assert len(tree.tokens) == 12 and tree.height == 4


def test_a_tree_leaves_the_drafter_as_it_was() -> None:
    drafter, other = primed(), primed()
    drafter.draft_tree(TreeShape(7, 3, 3))
    assert_same_state(drafter, other)
    drafter.draft_tree(TreeShape(7, 3, 3))
    drafter.rollback(4)
    other.rollback(4)
    assert_same_state(drafter, other)
    same = [primed().draft_tree(TreeShape(7, 3, 3)), drafter_after_chain().draft_tree(TreeShape(7, 3, 3))]
    assert same[0].tokens.tolist() == same[1].tokens.tolist()


def drafter_after_chain() -> Eagle3Drafter:
    drafter = primed()
    drafter.draft(5)
    return drafter


def test_there_is_no_tree_without_a_row_or_without_a_token_to_draw() -> None:
    drafter = small_drafter()
    assert len(drafter.draft_tree(TreeShape(3)).tokens) == 0
    drafter.extend(*small_rows(drafter.config, 2))
    forbid = Sampler(temperature=1.0, logit_bias={int(t): -np.inf for t in drafter.d2t})
    assert len(drafter.draft_tree(TreeShape(3), coins=np.zeros(3), sampler=forbid).tokens) == 0
    few = Sampler(temperature=1.0, logit_bias={int(t): -np.inf for t in drafter.d2t[1:]})
    only = drafter.draft_tree(TreeShape(4, 4, 1), coins=np.zeros(4), sampler=few)
    assert only.tokens.tolist() == [int(drafter.d2t[0])]


@pytest.mark.parametrize("options", [dict(coins=np.zeros(3)), dict(sampler=Sampler(temperature=1.0)),
                                     dict(coins=np.zeros(2), sampler=Sampler(temperature=1.0))])  # fmt: skip
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="draft_tree"):
        primed().draft_tree(TreeShape(3), **options)
    for shape in (TreeShape(0), TreeShape(65), TreeShape(3, 0), TreeShape(3, 2, 0)):
        with pytest.raises(UsageError, match=r"^tree: (nodes|top_k|depth) = \d+ is outside"):
            primed().draft_tree(shape)


@pytest.mark.parametrize("text, shape", [("12", (12, 4, 8)), ("12:3", (12, 3, 8)), ("60:10:7", (60, 10, 7))])
def test_a_shape_is_read_from_text(text: str, shape: tuple[int, ...]) -> None:
    assert TreeShape.parse(text) == TreeShape(*shape)


@pytest.mark.parametrize(
    "text", ["", "a", "3:", "1:2:3:4", "0", "-3", "3:0", "65", "999", "99999999999999999999", "3.5", "\u0663"]
)
def test_a_wrong_shape_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^tree: [^\n]*$"):
        TreeShape.parse(text)


def test_subtrees_keep_their_shape() -> None:
    tree = Tree(TOKENS.astype(np.int32), PARENTS.astype(np.int32), np.zeros(9, np.float32))
    assert tree.height == 4 and tree.width == 2 and tree.leaves() == [3, 6, 7, 8] and tree.path(8) == [0, 2, 5, 8]
    part = tree.keep([1, 4, 7])
    assert part.parents.tolist() == [-1, 0, 1] and part.tokens.tolist() == [7, 3, 30]
    for wrong in ([4], [1, 0], [0, 0]):
        with pytest.raises(ValueError, match="not a subtree"):
            tree.keep(wrong)
    assert all(np.array_equal(a, b) for a, b in product([tree.keep(range(9)).parents], [tree.parents]))
