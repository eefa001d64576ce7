"""The drafter's rows and drafts: against a second implementation, in any split, after any history, coin by coin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_drafters import (
    EVERYTHING_ON,
    SWITCHES,
    assert_same_state,
    plain_forward,
    small_config,
    small_drafter,
    small_rows,
    small_weights,
)

from refspec.errors import ShapeError
from refspec.reference import ops
from refspec.reference.config import BIASED, DrafterConfig, RopeStyle
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_rows import Rows
from refspec.reference.sampling import Sampler, invert_cdf, p_target


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
    switches = dict(
        feature_norm=feature_norm, feedback=feedback, residual=residual, head_norm=head_norm, qk_norm=qk_norm
    )
    assert_agrees_with_the_plain_forward(small_config(**switches, rope_style=style))


@pytest.mark.parametrize(
    "biases", [BIASED, ("attn_q", "attn_k", "attn_v"), *((name,) for name in BIASED)], ids="-".join
)
@pytest.mark.parametrize("switches", [{}, EVERYTHING_ON, {"rope_attention_factor": 1.25}], ids=["plain", "all", "yarn"])
def test_biases_agree_with_the_plain_float64_forward(biases: tuple[str, ...], switches: dict[str, Any]) -> None:
    config = small_config(biases=biases[::-1], **switches)
    assert config.biases == biases  # kept in the order of execution
    assert_agrees_with_the_plain_forward(config)


def test_a_bias_nothing_has_is_refused() -> None:
    with pytest.raises(ShapeError, match="hidden_norm"):
        small_config(biases=("hidden_norm",))


def assert_agrees_with_the_plain_forward(config: DrafterConfig) -> None:
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
    mine = small_drafter(config).forward_rows(tokens, features, is_target_feature=True).logits
    np.testing.assert_allclose(mine, logits, rtol=0, atol=3e-5 * np.abs(logits).max())


def test_target_features_are_projected_even_when_they_are_as_wide_as_a_state() -> None:
    config = small_config(capture_layers=(2, 4), target_hidden_size=6)  # n_states * Ht == H == 12
    tokens, features = small_rows(config, 1)
    drafter = small_drafter(config)
    as_feature = drafter.forward_rows(tokens, features, is_target_feature=True)
    as_state = drafter.forward_rows(tokens, features, is_target_feature=False)
    assert np.array_equal(as_state.g, features)
    assert np.abs(as_feature.g - features).max() > 0.1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_prefill_in_any_split_has_the_same_bits(pieces: list[int], seed: int) -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, sum(pieces), seed)
    whole = small_drafter(config).forward_rows(tokens, features, is_target_feature=True)
    split, start, parts = small_drafter(config), 0, []
    for n in pieces:
        part = slice(start, start + n)
        parts.append(split.forward_rows(tokens[part], features[part], is_target_feature=True))
        start += n
    for field in Rows._fields:
        assert np.array_equal(np.concatenate([getattr(p, field) for p in parts]), getattr(whole, field)), field


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["extend", "draft", "rollback"]), st.integers(0, 5)), max_size=8))
def test_any_history_equals_recomputing_its_surviving_rows(history: list[tuple[str, int]]) -> None:
    config = small_config(**EVERYTHING_ON)
    tokens, features = small_rows(config, 60)
    drafter, fresh = small_drafter(config), 0
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
    recomputed = small_drafter(config)
    recomputed.extend(tokens[kept], features[kept])
    assert_same_state(drafter, recomputed)


@pytest.mark.parametrize("feature_norm, feedback, residual", SWITCHES)
def test_a_greedy_draft_is_the_forced_forward_of_its_own_tokens(
    feature_norm: Any, feedback: Any, residual: Any
) -> None:
    config = small_config(feature_norm=feature_norm, feedback=feedback, residual=residual)
    tokens, features = small_rows(config, 6)
    drafter, forced = small_drafter(config), small_drafter(config)
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
    drafter, forced = small_drafter(config), small_drafter(config)
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
    drafter = small_drafter()
    drafter.extend(*small_rows(drafter.config, 3))
    inside, outside = int(drafter.d2t[5]), int(np.setdiff1d(np.arange(31), drafter.d2t)[0])
    sampler = Sampler(temperature=1.0, logit_bias={inside: 50.0, outside: 50.0})
    draft = drafter.draft(3, coins=np.full(3, 0.5), sampler=sampler)
    assert draft.tokens.tolist() == [inside] * 3
    assert draft.q_draft is not None and not draft.q_draft[:, outside].any()


def test_nothing_is_drafted_when_the_bias_forbids_the_whole_draft_vocabulary() -> None:
    drafter = small_drafter()
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
    drafter = small_drafter()
    assert len(drafter.draft(3).tokens) == 0
    drafter.extend(*small_rows(drafter.config, 2))
    assert len(drafter.draft(0).tokens) == 0
    drafter.reset()
    assert drafter.n_rows == 0
    assert len(drafter.draft(3).tokens) == 0
