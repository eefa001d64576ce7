"""The drafter around its numbers: what probes see, drift with draft depth, the backend, the protocol, bad input."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from small_drafters import EVERYTHING_ON, assert_same_state, small_config, small_drafter, small_rows, small_weights

from refspec.decoding.drafter import Drafter
from refspec.errors import CheckpointError, RefspecError, ShapeError, UsageError
from refspec.reference import ops
from refspec.reference.config import FeatureNorm, Feedback, Residual
from refspec.reference.draft import Ops, RowRecord, magnitude
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.sampling import Sampler


def states_by_depth(seed: int, depth: int, **switches: Any) -> tuple[np.ndarray, Eagle3Drafter]:
    """Magnitude of the state fed forward at chain depth 1..depth."""
    drafter = small_drafter(small_config(**switches), seed)
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
    quiet, probed = small_drafter(config), small_drafter(config)
    records: list[RowRecord] = []
    probed.probe = records.append
    for drafter in (quiet, probed):
        drafter.extend(tokens, features)
    assert np.array_equal(quiet.draft(4).tokens, probed.draft(4).tokens)

    assert [(r.depth, r.first_row) for r in records] == [(0, 0), (1, 5), (2, 6), (3, 7)]
    true = small_drafter(config).forward_rows(tokens, features, is_target_feature=True)
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
    drafter, reference = Eagle3Drafter(config, small_weights(config), backend), small_drafter(config)
    for d in (drafter, reference):
        d.extend(*small_rows(config, 3))
    assert np.array_equal(drafter.draft(3).tokens, reference.draft(3).tokens)
    assert calls == set(names)


def test_it_is_a_drafter_without_a_clock() -> None:
    drafter: Drafter = small_drafter()
    drafter.extend(*small_rows(small_config(), 2))
    drafter.draft(2)
    assert drafter.seconds == 0.0
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
    drafter = small_drafter()
    rows = small_rows(drafter.config, 2)
    drafter.extend(*rows)
    with pytest.raises(error) as caught:
        drafter.extend(np.array(tokens), features.astype(np.float32))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    untouched = small_drafter()
    untouched.extend(*rows)
    assert_same_state(drafter, untouched)


def test_bad_calls_are_refused() -> None:
    drafter = small_drafter()
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
