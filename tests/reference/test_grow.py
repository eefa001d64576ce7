"""The state fed back resized, an experiment on its growth: what it sets, and what it leaves alone."""

import numpy as np
import pytest
from small_drafters import EVERYTHING_ON, small_config, small_drafter, small_rows, small_weights

from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_forward import resized

PRE = dict(feature_norm="none", feedback="pre_norm", residual="raw")
TRUE, DEPTH = 6, 5


def probed(drafter):
    """Row records of true rows and a chain, and the draft tokens."""
    rows = []
    drafter.probe = rows.append
    drafter.extend(*small_rows(drafter.config, TRUE))
    return rows, drafter.draft(DEPTH + 1).tokens


def size(state):
    return float(np.sqrt(np.mean(np.square(state, dtype=np.float64))))


def test_states_get_the_size_asked_for_and_keep_their_direction():
    states = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32) * np.array(
        [[1], [10], [1e-3], [0]], np.float32
    )
    out = resized(states, np.array([2.0, 3.0, 5.0, 7.0]))
    np.testing.assert_allclose([size(row) for row in out], [2, 3, 5, 0], rtol=1e-6)
    for a, b in zip(states[:3], out[:3], strict=True):
        np.testing.assert_allclose(a / size(a), b / size(b), rtol=1e-5)


@pytest.mark.parametrize("switches", [PRE, EVERYTHING_ON])
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_every_chained_row_starts_from_a_state_of_that_size(switches, factor):
    drafter = small_drafter(small_config(**switches))
    (true, *chain), _ = probed(drafter.varied(grow=factor))
    first = size(true.state_out[-1])
    np.testing.assert_allclose(
        [size(row.state_in) for row in chain], [first * factor**i for i in range(DEPTH)], rtol=1e-5
    )
    (true_too, one, *_), _ = probed(drafter)
    np.testing.assert_array_equal(true.state_out, true_too.state_out)
    np.testing.assert_allclose(chain[0].state_in, one.state_in, rtol=1e-6)  # the first has its own size
    assert drafter.grow == 0


def test_one_changes_a_state_that_grows_and_none_that_is_normed_by_ones():
    grows = small_drafter(small_config(**PRE))
    (_, *free), _ = probed(grows)
    assert size(free[-1].state_in) > 1.02 * size(free[0].state_in)
    (_, *held), _ = probed(grows.varied(grow=1.0))
    assert np.abs(held[-1].state_out - free[-1].state_out).max() > 1e-3
    config = small_config(**EVERYTHING_ON)
    keeps = Eagle3Drafter(config, small_weights(config) | {"output_norm": np.ones(config.hidden_size, np.float32)})
    (_, *free), tokens = probed(keeps)
    (_, *held), too = probed(keeps.varied(grow=1.0))
    np.testing.assert_array_equal(tokens, too)
    np.testing.assert_allclose(held[-1].state_out, free[-1].state_out, atol=1e-4)


def test_chained_rows_given_together_are_resized_each_by_its_depth():
    drafter = small_drafter(small_config(**PRE)).varied(grow=1.5)
    drafter.extend(*small_rows(drafter.config, TRUE))
    states = np.random.default_rng(1).standard_normal((3, drafter.config.hidden_size)).astype(np.float32)
    g = drafter.forward_rows(np.array([1, 2, 3]), states, is_target_feature=False).g
    np.testing.assert_allclose([size(row) / size(g[0]) for row in g], [1, 1.5, 2.25], rtol=1e-5)
