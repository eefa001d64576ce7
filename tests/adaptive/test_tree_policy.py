"""Adaptive trees pay. Times are simulated; nothing here measures."""

import numpy as np
import pytest
from tree_simulation import GOOD, MOST, bush, known, simulate

from refspec.adaptive.base import TRIAL
from refspec.adaptive.budget import RESERVE, WATCH
from refspec.adaptive.costs import Costs
from refspec.adaptive.tree_policy import TreePolicy
from refspec.reference.tree import Tree

DEARER = 9  # plain tokens that one step may overdraw the budget


def test_cheap_rows_are_filled_and_dear_ones_are_not() -> None:
    cheap, dear = (lambda r: 1 + 0.02 * (r - 1)), (lambda r: 1 + 0.45 * (r - 1))
    spent, sizes = simulate(known(cheap, draft=0.05, feed=0.05), cheap, GOOD, 4000, level=0.05)
    assert spent < 4000 / 2 and np.mean(sizes) > 6
    spent, sizes = simulate(known(dear, draft=0.05, feed=0.05), dear, GOOD, 4000, level=0.05)
    assert spent < 4000 * 1.02 and np.mean(sizes) < 3


@pytest.mark.parametrize("claims", [[0.9, 0.05], [0.5, 0.3], [0.1, 0.1]])
def test_a_drafter_that_is_always_wrong_costs_the_reserve_once_and_the_watch_of_the_rest(claims: list[float]) -> None:
    rows = lambda r: 1 + 0.3 * (r - 1)  # noqa: E731
    policy = known(rows, draft=0.1, feed=0.05)
    spent, sizes = simulate(policy, rows, bush(claims, [0.0, 0.0], 4), 5000, level=0.1)
    assert spent - 5000 <= RESERVE + 2 * WATCH * 5000 + DEARER
    assert np.mean(np.array(sizes) > 0) < 0.1


def test_a_boastful_drafter_is_believed_as_far_as_it_was_right() -> None:
    rows = lambda r: 1 + 0.25 * (r - 1)  # noqa: E731
    policy = known(rows, draft=0.05, feed=0.05)
    spent, _ = simulate(policy, rows, bush([0.89, 0.08], [0.45, 0.04], 4), 4000, level=0.05)
    assert policy.acceptance.chance(0.89, 0) == pytest.approx(0.45, abs=0.08)
    assert spent < 4000 * 1.03


@pytest.mark.parametrize("seed", range(4))
def test_it_turns_itself_on_again_where_the_output_becomes_easy(seed: int) -> None:
    rows = lambda r: 1 + 0.1 * (r - 1)  # noqa: E731
    policy = known(rows, draft=0.05, feed=0.05)
    simulate(policy, rows, bush([0.65, 0.2], [0.0, 0.0], 4), 2000, level=0.05, seed=seed)
    assert policy.off
    spent, sizes = simulate(policy, rows, bush([0.65, 0.2], [0.7, 0.15], 4), 4000, level=0.05, seed=9 + seed)
    assert spent < 4000 / 1.4 and np.mean(sizes[-200:]) > 2


def test_where_a_change_of_size_is_dear_sizes_stay() -> None:
    rows = lambda r: 1 + 0.15 * (r - 1)  # noqa: E731
    wide = bush([0.7, 0.15, 0.05], [0.7, 0.15, 0.05], 4)
    changes = []
    for switch in (0.0, 1.0):
        _, sizes = simulate(
            known(rows, draft=0.05, feed=0.05, switch=switch), rows, wide, 4000, level=0.05, switch=switch
        )
        changes.append(np.mean(np.diff(sizes) != 0))
    assert changes[1] <= changes[0] + 0.01 and changes[1] < 0.1


def test_no_level_is_grown_after_one_of_which_nothing_would_be_verified() -> None:
    policy = known(lambda r: 1 + 0.4 * (r - 1), draft=0.05, feed=0.05)
    policy.begin()

    def chain_of(*confidence: float) -> Tree:
        n = len(confidence)
        return Tree(np.zeros(n, np.int32), np.arange(-1, n - 1, dtype=np.int32), np.array(confidence, np.float32))

    for _ in range(TRIAL):
        plan = policy.plan(MOST)
        assert plan.trial and plan.floor == 0 and plan.more(chain_of(0.01)), "a trial is for evidence"
    plan = policy.plan(MOST)
    assert not plan.trial and plan.floor > 0
    assert plan.more(chain_of(0.95)) and not plan.more(chain_of(0.1))
    assert plan.more(chain_of(0.95, 0.95)) and not plan.more(chain_of(0.95, 0.1))


@pytest.mark.parametrize("level", [0.02, 0.1])
def test_levels_are_grown_for_what_is_verified(level: float) -> None:
    """Where several tokens are dear and the drafter is sure, trees stay low, though its claims pay for deep ones."""
    rows = lambda r: 1 + 0.4 * (r - 1)  # noqa: E731
    spent = {}
    for asked in (True, False):
        policy = known(rows, draft=level, feed=0.05)
        spent[asked], _ = simulate(policy, rows, bush([0.9, 0.05], [0.6, 0.05], 8), 4000, level=level, ask=asked)
    assert spent[True] < 0.98 * spent[False]


def test_a_size_that_was_disturbed_once_is_looked_at_again() -> None:
    costs = Costs({1: 1.0, 2: 1.1, 4: 1.2})
    costs.learn(7, 8, 9.0, None, None)  # a batch of 8, which takes 1.3
    assert costs.target(8) == pytest.approx(9.0) and costs.hoped(8) < 1.6
    assert costs.rows[8] == pytest.approx(9.0), "what is known is not changed by asking"
    policy = TreePolicy(7, costs)
    policy.budget.speculated(30.0, 0.0)  # it need not be careful
    for _ in range(TRIAL):
        policy.plan(7)
    sure = Tree(np.arange(7, dtype=np.int32), np.arange(-1, 6, dtype=np.int32), np.full(7, 0.99, np.float32))
    assert len(policy.plan(7).keep(sure).tokens) == 7
    for _ in range(2):
        costs.learn(7, 8, 9.0, None, None)  # it does take so long
    assert costs.hoped(8) == costs.target(8) and costs.hoped(3) == costs.target(3) and costs.hoped(1) == costs.target(1)
    assert len(policy.plan(7).keep(sure).tokens) < 7
