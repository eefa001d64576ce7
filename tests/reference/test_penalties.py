"""The penalties by their definitions: counted and searched here in the plainest way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec.errors import UsageError
from refspec.reference.penalties import LARGEST, Penalties, common_beginnings, continuations, penalize

histories = st.lists(st.integers(0, 3), max_size=40)


@given(histories)
def test_common_beginnings_are_what_they_say(x):
    def slow(j):
        return next((n for n in range(len(x) - j) if x[n] != x[j + n]), len(x) - j)

    assert common_beginnings(x) == [slow(j) for j in range(len(x))]


def repetitions(history, allowed, breaks):
    """Every repetition that the next token would prolong, by comparing all of them."""
    found, n = {}, len(history)
    for end in range(1, n):  # history[end] followed a repetition that ended at end
        length = 0
        while length < end and history[end - 1 - length] == history[n - 1 - length] and not breaks[n - 1 - length]:
            length += 1
        if length >= allowed and not breaks[end]:
            found[history[end]] = max(found.get(history[end], 0), length)
    return found


@given(histories, st.integers(1, 5), st.integers(-1, 12), st.sets(st.integers(0, 3), max_size=1))
def test_what_would_go_on_is_found_back_to_the_newest_breaker(history, allowed, last, breakers):
    penalties = Penalties(dry_multiplier=1, dry_allowed_length=allowed, dry_last_n=last)
    breaks = [t in breakers for t in history]
    near = 0 if last < 0 else max(len(history) - last, 0)
    assert continuations(np.array(history, np.int64), penalties, breaks) == repetitions(
        history[near:], allowed, breaks[near:]
    )


@given(histories, st.integers(-1, 12))
def test_counts_are_of_the_newest_tokens(history, last):
    penalties = Penalties(repeat=1.5, presence=0.25, frequency=0.5, repeat_last_n=last)
    logits = np.array([2.0, -1.0, 0.0, 0.5])
    expected = logits.copy()
    near = history if last < 0 else history[len(history) - min(last, len(history)) :]
    for token in set(near):
        x = logits[token]
        expected[token] = (x * 1.5 if x <= 0 else x / 1.5) - 0.25 - 0.5 * near.count(token)
    np.testing.assert_allclose(penalize(logits, history, penalties), expected, rtol=1e-15)


def test_dry_grows_with_the_repetition_and_leaves_the_input_alone():
    logits, history = np.zeros(5, np.float32), [0, 1, 2, 3, 0, 1, 2]
    penalties = Penalties(dry_multiplier=0.5, dry_base=2.0, dry_allowed_length=1)
    assert penalize(logits, history, penalties).tolist() == [0, 0, 0, -0.5 * 2.0**2, 0]
    assert penalize(logits, history, penalties, [False] * 5 + [True, False]).tolist() == [0, 0, 0, -0.5, 0]
    assert not logits.any() and penalize(logits, history, penalties).dtype == np.float32
    endless = penalize(logits, [4] * 500, penalties)[4]
    assert -2 * LARGEST < endless < -LARGEST / 4, "an endless repetition costs a finite amount"


def test_a_forbidden_token_stays_forbidden():
    out = penalize(
        np.array([-np.inf, 1.0], np.float32),
        [0, 0, 0, 0],
        Penalties(repeat=1.3, presence=1, dry_multiplier=1, dry_allowed_length=1),
    )
    assert out[0] == -np.inf and out[1] == 1


def test_off_is_off():
    assert (
        not Penalties().on
        and not Penalties(repeat=1.2, repeat_last_n=0).on
        and not Penalties(dry_multiplier=1, dry_last_n=0).on
    )
    logits = np.array([1.0, -2.0], np.float32)
    assert penalize(logits, [0, 1, 0, 1, 0], Penalties()).tolist() == logits.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeat": 0}, {"repeat": math.nan}, {"presence": math.inf}, {"frequency": "1"}, {"dry_multiplier": -1},
        {"dry_base": 0.9}, {"repeat_last_n": -2},
        {"dry_allowed_length": 0}, {"dry_last_n": 1.5}, {"dry_breakers": "\n"}, {"dry_breakers": [""]},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Penalties(**wrong)


def test_a_share_of_the_penalties_takes_that_share_from_a_logit():
    whole = Penalties(
        repeat=1.44, presence=0.6, frequency=0.2, dry_multiplier=0.8, dry_allowed_length=1, dry_breakers=()
    )
    half = whole.times(0.5)
    assert (half.repeat, half.presence, half.frequency, half.dry_multiplier) == (pytest.approx(1.2), 0.3, 0.1, 0.4)
    assert half.dry_base == whole.dry_base and whole.times(1.0) == whole and not whole.times(0.0).on
