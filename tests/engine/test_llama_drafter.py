"""LlamaEagle3Drafter on tiny random pairs: rows, chains, rollback, sampling, borrowed tensors. Numbers:

tests/agreement.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from refspec import native
from refspec.errors import BackendError
from refspec.gguf.io import read_gguf_header
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.native_eagle3 import complete_weights
from refspec.llama.target import LlamaTarget
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.sampling import Sampler, invert_cdf, p_target

STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
N = 40
IDS = np.random.default_rng(6).integers(3, tiny.V, N + 1).astype(np.int32)
Make = Callable[..., LlamaEagle3Drafter]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaTarget]:
    path = tiny.target(tmp_path_factory.mktemp("target") / "target.gguf")
    target = LlamaTarget(path, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    target.decode(IDS[:N], logits="none")
    yield target
    target.close()


@pytest.fixture(scope="module")
def features(target: LlamaTarget) -> np.ndarray:
    return target.features().copy()


@pytest.fixture
def make(tmp_path: Path, target: LlamaTarget) -> Make:
    def make(quantize: str = "F32", **switches: Any) -> LlamaEagle3Drafter:
        path = tiny.drafter(tmp_path / "drafter.gguf", quantize=quantize, **switches)
        return LlamaEagle3Drafter(path, target, **STRICT)

    return make


NORMED = dict(feature_norm="per_state", feedback="post_norm")


def logits(drafter: LlamaEagle3Drafter, k: int) -> np.ndarray:
    """Logits [k, V] of the next k drafted tokens."""
    seen: list[np.ndarray] = []
    drafter.probe = lambda depth, row, state: seen.append(row)
    drafter.draft(k)
    drafter.probe = None
    return np.array(seen)


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(np.isneginf(a), np.isneginf(b))
    np.testing.assert_allclose(np.where(np.isneginf(a), 0, a), np.where(np.isneginf(b), 0, b), rtol=0, atol=5e-5)


def test_drafting_again_gives_the_same_draft(make: Make, features: np.ndarray) -> None:
    drafter = make(**NORMED)
    drafter.extend(IDS[1:], features)
    first, second, shorter = drafter.draft(6), drafter.draft(6), drafter.draft(2)
    assert first.tokens.tolist() == second.tokens.tolist() and first.tokens[:2].tolist() == shorter.tokens.tolist()
    np.testing.assert_allclose(first.confidence, second.confidence, rtol=1e-4)
    assert first.q_draft is None and first.tokens.dtype == np.int32


@pytest.mark.parametrize("pieces", [[1] * 40, [33, 7], [3, 5, 32], [39, 1]])
def test_rows_in_pieces_equal_rows_at_once(make: Make, features: np.ndarray, pieces: list[int]) -> None:
    whole, piecewise = make(**NORMED), make(**NORMED)
    whole.extend(IDS[1:], features)
    start = 0
    for n in pieces:
        piecewise.draft(3)  # drafted rows are dropped by the next extend
        piecewise.extend(IDS[1 + start : 1 + start + n], features[start : start + n])
        start += n
    assert piecewise.n_rows == whole.n_rows == N
    close(logits(piecewise, 4), logits(whole, 4))


def test_rollback_equals_recomputing(make: Make, features: np.ndarray) -> None:
    drafter, again = make(**NORMED), make(**NORMED)
    drafter.extend(IDS[1:], features)
    drafter.draft(5)
    drafter.rollback(20)
    drafter.extend(IDS[21:31], features[20:30])
    again.extend(IDS[1:31], features[:30])
    close(logits(drafter, 4), logits(again, 4))
    drafter.reset()
    assert drafter.n_rows == 0 and len(drafter.draft(3).tokens) == 0
    drafter.extend(IDS[1:31], features[:30])
    close(logits(drafter, 4), logits(again, 4))


def test_numpy_and_c_steps_draft_the_same(make: Make, features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for lib in (native.lib, None):
        monkeypatch.setattr(native, "lib", lib)
        drafter = make(**NORMED)
        drafter.extend(IDS[1:], features)
        rows.append((logits(drafter, 6), drafter.draft(6)))
    close(rows[0][0], rows[1][0])
    assert rows[0][1].tokens.tolist() == rows[1][1].tokens.tolist()
    np.testing.assert_allclose(rows[0][1].confidence, rows[1][1].confidence, rtol=1e-4)


def test_drafts_stay_within_the_draft_vocabulary(make: Make, features: np.ndarray) -> None:
    drafter = make(draft_vocab=40)
    _, _, tensors = tiny.drafter_parts(draft_vocab=40)
    drafter.extend(IDS[1:], features)
    rows = logits(drafter, 6)
    assert np.array_equal(np.flatnonzero(np.isfinite(rows[0])), tensors["d2t"])
    assert set(drafter.draft(6).tokens.tolist()) <= set(tensors["d2t"].tolist())


def test_sampled_drafts_follow_the_sampler_and_the_coins(make: Make, features: np.ndarray) -> None:
    drafter, sampler = make(**NORMED), Sampler(temperature=0.9, top_k=30)
    drafter.extend(IDS[1:], features)
    seen: list[np.ndarray] = []
    drafter.probe = lambda depth, row, state: seen.append(row)
    coins = np.array([0.11, 0.93, 0.5, 0.72])
    draft = drafter.draft(4, coins=coins, sampler=sampler)
    assert draft.q_draft is not None and draft.q_draft.shape == (4, tiny.V)
    for row, q, token, coin, confidence in zip(seen, draft.q_draft, draft.tokens, coins, draft.confidence, strict=True):
        expected = p_target(row, sampler)
        assert np.array_equal(q, expected) and token == invert_cdf(expected, coin)
        assert confidence == np.float32(q[token])


def test_nothing_is_sampled_when_the_bias_forbids_the_draft_vocabulary(make: Make, features: np.ndarray) -> None:
    drafter = make(draft_vocab=4)
    _, _, tensors = tiny.drafter_parts(draft_vocab=4)
    drafter.extend(IDS[1:], features)
    bias = {int(t): -np.inf for t in tensors["d2t"]}
    draft = drafter.draft(3, coins=np.zeros(3), sampler=Sampler(temperature=1.0, logit_bias=bias))
    assert len(draft.tokens) == 0 and draft.q_draft is not None and draft.q_draft.shape == (0, tiny.V)


def test_a_borrowed_embedding_and_head_equal_copies_of_them(
    make: Make, tmp_path: Path, target: LlamaTarget, features: np.ndarray
) -> None:
    borrowed = make(shared=True, width=tiny.HT, **NORMED)
    arch, meta, tensors = tiny.drafter_parts(shared=True, width=tiny.HT, **NORMED)
    _, of_target = tiny.target_parts("llama")
    tensors |= {name: of_target[name] for name in ("token_embd.weight", "output.weight")}
    owned = LlamaEagle3Drafter(tiny.write(tmp_path / "own.gguf", arch, meta, tensors), target, **STRICT)
    for drafter in (borrowed, owned):
        drafter.extend(IDS[1:], features)
    close(logits(borrowed, 5), logits(owned, 5))


@pytest.mark.parametrize("quantize", ["F16", "Q8_0", "Q4_0"])
def test_quantized_drafters_run(make: Make, features: np.ndarray, quantize: str) -> None:
    drafter = make(quantize, width=64, **NORMED)
    drafter.extend(IDS[1:], features)
    draft = drafter.draft(6)
    assert len(draft.tokens) == 6 and ((draft.confidence > 0) & (draft.confidence <= 1)).all()


def test_drafting_at_the_end_of_the_context_never_fails(make: Make, target: LlamaTarget) -> None:
    drafter = make(**NORMED)
    room = drafter.context.n_ctx
    rows = np.zeros((room, 3 * tiny.HT), np.float32) + 0.1
    drafter.extend(np.full(room - 2, 5), rows[:-2])
    assert len(drafter.draft(9).tokens) == 3  # two more rows fit, and each row's draft token needs none of its own
    drafter.extend(np.full(2, 5), rows[:2])
    assert len(drafter.draft(9).tokens) == 1


def test_draft_length_zero_is_an_empty_draft(make: Make, features: np.ndarray) -> None:
    drafter = make()
    drafter.extend(IDS[1:], features)
    assert drafter.draft(0).tokens.shape == (0,) and len(drafter.draft(2).tokens) == 2


def test_extending_by_no_rows_only_drops_drafted_rows(make: Make, features: np.ndarray) -> None:
    drafter = make()
    drafter.extend(IDS[1:], features)
    first = drafter.draft(4)
    drafter.extend(IDS[:0], features[:0])
    assert drafter.n_rows == N and drafter.draft(4).tokens.tolist() == first.tokens.tolist()


def test_closing_the_target_first_is_safe(tmp_path: Path) -> None:
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    drafter = LlamaEagle3Drafter(tiny.drafter(tmp_path / "d.gguf", shared=True, width=tiny.HT), target, **STRICT)
    target.close()
    with pytest.raises(BackendError, match="already closed"):
        drafter.draft(1)
    drafter.close()
    drafter.close()


@pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
@pytest.mark.parametrize("switches", [NORMED, dict(feature_norm="concat"), {}])
def test_the_cycle_in_c_drafts_what_python_drafts(
    make: Make, features: np.ndarray, switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_c = make(**switches)
    monkeypatch.setattr("refspec.llama.eagle3.possible", lambda: False)
    in_python = make(**switches)
    for rows in (slice(0, 30), slice(30, 33), slice(33, 34), slice(34, 40)):
        drafts = []
        for drafter in (in_c, in_python):
            drafter.extend(IDS[1:][rows], features[rows])
            drafts.append(drafter.draft(5))
        assert drafts[0].tokens.tolist() == drafts[1].tokens.tolist()
        np.testing.assert_allclose(drafts[0].confidence, drafts[1].confidence, rtol=1e-5)
    assert in_c.n_rows == in_python.n_rows == 40 and in_c.seconds > 0


@pytest.mark.parametrize("switches", [NORMED, {}, {"feature_norm": "concat", "residual": "normed"}])
def test_it_is_as_sure_of_rows_as_it_was_of_each_when_it_was_the_last(
    make: Make, features: np.ndarray, switches: dict[str, Any], target: LlamaTarget
) -> None:
    drafter = make(**switches)
    each = []
    drafter.extend(IDS[1:21], features[:20])
    for i in range(20, 36):
        drafter.extend(IDS[i + 1 : i + 2], features[i : i + 1])
        each.append(float(np.log(drafter.draft(1).confidence[0])))
    drafts = drafter.draft(4).tokens.tolist()
    drafter.rollback(20)
    assert drafter.survey(IDS[21:37], features[20:36]) == pytest.approx(np.mean(each), abs=1e-5)
    assert drafter.n_rows == 36 and drafter.draft(4).tokens.tolist() == drafts
    reference = Eagle3Drafter(*complete_weights(read_gguf_header(drafter.path), target.info))
    reference.extend(IDS[1:21], features[:20])
    assert reference.survey(IDS[21:37], features[20:36]) == pytest.approx(np.mean(each), abs=1e-4)
    drafter.rollback(0)
    assert np.isnan(drafter.survey(IDS[1:37], features[:36])) and drafter.n_rows == 36, "more rows than one pass"
    assert np.isnan(drafter.survey(IDS[:0], features[:0]))
    drafter.close()
