"""C returns the bits of refspec.tree_verify, and refuses what it refuses."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_verify_c_equals_numpy import bits, cases
from tree_backends import BAD_TREE, EXTENSION, NUMPY, TreeBackend
from tree_steps import fixed_trees, made
from verify_backends import BAD_LAW, BAD_TOKEN, NOT_FINITE, CError

from refspec import native
from refspec.errors import BackendError, RefspecError, ShapeError
from refspec.reference import ops, tree_grow
from refspec.reference.sampling import Sampler, invert_cdf, p_target
from refspec.reference.tree import ROOT, Tree
from refspec.reference.tree_verify import without

many = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
Case = tuple[np.ndarray, Sampler, np.random.Generator]


def redrawn(tree: Tree, distributions: list[np.ndarray], rng: np.random.Generator) -> Tree:
    """The shape of a tree with tokens drawn without replacement; siblings beyond the law's support are dropped."""
    tokens, kept = tree.tokens.copy(), []
    for node in range(ROOT, len(tokens)):
        q = distributions[node + 1]
        for child in tree.children(node):
            if (node in kept or node == ROOT) and q.sum() > 0:
                tokens[child] = invert_cdf(q, rng.random())
                q = without(q, int(tokens[child]))
                kept.append(child)
    return tree._replace(tokens=tokens, distributions=distributions).keep(sorted(kept))


@many
@given(case=cases(), data=st.data())
def test_verdicts_on_trees_are_equal(compiled_trees: TreeBackend, case: Case, data: st.DataObject) -> None:
    row, sampler, rng = case
    tree = data.draw(fixed_trees(len(row), 9))
    rows = len(tree.tokens) + 1
    shift = np.round(rng.normal(size=(rows, len(row))) * rng.choice([0.0, 0.3, 3.0]), 1)
    logits = (row + shift).astype(np.float32)  # [N+1, V]
    coins = rng.random(rows)
    assert compiled_trees.deterministic(logits, tree, sampler, coins) == NUMPY.deterministic(
        logits, tree, sampler, coins
    )
    distributions = [0.5 * p_target(r, sampler) + 0.5 * rng.dirichlet(np.ones(len(row))) for r in logits]
    drawn = redrawn(tree, [q / np.cumsum(q)[-1] for q in distributions], rng)
    logits = logits[: len(drawn.tokens) + 1]
    accept = rng.random((drawn.height, max(drawn.width, 1)))
    args = (logits, drawn, sampler, accept, coins)
    assert compiled_trees.rejection(*args) == NUMPY.rejection(*args)


@many
@given(case=cases())
def test_without_is_bit_equal(compiled_trees: TreeBackend, case: Case) -> None:
    logits, sampler, rng = case
    q = p_target(logits, sampler)
    for _ in range(min(len(q), 4)):
        token = int(rng.integers(len(q)))
        assert bits(compiled_trees.without(q, token)) == bits(without(q, token))
        q = without(q, token)


@many
@given(case=cases(), k=st.integers(0, 12), temperature=st.sampled_from([1.0, 0.4, 3.0]))
def test_top_probs_choose_the_same_tokens(case: Case, k: int, temperature: float) -> None:
    logits, _, _ = case
    with np.errstate(over="ignore"):
        ids, probs = tree_grow.top_probs(logits, k, temperature)
        softmax = ops.softmax(logits / np.float32(temperature))
    in_c, probs_c = native.top_probs(logits, k, temperature)
    assert ids.tolist() == in_c.tolist()
    np.testing.assert_allclose(probs, probs_c, rtol=1e-4, atol=1e-30)
    finite = np.count_nonzero(logits > -np.inf)
    assert ids.tolist() == sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: min(k, finite)]
    np.testing.assert_allclose(probs, softmax[ids], rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_top_probs_refuse_what_is_not_a_number(bad: float) -> None:
    for backend in (tree_grow, native):
        for logits in (np.array([0, bad, 1], np.float32), np.full(3, -np.inf, np.float32)):
            with pytest.raises(BackendError, match=r"^the drafter's logits are not finite[^\n]*$"):
                backend.top_probs(logits, 2)


FLAT = np.zeros(4, np.float32)
ON = Sampler(temperature=1.0)
HALF = np.array([0.5, 0.5, 0.0, 0.0])
ONE, TWO = [FLAT] * 2, [FLAT] * 3
C1, C2 = [0.5] * 2, [0.5] * 3
A1, A2 = [[0.999]], [[0.999, 0.999]]
REFUSED: list[tuple[str, tuple[Any, ...], type[RefspecError], int]] = [
    ("deterministic", (ONE, made([4], [-1]), ON, C1), ShapeError, BAD_TOKEN),
    ("deterministic", (ONE, made([-1], [-1]), ON, C1), ShapeError, BAD_TOKEN),
    ("deterministic", (ONE, made([1], [0]), ON, C1), ShapeError, BAD_TREE),
    ("deterministic", (ONE, made([1], [-2]), ON, C1), ShapeError, BAD_TREE),
    ("deterministic", (TWO, made([1, 2], [1, -1]), ON, C2), ShapeError, BAD_TREE),
    ("deterministic", (ONE, made([1], [99]), ON, C1), ShapeError, BAD_TREE),
    ("deterministic", ([FLAT * np.nan, FLAT], made([1], [-1]), ON, C1), BackendError, NOT_FINITE),
    ("rejection", (ONE, made([4], [-1], [HALF, None]), ON, A1, C1), ShapeError, BAD_TOKEN),
    ("rejection", (ONE, made([1], [3], [HALF, None]), ON, A1, C1), ShapeError, BAD_TREE),
    ("rejection", (ONE, made([1], [-1], [None, None]), ON, A1, C1), BackendError, BAD_LAW),
    ("rejection", (ONE, made([1], [-1]), ON, A1, C1), BackendError, BAD_LAW),
    ("rejection", (ONE, made([2], [-1], [HALF, None]), ON, A1, C1), BackendError, BAD_LAW),
    ("rejection", (ONE, made([0], [-1], [HALF * 1.001, None]), ON, A1, C1), BackendError, BAD_LAW),
    ("rejection", (ONE, made([0], [-1], [HALF * np.nan, None]), ON, A1, C1), BackendError, BAD_LAW),
    ("rejection", (TWO, made([0, 0], [-1, -1], [HALF, None, None]), ON, A2, C2), BackendError, BAD_LAW),  # drawn twice
    ("rejection", ([FLAT * np.nan, FLAT], made([0], [-1], [HALF, None]), ON, A1, C1), BackendError, NOT_FINITE),
]


@pytest.mark.parametrize("name, args, error, status", REFUSED)
def test_both_refuse_the_same_trees(
    c_trees: TreeBackend, name: str, args: tuple[Any, ...], error: type[RefspecError], status: int
) -> None:
    with pytest.raises(error) as said:
        getattr(NUMPY, name)(*args)
    assert "\n" not in str(said.value)
    with pytest.raises(CError) as caught:
        getattr(c_trees, name)(*args)
    assert caught.value.status == status
    with pytest.raises(error) as repeated:
        getattr(EXTENSION, name)(*args)
    assert str(repeated.value) == str(said.value)


@pytest.mark.parametrize("backend", [NUMPY, EXTENSION], ids=["numpy", "extension"])
def test_too_few_rows_or_coins_are_refused(backend: TreeBackend) -> None:
    tree = made([0, 1], [-1, 0], [HALF, HALF, None])
    with pytest.raises(ShapeError, match="need one more row than nodes"):
        backend.deterministic(ONE, tree, ON, C2)
    with pytest.raises(ShapeError, match="coins: shape"):
        backend.deterministic(TWO, tree, ON, C1)
    with pytest.raises(ShapeError, match="residual_coins: shape"):
        backend.rejection(TWO, tree, ON, [[0.5], [0.5]], C1)
    with pytest.raises(ShapeError, match="accept_coins: shape"):
        backend.rejection(TWO, tree, ON, [[0.5]], C2)
    with pytest.raises(ShapeError, match="distributions for 2 nodes"):
        backend.rejection(TWO, tree._replace(distributions=[HALF]), ON, [[0.5], [0.5]], C2)
    with pytest.raises(ShapeError, match="a distribution of shape"):
        backend.rejection(TWO, tree._replace(distributions=[HALF[:3], HALF, None]), ON, [[0.5], [0.5]], C2)
