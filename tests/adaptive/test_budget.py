"""What speculation may lose, when it is turned off and when it is tried again."""

import pytest

from refspec.adaptive.budget import CAREFUL, RESERVE, RESERVE_MOST, TRY, WATCH, Budget
from refspec.adaptive.prompt_prior import FIRST


def test_an_output_that_loses_is_left_after_a_few_steps_and_tried_again_when_enough_has_been_saved():
    budget, steps, waits = Budget(), 0, []
    while not budget.off:
        budget.speculated(0.8, 1.0)
        steps += 1
    assert steps <= 20
    budget.reserve = RESERVE_MOST
    for _ in range(4):
        waited = 0
        while not budget.may_try():
            budget.watched(1)
            waited += 1
        waits.append(waited)
        budget.begin_try()
        while not budget.off:
            budget.speculated(0.8, 1.0)
    assert waits == [pytest.approx(TRY / WATCH, abs=1)] * 4


def losing(budget: Budget, logp: float) -> None:
    budget.begin(60)
    budget.expect(logp)
    while not budget.off:
        budget.speculated(0.6, 1.0)


def test_an_output_like_those_that_lost_begins_off_and_others_do_not() -> None:
    budget = Budget()
    for _ in range(6):
        budget.reserve = RESERVE
        losing(budget, -2.0)
        budget.begin(60)
        budget.expect(-0.5)
        budget.off = False  # this one gets a chance, whatever came of the first
        for _ in range(FIRST):
            budget.speculated(1.3, 1.0)
    budget.begin(60)
    budget.expect(-2.0)
    assert budget.off and not budget.may_try()
    budget.begin(60)
    budget.expect(-0.5)
    assert not budget.off, "one that is like those that gained begins at once"


def test_outputs_that_begin_off_are_tried_again_before_long() -> None:
    """An output of 60 tokens is too short to save what a try costs: what one saves is left to the next."""
    budget, tries, tokens = Budget(), 0, 0
    for i in range(40):
        budget.begin(60)
        budget.expect(-2.0)
        for j in range(60):
            if budget.off and budget.may_try():
                tries += 1
                budget.begin_try()
            if budget.off:
                budget.say([1000 * i + j])
                budget.watched(1)
                tokens += 1
            else:
                budget.speculated(0.6, 1.0)
    assert 2 <= tries <= tokens * WATCH / TRY + 5


def test_a_draft_is_of_one_token_until_more_has_been_earned() -> None:
    budget = Budget()
    budget.begin(60)
    assert budget.careful and budget.allowance < CAREFUL
    while budget.careful:
        budget.speculated(2.0, 1.2)
    assert budget.allowance >= CAREFUL
