"""Anchored attention, an experiment against drift: what the bonus does, and where it does nothing."""

import numpy as np
import pytest
from small_drafters import EVERYTHING_ON, small_config, small_drafter, small_rows, small_weights

from refspec import native
from refspec.errors import UsageError
from refspec.reference import ops
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_forward import Anchor, anchored

TRUE, DEPTH = 6, 5


def probed(drafter, config):
    """Row records of true rows and a chain, and the draft tokens."""
    rows = []
    drafter.probe = rows.append
    drafter.extend(*small_rows(config, TRUE))
    tokens = drafter.draft(DEPTH + 1).tokens
    return rows, tokens


def test_it_is_the_softmax_with_the_bonus_in_the_scores():
    rng = np.random.default_rng(0)
    scores, values = rng.standard_normal((4, 2, 9)), rng.standard_normal((9, 2, 3)).astype(np.float32)
    plain = ops.softmax(scores.astype(np.float32))
    expected = ops.softmax((scores + 1.5 * (np.arange(9) < 6)).astype(np.float32))
    out, weights = anchored(plain, values, Anchor(6, 1.5))
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    heads = [expected[h] @ values[:, h // 2] for h in range(4)]  # each [T, hd]
    np.testing.assert_allclose(out, np.stack(heads, 1).reshape(2, -1), atol=1e-6)


def test_the_odds_of_true_rows_grow_by_its_exponential_in_the_first_chained_row():
    config = small_config(**EVERYTHING_ON)
    drafter = small_drafter(config)
    (_, *plain), _ = probed(drafter, config)
    (_, *with_bonus), _ = probed(drafter.varied(anchor=2.0), config)
    odds = [
        row[0].attention[:, 0, :TRUE].sum(-1) / row[0].attention[:, 0, TRUE:].sum(-1) for row in (plain, with_bonus)
    ]
    np.testing.assert_allclose(odds[1] / odds[0], np.exp(2.0), rtol=1e-4)
    for row in with_bonus:
        np.testing.assert_allclose(row.attention.sum(-1), 1, atol=1e-6)


def test_true_rows_stay_as_they_are_and_the_original_has_no_anchor():
    config = small_config(**EVERYTHING_ON)
    drafter = small_drafter(config)
    other = drafter.varied(anchor=3.0)
    (true, *_), tokens = probed(drafter, config)
    (true_too, *_), _ = probed(other, config)
    np.testing.assert_array_equal(true.state_out, true_too.state_out)
    np.testing.assert_array_equal(true.attention, true_too.attention)
    assert drafter.anchor == 0 and other.weights is drafter.weights and other.cache is not drafter.cache
    drafter.probe = None
    drafter.extend(*(part[:0] for part in small_rows(config, 1)))
    np.testing.assert_array_equal(drafter.draft(DEPTH + 1).tokens, tokens)


def test_a_huge_bonus_leaves_the_chain_s_own_rows_nothing_and_no_number_overflows():
    config = small_config(**EVERYTHING_ON)
    (_, *rows), _ = probed(small_drafter(config).varied(anchor=500.0), config)
    for row in rows:
        assert np.isfinite(row.state_out).all() and row.attention[:, 0, TRUE:].max() == 0


@pytest.mark.parametrize("experiment", [{"anchor": 1.0}, {"grow": 1.3}])
def test_numpy_and_c_agree_on_both_experiments(experiment):
    config = small_config(feature_norm="none", feedback="pre_norm", residual="raw", qk_norm=True)
    (_, *one), tokens = probed(Eagle3Drafter(config, small_weights(config), ops, **experiment), config)
    (_, *other), too = probed(Eagle3Drafter(config, small_weights(config), native, **experiment), config)
    np.testing.assert_array_equal(tokens, too)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.state_out, b.state_out, atol=1e-5)


@pytest.mark.parametrize("name", ["anchor", "grow"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_value_that_is_none_is_refused(name, value):
    config = small_config()
    with pytest.raises(UsageError, match=name):
        Eagle3Drafter(config, small_weights(config), **{name: value})
