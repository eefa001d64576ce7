"""Trees on llama.cpp:

one decode of a tree computes what the paths compute one after the other, and keeping a path leaves no trace.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refspec.errors import BackendError, ShapeError, UsageError
from refspec.gguf.io import read_drafter
from refspec.llama.eagle3_tree import LlamaEagle3TreeDrafter
from refspec.llama.target import LlamaTarget
from refspec.llama.tree_batch import leaf_sequences
from refspec.llama.tree_target import LlamaTreeTarget
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_tree import forward_tree
from refspec.reference.sampling import Sampler, p_target
from refspec.reference.tree import ROOT, TreeShape
from refspec.reference.tree_verify import without

STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
ROUNDING = 2e-5  # seen between two batch shapes in F32 (tests/engine/test_llama_target.py uses the same)
N = 30
IDS = np.random.default_rng(8).integers(3, tiny.V, N + 1).astype(np.int32)
PARENTS = [-1, -1, 0, 0, 1, 2, 2, 4, 5, -1]
TOKENS = [5, 9, 7, 200, 7, 31, 32, 5, 100, 61]


def path(parents: Any, node: int) -> list[int]:
    return [] if node == ROOT else [*path(parents, int(parents[node])), node]


@pytest.fixture(scope="module", params=["llama", "qwen2"])  # staged states, states by callback
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.target(tmp_path_factory.mktemp("target") / f"{request.param}.gguf", request.param)


@pytest.fixture(scope="module")
def target(files: Path) -> Iterator[LlamaTreeTarget]:
    target = LlamaTreeTarget(files, leaves=8, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    yield target
    target.close()


@pytest.fixture(scope="module")
def plain(files: Path) -> Iterator[LlamaTarget]:
    target = LlamaTarget(files, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    yield target
    target.close()


def one_by_one(plain: LlamaTarget, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [V] and features after IDS[:N] and these tokens, one decode per token."""
    plain.reset()
    plain.decode(IDS[:N], logits="none")
    for token in tokens:
        plain.decode([token])
    return plain.logits(0).copy(), plain.features()[0].copy()


def test_every_node_of_a_tree_computes_its_path(target: LlamaTreeTarget, plain: LlamaTarget) -> None:
    target.reset()
    target.decode(IDS[:N], logits="none")
    assert target.decode_tree([int(IDS[N]), *TOKENS], PARENTS) == len(TOKENS) + 1
    logits = [target.logits(row).copy() for row in range(len(TOKENS) + 1)]
    features = target.features().copy()
    for node in range(ROOT, len(TOKENS)):
        expected = one_by_one(plain, [int(IDS[N]), *(TOKENS[i] for i in path(PARENTS, node))])
        np.testing.assert_allclose(logits[node + 1], expected[0], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(features[node + 1], expected[1], rtol=0, atol=ROUNDING)
    wrong = one_by_one(plain, [int(IDS[N]), TOKENS[1], TOKENS[2]])[0]
    assert np.abs(logits[3] - wrong).max() > 100 * ROUNDING  # another path is another number


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_after_keeping_a_path_the_cache_is_that_path(
    target: LlamaTreeTarget, plain: LlamaTarget, data: st.DataObject
) -> None:
    target.reset()
    target.decode(IDS[:N], logits="none")
    text, draw = [int(IDS[N])], np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(4):
        n = data.draw(st.integers(0, 7))
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
        tokens = draw.integers(3, tiny.V, n).tolist()
        target.decode_tree([text[-1], *tokens], parents)
        node = data.draw(st.integers(-1, n - 1))
        kept = path(parents, node)
        last = target.logits(node + 1).copy()
        target.keep_path(kept)
        text += [*(tokens[i] for i in kept), int(draw.integers(3, tiny.V))]
        assert target.n_past == N + len(text) - 1
        np.testing.assert_allclose(last, one_by_one(plain, text[:-1])[0], rtol=0, atol=ROUNDING)
    target.decode(text[-1:])
    np.testing.assert_allclose(target.logits(0), one_by_one(plain, text)[0], rtol=0, atol=ROUNDING)


def test_a_tree_that_is_not_kept_leaves_no_trace(target: LlamaTreeTarget, plain: LlamaTarget) -> None:
    for forget in (lambda: target.rollback(N), lambda: target.decode_tree([6, 7], [-1]), lambda: target.decode([8])):
        target.reset()
        target.decode(IDS[:N], logits="none")
        target.decode_tree([int(IDS[N]), *TOKENS], PARENTS)
        forget()
        target.rollback(N)
        target.decode(IDS[N:])
        np.testing.assert_allclose(target.logits(0), one_by_one(plain, [int(IDS[N])])[0], rtol=0, atol=ROUNDING)


def test_a_failed_tree_leaves_the_positions_held_before(target: LlamaTreeTarget, plain: LlamaTarget) -> None:
    target.reset()
    target.decode(IDS[:N], logits="none")
    for tokens, parents in (
        ([5, tiny.V], [-1]),
        ([5, -1], [-1]),
        ([5, 6], [0]),
        ([5, 6], []),
        ([5, 6.5], [-1]),
        ([5] * 10, [-1] * 9),
    ):
        with pytest.raises(ShapeError):
            target.decode_tree(tokens, parents)
    with pytest.raises(UsageError, match="keep_path follows"):
        target.keep_path([])
    target.decode(IDS[N:])
    np.testing.assert_allclose(target.logits(0), one_by_one(plain, [int(IDS[N])])[0], rtol=0, atol=ROUNDING)


def test_the_context_can_be_filled_to_the_last_position_by_a_tree(target: LlamaTreeTarget) -> None:
    target.reset()
    target.decode([5] * 60, logits="none")
    with pytest.raises(ShapeError, match="give at most 3"):
        target.decode_tree([6, 7, 8, 9, 10], [-1, -1, 0, 1])
    target.decode_tree([6, 7, 8, 9], [-1, -1, 0])
    target.keep_path([0, 2])
    assert target.n_past == 63
    target.decode_tree([6], [])
    target.keep_path([])
    assert target.n_past == 64


def test_a_recurrent_target_runs_no_trees(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="draft chains, not trees"):
        LlamaTreeTarget(tiny.target(tmp_path / "x.gguf", "lfm2"), leaves=4, n_ctx=64, **STRICT)
    for leaves in (0, 257):
        with pytest.raises(UsageError, match=r"outside 1\.\.256"):
            LlamaTreeTarget(tmp_path / "x.gguf", leaves=leaves)


def test_sequences_are_the_leaves_below_a_row() -> None:
    assert leaf_sequences([]) == [[0]]
    assert leaf_sequences([-1, -1, 0, 0]) == [[0, 1, 2], [1, 2], [0], [1], [2]]


# --- the drafter ---

Make = Callable[..., tuple[LlamaEagle3TreeDrafter, Path]]


@pytest.fixture(scope="module")
def drafted_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaTreeTarget, np.ndarray]]:
    path = tiny.target(tmp_path_factory.mktemp("target") / "target.gguf")
    target = LlamaTreeTarget(path, leaves=8, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    target.decode(IDS[:N], logits="none")
    yield target, target.features().copy()
    target.close()


@pytest.fixture
def make(tmp_path: Path, drafted_for: tuple[LlamaTreeTarget, np.ndarray]) -> Make:
    def make(top_k: int = 4, **switches: Any) -> tuple[LlamaEagle3TreeDrafter, Path]:
        path = tiny.drafter(tmp_path / "drafter.gguf", **switches)
        drafter = LlamaEagle3TreeDrafter(path, drafted_for[0], top_k=top_k, **STRICT)
        drafter.extend(IDS[1:], drafted_for[1])
        return drafter, path

    return make


def reference(path: Path, features: np.ndarray) -> Eagle3Drafter:
    drafter = Eagle3Drafter(*read_drafter(path))
    drafter.extend(IDS[1:], features)
    return drafter


@pytest.mark.parametrize("feature_norm", ["none", "per_state"])
@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("residual", ["raw", "normed"])
def test_every_node_of_a_draft_tree_equals_the_reference(
    make: Make, drafted_for: tuple[LlamaTreeTarget, np.ndarray], feature_norm: str, feedback: str, residual: str
) -> None:
    drafter, path = make(feature_norm=feature_norm, feedback=feedback, residual=residual)
    tokens, parents = np.array(TOKENS), np.array(PARENTS)
    logits, h = drafter.forward_tree(tokens, parents)
    numpy = reference(path, drafted_for[1])
    expected, _, expected_h = forward_tree(numpy, tokens, parents)
    # as tests/agreement, whose chains are as long
    np.testing.assert_allclose(logits[:, numpy.d2t], expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(h, expected_h, rtol=0, atol=1e-4)
    assert np.isneginf(np.delete(logits, numpy.d2t, axis=1)).all()


@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
def test_every_path_of_a_draft_tree_equals_that_path_alone(make: Make, feedback: str) -> None:
    drafter, _ = make(feedback=feedback)
    logits, _ = drafter.forward_tree(np.array(TOKENS), np.array(PARENTS))
    for leaf in (3, 6, 7, 8, 9):
        along = path(PARENTS, leaf)
        alone, _ = drafter.forward_tree(np.array(TOKENS)[along], np.arange(-1, len(along) - 1))
        np.testing.assert_allclose(
            np.where(np.isneginf(alone), 0, alone),
            np.where(np.isneginf(logits[along]), 0, logits[along]),
            rtol=0,
            atol=5e-5,
        )


@pytest.mark.parametrize("shape", [TreeShape(1, 1, 1), TreeShape(6, 2, 3), TreeShape(14, 4, 5), TreeShape(20, 3, 8)])
def test_llama_cpp_grows_the_tree_the_reference_grows(
    make: Make, drafted_for: tuple[LlamaTreeTarget, np.ndarray], shape: TreeShape
) -> None:
    drafter, path = make(feature_norm="per_state", feedback="post_norm")
    ours, expected = drafter.draft_tree(shape), reference(path, drafted_for[1]).draft_tree(shape)
    assert ours.tokens.tolist() == expected.tokens.tolist() and ours.parents.tolist() == expected.parents.tolist()
    np.testing.assert_allclose(ours.confidence, expected.confidence, rtol=1e-3)
    again = drafter.draft_tree(shape)
    assert again.tokens.tolist() == ours.tokens.tolist()


def test_a_tree_of_one_child_per_node_is_the_chain(make: Make) -> None:
    drafter, _ = make(feature_norm="per_state", feedback="post_norm")
    draft = drafter.draft(5)
    tree = drafter.draft_tree(TreeShape(5, 1, 5))
    assert tree.tokens.tolist() == draft.tokens.tolist() == drafter.draft(5).tokens.tolist()
    assert tree.parents.tolist() == [-1, 0, 1, 2, 3]
    coins, sampler = np.random.default_rng(3).random(5), Sampler(temperature=1.0)
    sampled, chain = (
        drafter.draft_tree(TreeShape(5, 1, 5), coins=coins, sampler=sampler),
        drafter.draft(5, coins=coins, sampler=sampler),
    )
    assert sampled.tokens.tolist() == chain.tokens.tolist()


def test_sampled_trees_carry_the_laws_they_were_drawn_from(make: Make) -> None:
    drafter, _ = make(feedback="post_norm")
    sampler = Sampler(temperature=1.0, top_k=40)
    tree = drafter.draft_tree(TreeShape(12, 3, 4), coins=np.random.default_rng(4).random(12), sampler=sampler)
    assert len(tree.tokens) == 12 and tree.distributions is not None
    logits, _ = drafter.forward_tree(tree.tokens, tree.parents)
    for node in range(len(tree.tokens)):
        q = tree.distributions[node + 1]
        if q is not None:
            np.testing.assert_allclose(q, p_target(logits[node], sampler), rtol=0, atol=1e-5)
    for node in range(ROOT, len(tree.tokens)):
        q = tree.distributions[node + 1]
        for child in tree.children(node):
            assert q is not None and q[tree.tokens[child]] > 0
            q = without(q, int(tree.tokens[child]))


def test_a_draft_tree_leaves_the_rows_as_they_were(make: Make, drafted_for: tuple[LlamaTreeTarget, np.ndarray]) -> None:
    drafter, _ = make(feedback="post_norm")
    other, _ = make(feedback="post_norm")
    drafter.draft_tree(TreeShape(14, 4, 5))
    drafter.rollback(20)
    other.rollback(20)
    for one in (drafter, other):
        one.extend(IDS[21:26], drafted_for[1][20:25])
        one.draft_tree(TreeShape(9, 3, 3))
        one.extend(IDS[26:], drafted_for[1][25:])
    assert drafter.draft(6).tokens.tolist() == other.draft(6).tokens.tolist()
    assert drafter.draft_tree(TreeShape(9)).tokens.tolist() == other.draft_tree(TreeShape(9)).tokens.tolist()


def test_a_draft_tree_at_the_end_of_the_context_stops_growing(make: Make) -> None:
    drafter, _ = make()
    room = drafter.context.n_ctx - N
    drafter.extend(np.full(room - 3, 5), np.full((room - 3, 3 * tiny.HT), 0.1, np.float32))
    tree = drafter.draft_tree(TreeShape(30, 4, 8))
    assert 4 <= len(tree.tokens) < 30
    drafter.extend(np.full(3, 5), np.full((3, 3 * tiny.HT), 0.1, np.float32))
    assert drafter.draft_tree(TreeShape(30, 4, 8)).height == 1


def test_what_a_draft_tree_cannot_do_is_an_error(make: Make) -> None:
    drafter, _ = make(top_k=2)
    with pytest.raises(UsageError, match="top_k = 3, the drafter was loaded for 2"):
        drafter.draft_tree(TreeShape(4, 3))
    with pytest.raises(ShapeError, match="3 nodes of one depth, loaded for 2"):
        drafter.forward_tree(np.array([4, 5, 6]), np.array([-1, -1, -1]))
    drafter.reset()
    assert len(drafter.draft_tree(TreeShape(4, 2)).tokens) == 0
