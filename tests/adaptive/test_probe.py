"""What drafts of one token show of an output, and that an output is found which gains by long drafts only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import MOST, Fixed, Machine, flat, tokens_per_second

from refspec.adaptive.budget import Budget
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.probe import GUESSED, KEEP, Probe

COSTS = st.lists(st.floats(0.1, 9.0), min_size=2, max_size=9)


@given(COSTS, st.floats(0.1, 5.0), st.lists(st.booleans(), min_size=1, max_size=30), st.data())
def test_what_probes_show_is_the_best_of_the_lengths(
    cost: list[float], plain: float, accepted: list[bool], data: st.DataObject
) -> None:
    depth = data.draw(st.lists(st.floats(0, 1), min_size=len(cost) - 1, max_size=len(cost) - 1))
    probe, shown = Probe(), 0.0
    for one in accepted:
        shown = shown * KEEP + probe.add(one, cost, plain, depth)
    weights = [KEEP**age for age in range(len(accepted))][::-1]
    n, a = sum(weights), sum(w for w, one in zip(weights, accepted, strict=True) if one)
    by_length = []
    for k in range(1, len(cost)):
        tokens = 1.0  # a probe that was accepted is worth its token, and what is expected behind it
        for d in depth[1:k][::-1]:
            tokens = 1 + d * tokens
        by_length.append(a * tokens + n * (1 - cost[k] / plain))
    assert probe.shown == pytest.approx(max(by_length), abs=1e-9) == shown
    assert (probe.probes, probe.accepted) == (pytest.approx(n), pytest.approx(a))


@given(st.lists(st.booleans(), max_size=30), st.floats(0.5, 3.0))
def test_where_no_more_may_be_drafted_a_probe_shows_what_it_gains(accepted: list[bool], cost: float) -> None:
    shown, gained = Budget(), Budget()
    for one in accepted:
        shown.speculated(1 + one, cost, shown=shown.probe.add(one, [1.0, cost], 1.0, [0.9]))
        gained.speculated(1 + one, cost)
    assert shown.allowed == pytest.approx(gained.allowed, abs=1e-9) and shown.reserve == gained.reserve


@given(COSTS, st.floats(0.1, 5.0), st.integers(0, 9), st.integers(0, 9), st.data())
def test_a_probe_has_more_than_one_token_only_where_one_loses_and_more_gain(
    cost: list[float], plain: float, n: int, a: int, data: st.DataObject
) -> None:
    depth = data.draw(st.lists(st.floats(0, 1), min_size=len(cost) - 1, max_size=len(cost) - 1))
    a, gains = min(a, n), []
    p = (a + GUESSED * depth[0]) / (n + GUESSED)
    for k in range(1, len(cost)):
        tokens = 1.0
        for d in depth[1:k][::-1]:
            tokens = 1 + d * tokens
        gains.append(1 + p * tokens - cost[k] / plain)
    length = Probe(n, a).length(cost, plain, depth)
    if length == 1:
        assert gains[0] > -1e-9 or max(gains) < 1e-9
    else:
        assert (
            gains[0] < 1e-9 and gains[length - 1] > -1e-9 and gains[length - 1] == pytest.approx(max(gains), abs=1e-9)
        )


def test_a_try_begins_without_probes() -> None:
    budget = Budget()
    budget.probe.add(True, [1.0, 1.1], 1.0, [0.9])
    assert budget.probe.probes == 1
    budget.begin_try()
    assert budget.probe == Probe()


def test_an_output_is_found_which_gains_by_long_drafts_only() -> None:
    """A second token of a batch is dear and the next ones are cheap: drafts of one gain nothing, of three a half."""
    rows = [0, 1, 1.85, 2.0, 2.1, 2.6, 3.1, 3.6, 4.1, 4.6]
    machine, drafter = Machine(rows, draft=0.02), flat(0.85)
    adaptive = ChainPolicy(MOST, Costs(dict(enumerate(rows[1:], 1)), draft=0.02, feed=0.05))
    found, one, three = (
        sum(tokens_per_second(policy, machine, drafter, 96, seed) for seed in range(6)) / 6
        for policy in (adaptive, Fixed(1), Fixed(3))
    )
    plain = sum(tokens_per_second(Fixed(0), machine, drafter, 96, seed) for seed in range(6)) / 6
    assert 0.93 < one / plain < 1.03 and three / plain > 1.35
    assert found > 0.95 * three
