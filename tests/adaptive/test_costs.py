"""What is learned of the costs of steps."""

import numpy as np
import pytest
from simulation import LONG, MOST

from refspec.adaptive.costs import Costs


def test_costs_tell_the_price_of_a_change_of_size_from_the_price_of_its_tokens():
    costs, before = Costs(), 0
    for i in range(400):
        k = (0, 0, 3, 3, 3, 1)[i % 6]
        costs.learn(
            k, before, (1.0, 1.2, 0.0, 1.5)[k] + (0.4 if before != k + 1 else 0.0), 0.05 + 0.1 * max(k - 1, 0), 0.02
        )
        before = k + 1
    assert costs.target(1) == pytest.approx(1.0, rel=0.05) and costs.target(4) == pytest.approx(1.5, rel=0.05)
    assert costs.switch == pytest.approx(0.4, abs=0.1)
    assert costs.drafter == pytest.approx((0.05, 0.1), abs=0.02)
    assert costs.target(3) == pytest.approx((costs.target(2) + costs.target(4)) / 2), "unknown sizes are interpolated"
    assert costs.target(6) > costs.target(4) and costs.step(4) > costs.step(3)


@pytest.mark.parametrize("disturbed", [0, 1, 2])
def test_one_disturbed_observation_of_a_size_is_outvoted(disturbed):
    costs = Costs({1: 1.0})
    for i in range(3):
        costs.learn(3, 4, 4.8 if i == disturbed else 1.6, None, None)
        assert i == disturbed == 0 or costs.target(4) == pytest.approx(1.6)
    costs.doubt(4)
    costs.learn(3, 4, 3.2, None, None)
    assert 1.6 < costs.target(4) < 3.2, "what was known long ago is a guess, and not one of the first"


def test_costs_tell_a_longer_context_from_a_slower_machine():
    costs, before = Costs({r: LONG.rows[r] for r in range(1, MOST + 2)}), 0
    for i in range(1500):
        costs.context = (60, 700, 300, 900)[i // 25 % 4]
        k = (0, 1, 2, 2, 1, 1)[i // 4 % 6]
        costs.learn(k, before, 1.2 * LONG.target(k + 1, costs.context), 0.08, 0.03)  # and the machine is a fifth slower
        before = k + 1
    assert costs.attention * costs.drift == pytest.approx(1.2 * LONG.attention, rel=0.1)
    for context in (128, 800):
        costs.context = context
        for rows in (1, 2, 3):
            assert costs.target(rows) == pytest.approx(1.2 * LONG.target(rows, context), rel=0.05), (context, rows)


def test_a_cache_that_is_read_once_for_all_tokens_is_not_taken_for_a_slower_machine():
    """Short prompts verify three tokens, long ones decode plainly.

    Three tokens after a long prompt must not be thought of as dearer than they are.
    """

    def seconds(rows, context):
        return LONG.rows[rows] + (0.0005 + 0.0002 * rows) * (context - 128)

    costs, before = Costs({r: LONG.rows[r] for r in range(1, MOST + 2)}), 0
    for i in range(1500):
        costs.context = (60, 700, 300, 900)[i // 25 % 4]
        k = (0, 1, 2, 2, 1, 1)[i // 4 % 6]
        costs.learn(k, before, seconds(k + 1, costs.context), 0.08, 0.03)
        before = k + 1
    assert 0.0003 < costs.cache * costs.drift < 0.0006 and costs.attention * costs.drift < 0.0003, (
        "most of it is found where it is"
    )
    for context, k in ((60, 2), (900, 0)):
        costs.context = context
        for _ in range(300):
            costs.learn(k, k + 1, seconds(k + 1, context), 0.08, 0.03)
    assert costs.target(3) == pytest.approx(seconds(3, 900), rel=0.05)


def test_what_refspec_takes_itself_is_alike_for_both_kinds_of_steps_until_it_was_seen():
    costs = Costs({1: 1.0, 2: 1.4})
    costs.learn(1, 2, 1.4, 0.0, 0.1)
    assert costs.plain() == pytest.approx(1.1, rel=0.01) and costs.step(1) == pytest.approx(1.5, rel=0.01)
    costs.learn(0, 1, 1.0, None, 0.02)
    assert costs.plain() == pytest.approx(1.02, rel=0.01) and costs.step(1) == pytest.approx(1.5, rel=0.01)


def test_a_context_that_costs_nothing_is_not_believed_to():
    costs = Costs({r: LONG.rows[r] for r in range(1, MOST + 2)})
    dice = np.random.default_rng(1)
    for i in range(600):
        costs.context = 10 * i
        costs.learn(i % 3, i % 3 + 1, LONG.rows[i % 3 + 1] * np.exp(0.05 * dice.standard_normal()), 0.08, 0.03)
    assert costs.attention < 2e-5 and costs.cache < 2e-5 and costs.target(3) == pytest.approx(LONG.rows[3], rel=0.1)


def test_all_sizes_drift_together():
    costs = Costs({1: 1.0, 4: 1.5})
    for _ in range(100):
        costs.learn(3, 4, 3.0, 0.1, 0.0)  # the machine is half as fast
    assert costs.target(1) > 1.4


def test_a_record_of_tune_is_where_costs_begin():
    record = {"target": {"1": 1.0, "2": 1.2}, "switch": 0.3, "feed": 0.1, "draft": 0.05}
    measured, tuned = Costs.of(record), Costs.of(record | {"own": 0.04, "own_plain": 0.02})
    assert tuned.step(1) == pytest.approx(1.2 + 0.1 + 0.04) and tuned.plain() == pytest.approx(1.02)
    assert measured.step(1) == pytest.approx(1.2 + 0.1) and measured.plain() == 1.0, (
        "learned as it runs, where nothing was run before"
    )
    tuned.learn(1, 2, 1.2, 0.1, 0.08)
    assert 0.04 < tuned.other[True] < 0.08 and tuned.other[False] == 0.02
    assert Costs.of(None).rows == {}
    far = Costs.of(record | {"after": 900})
    far.attention = 1e-4
    assert far.target(2) == 1.2 and far.context == far.after == 900
    far.context = 1000
    assert far.target(2) == pytest.approx(1.22)


def test_costs_that_were_kept_are_guesses_until_a_size_is_seen():
    """They may be those of a time when another program was running."""
    costs = Costs.resumed(Costs({1: 1.0, 2: 3.0, 3: 4.0}, switch=0.2).state())
    assert [costs.target(r) for r in (1, 2, 3)] == [1.0, 3.0, 4.0] and not costs.seen[1]
    assert costs.comparable and not Costs().comparable, "drafting need not wait for plain steps"
    costs.learn(0, 1, 0.5, None, None)
    costs.learn(1, 1, 0.8, None, None)  # after a change of size
    assert [costs.target(r) for r in (1, 2, 3)] == pytest.approx([0.5, 0.6, 4.0])
