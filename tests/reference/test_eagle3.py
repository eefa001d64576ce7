"""The drafter: every switch combination against a second implementation, rollback, drafting, probes, bad input."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_drafters import SWITCHES, plain_forward, small_config, small_rows, small_weights

from refspec import ops
from refspec.config import DrafterConfig, FeatureNorm, Feedback, Residual, RopeStyle
from refspec.drafters.base import Drafter, Ops, RowRecord, magnitude
from refspec.drafters.eagle3 import Eagle3Drafter, Rows
from refspec.errors import CheckpointError, RefspecError, ShapeError, UsageError
from refspec.sampling import Sampler, invert_cdf, p_target

EVERYTHING_ON = dict(feature_norm="per_state", feedback="post_norm", residual="normed", qk_norm=True)


def new(config: DrafterConfig | None = None, seed: int = 0) -> Eagle3Drafter:
    config = config or small_config(**EVERYTHING_ON)
    return Eagle3Drafter(config, small_weights(config, seed))


def chain(drafter: Eagle3Drafter, tokens: np.ndarray, state: np.ndarray) -> list[Rows]:
    """Forced chained rows, one at a time, from the state of the last true row [1, H]."""
    rows: list[Rows] = []
    for token in tokens:
        rows.append(drafter.forward_rows(np.array([token]), state, is_target_feature=False))
        state = rows[-1].state_out
    return rows


@pytest.mark.parametrize("feature_norm, feedback, residual", SWITCHES)
@pytest.mark.parametrize("head_norm, qk_norm", [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("style", list(RopeStyle))
def test_every_combination_agrees_with_the_plain_float64_forward(
    feature_norm: Any, feedback: Any, residual: Any, head_norm: bool, qk_norm: bool, style: RopeStyle
) -> None:
    config = small_config(
        feature_norm=feature_norm,
        feedback=feedback,
        residual=residual,
        head_norm=head_norm,
        qk_norm=qk_norm,
        rope_style=style,
    )
    weights = small_weights(config) | {"rope_freqs": np.array([1, 2.5, 8], np.float32)}
    tokens, features = small_rows(config, 9)
    logits, states = plain_forward(config, weights, tokens, features[:5])
    drafter = Eagle3Drafter(config, weights)
    true = drafter.forward_rows(tokens[:5], features[:5], is_target_feature=True)
    rows = [true, *chain(drafter, tokens[5:], true.state_out[-1:])]
    # 3e-5 of the largest value: float32 against float64 through 9 dependent rows
    for mine, plain in (
        (np.concatenate([r.logits for r in rows]), logits),
        (np.concatenate([r.state_out for r in rows]), states),
    ):
        np.testing.assert_allclose(mine, plain, rtol=0, atol=3e-5 * np.abs(plain).max())


@pytest.mark.parametrize("n_states", [1, 2, 5])
def test_any_number_of_captured_states_works(n_states: int) -> None:
    config = small_config(capture_layers=tuple(range(n_states)), feature_norm="per_state")
    tokens, features = small_rows(config, 4)
    logits, _ = plain_forward(config, small_weights(config), tokens, features)
    mine = new(config).forward_rows(tokens, features, is_target_feature=True).logits
    np.testing.assert_allclose(mine, logits, rtol=0, atol=3e-5 * np.abs(logits).max())


def test_target_features_are_projected_even_when_they_are_as_wide_as_a_state() -> None:
    config = small_config(capture_layers=(2, 4), target_hidden_size=6)  # n_states * Ht == H == 12
    tokens, features = small_rows(config, 1)
    drafter = new(config)
    as_feature = drafter.forward_rows(tokens, features, is_target_feature=True)
    as_state = drafter.forward_rows(tokens, features, is_target_feature=False)
    assert np.array_equal(as_state.g, features)
    assert np.abs(as_feature.g - features).max() > 0.1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_prefill_in_any_split_has_the_same_bits(pieces: list[int], seed: int) -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, sum(pieces), seed)
    whole = new(config).forward_rows(tokens, features, is_target_feature=True)
    split, start, parts = new(config), 0, []
    for n in pieces:
        part = slice(start, start + n)
        parts.append(split.forward_rows(tokens[part], features[part], is_target_feature=True))
        start += n
    for field in Rows._fields:
        assert np.array_equal(np.concatenate([getattr(p, field) for p in parts]), getattr(whole, field)), field


def assert_same_state(a: Eagle3Drafter, b: Eagle3Drafter) -> None:
    assert a.n_rows == b.n_rows
    assert np.array_equal(a.cache.keys[: a.n_rows], b.cache.keys[: b.n_rows])
    assert np.array_equal(a.cache.values[: a.n_rows], b.cache.values[: b.n_rows])
    for mine, other in zip(a.draft(4), b.draft(4), strict=True):
        if mine is None or other is None:
            assert mine is other  # both drafted deterministically
        else:
            assert np.array_equal(mine, other)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["extend", "draft", "rollback"]), st.integers(0, 5)), max_size=8))
def test_any_history_equals_recomputing_its_surviving_rows(history: list[tuple[str, int]]) -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, 60)
    drafter, fresh = new(config), 0
    kept: list[int] = []
    for action, n in history:
        if action == "extend":
            rows = list(range(fresh, fresh + n))
            drafter.extend(tokens[rows], features[rows])
            kept, fresh = kept + rows, fresh + n
        elif action == "draft":
            drafter.draft(n)
        else:
            drafter.rollback(min(n, len(kept)))
            kept = kept[: min(n, len(kept))]
    recomputed = new(config)
    recomputed.extend(tokens[kept], features[kept])
    assert_same_state(drafter, recomputed)


@pytest.mark.parametrize("feature_norm, feedback, residual", SWITCHES)
def test_a_greedy_draft_is_the_forced_forward_of_its_own_tokens(
    feature_norm: Any, feedback: Any, residual: Any
) -> None:
    config = small_config(feature_norm=feature_norm, feedback=feedback, residual=residual)
    tokens, features = small_rows(config, 6)
    drafter, forced = new(config), new(config)
    drafter.extend(tokens, features)
    draft = drafter.draft(5)
    assert draft.q_draft is None
    assert draft.tokens.dtype == np.int32
    true = forced.forward_rows(tokens, features, is_target_feature=True)
    rows = [true, *chain(forced, draft.tokens, true.state_out[-1:])]
    for i in range(5):
        logits = rows[i].logits[-1]
        assert draft.tokens[i] == forced.d2t[np.argmax(logits)]
        assert draft.confidence[i] == ops.softmax(logits).max()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    st.sampled_from([0.0, 0.7, 2.0]),
    st.integers(0, 9),
)
def test_a_sampled_draft_follows_its_law_coin_by_coin(coins: list[float], temperature: float, seed: int) -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, 6, seed)
    sampler = Sampler(temperature=temperature, top_k=8)
    drafter, forced = new(config), new(config)
    drafter.extend(tokens, features)
    draft = drafter.draft(4, coins=np.array(coins), sampler=sampler)
    assert draft.q_draft is not None and draft.q_draft.shape == (4, config.vocab_size)
    true = forced.forward_rows(tokens, features, is_target_feature=True)
    rows = [true, *chain(forced, draft.tokens, true.state_out[-1:])]
    outside = np.setdiff1d(np.arange(config.vocab_size), forced.d2t)
    for i in range(4):
        q = draft.q_draft[i]
        assert np.array_equal(q[forced.d2t], p_target(rows[i].logits[-1], sampler))
        assert not q[outside].any()
        assert draft.tokens[i] == invert_cdf(q, coins[i])
        assert draft.confidence[i] == np.float32(q[draft.tokens[i]]) > 0


def test_a_logit_bias_in_target_ids_reaches_the_right_draft_ids() -> None:
    drafter = new()
    drafter.extend(*small_rows(drafter.config, 3))
    inside, outside = int(drafter.d2t[5]), int(np.setdiff1d(np.arange(31), drafter.d2t)[0])
    sampler = Sampler(temperature=1.0, logit_bias={inside: 50.0, outside: 50.0})
    draft = drafter.draft(3, coins=np.full(3, 0.5), sampler=sampler)
    assert draft.tokens.tolist() == [inside] * 3
    assert draft.q_draft is not None and not draft.q_draft[:, outside].any()


def test_nothing_is_drafted_when_the_bias_forbids_the_whole_draft_vocabulary() -> None:
    drafter = new()
    drafter.extend(*small_rows(drafter.config, 3))
    sampler = Sampler(temperature=1.0, logit_bias={int(t): -np.inf for t in drafter.d2t})
    assert len(drafter.draft(3, coins=np.full(3, 0.5), sampler=sampler).tokens) == 0


def test_drafts_are_absolute_target_ids_of_the_map() -> None:
    config = small_config()
    weights = small_weights(config)
    tokens, features = small_rows(config, 6)
    plain = Eagle3Drafter(config, weights | {"d2t": np.arange(13)})
    mapped = Eagle3Drafter(config, weights | {"d2t": np.arange(13)[::-1] + 10})
    for drafter in (plain, mapped):
        drafter.extend(tokens, features)
    assert mapped.draft(1).tokens[0] == 22 - plain.draft(1).tokens[0]


def test_drafting_starts_nothing_without_rows_and_nothing_for_zero_tokens() -> None:
    drafter = new()
    assert len(drafter.draft(3).tokens) == 0
    drafter.extend(*small_rows(drafter.config, 2))
    assert len(drafter.draft(0).tokens) == 0
    drafter.reset()
    assert drafter.n_rows == 0
    assert len(drafter.draft(3).tokens) == 0


def states_by_depth(seed: int, depth: int, **switches: Any) -> tuple[np.ndarray, Eagle3Drafter]:
    """Magnitude of the state fed forward at chain depth 1..depth."""
    drafter = new(small_config(**switches), seed)
    drafter.extend(*small_rows(drafter.config, 6, seed))
    records: list[RowRecord] = []
    drafter.probe = records.append
    drafter.draft(depth + 1)
    assert [r.depth for r in records] == list(range(1, depth + 1))
    return np.concatenate([magnitude(r.state_out) for r in records]), drafter


@pytest.mark.parametrize("seed", range(4))
def test_pre_norm_feedback_grows_with_depth_and_post_norm_feedback_is_bounded_by_its_gain(seed: int) -> None:
    grown, _ = states_by_depth(seed, 24, feature_norm="per_state", feedback="pre_norm", residual="raw")
    assert grown[-1] > 3 * grown[0]
    bounded, drafter = states_by_depth(seed, 24, feature_norm="per_state", feedback="post_norm", residual="raw")
    assert bounded.max() <= np.abs(drafter.weights["output_norm"]).max() * (1 + 1e-6)


def test_a_probe_sees_causal_attention_and_the_states_of_every_row_and_changes_no_bit() -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, 5)
    quiet, probed = new(config), new(config)
    records: list[RowRecord] = []
    probed.probe = records.append
    for drafter in (quiet, probed):
        drafter.extend(tokens, features)
    assert np.array_equal(quiet.draft(4).tokens, probed.draft(4).tokens)

    assert [(r.depth, r.first_row) for r in records] == [(0, 0), (1, 5), (2, 6), (3, 7)]
    true = new(config).forward_rows(tokens, features, is_target_feature=True)
    assert np.array_equal(records[0].state_in, true.g)
    assert np.array_equal(records[0].state_out, true.state_out)
    for before, after in pairwise(records):
        assert np.array_equal(after.state_in, before.state_out[-1:])  # what was fed forward
    for r in records:
        rows = r.state_in.shape[0]
        assert r.attention.shape == (config.n_heads, rows, r.first_row + rows)
        np.testing.assert_allclose(r.attention.sum(axis=-1), 1, rtol=1e-5)
        assert not np.triu(r.attention, k=r.first_row + 1).any()


def test_the_numerical_backend_is_injected() -> None:
    calls: set[str] = set()

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.add(name)
            return getattr(ops, name)(*args, **kwargs)

        return call

    names = [n for n in vars(Ops) if not n.startswith("_")]
    backend = cast(Ops, SimpleNamespace(**{n: counted(n) for n in names}))
    config = small_config(**EVERYTHING_ON)
    drafter, reference = Eagle3Drafter(config, small_weights(config), backend), new(config)
    for d in (drafter, reference):
        d.extend(*small_rows(config, 3))
    assert np.array_equal(drafter.draft(3).tokens, reference.draft(3).tokens)
    assert calls == set(names)


def test_it_is_a_drafter_and_counts_its_time() -> None:
    drafter: Drafter = new()
    drafter.extend(*small_rows(small_config(), 2))
    after_extend = drafter.seconds
    drafter.draft(2)
    assert 0 < after_extend < drafter.seconds
    drafter.close()
    drafter.close()


@pytest.mark.parametrize(
    "tokens, features, error, words",
    [
        ([31], np.zeros((1, 30)), ShapeError, "token ids 31..31"),
        ([-1], np.zeros((1, 30)), ShapeError, "token ids -1..-1"),
        ([1], np.zeros((1, 12)), ShapeError, "need [T, 30]"),
        ([1, 2], np.zeros((1, 30)), ShapeError, "with [2] tokens"),
        ([1], np.full((1, 30), np.nan), CheckpointError, "row 2"),
    ],
)
def test_bad_rows_are_refused_and_leave_the_drafter_as_it_was(
    tokens: list[int], features: np.ndarray, error: type[RefspecError], words: str
) -> None:
    drafter = new()
    rows = small_rows(drafter.config, 2)
    drafter.extend(*rows)
    with pytest.raises(error) as caught:
        drafter.extend(np.array(tokens), features.astype(np.float32))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    untouched = new()
    untouched.extend(*rows)
    assert_same_state(drafter, untouched)


def test_bad_calls_are_refused() -> None:
    drafter = new()
    drafter.extend(*small_rows(drafter.config, 2))
    with pytest.raises(ShapeError, match="back to 3 rows: it holds 2"):
        drafter.rollback(3)
    for k, coins, sampler in (
        (-1, None, None),
        (2, np.zeros(2), None),
        (2, None, Sampler()),
        (2, np.zeros(1), Sampler()),
    ):
        with pytest.raises(UsageError, match=f"k = {k}"):
            drafter.draft(k, coins=coins, sampler=sampler)


def test_the_switches_are_the_documented_words() -> None:
    assert [m.value for m in FeatureNorm] == ["none", "concat", "per_state"]
    assert [m.value for m in Feedback] == ["pre_norm", "post_norm"]
    assert [m.value for m in Residual] == ["raw", "normed"]
