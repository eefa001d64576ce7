"""What is expected of a text before it begins:

what texts like it gained, by length and by how sure the drafter is of its prompt.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_toys import Perfect, ToyTarget

from refspec.adaptive.budget import CAREFUL, RESERVE, STAKE, WATCH, Account
from refspec.adaptive.policy import Window
from refspec.adaptive.prompt_prior import ALL, FIRST, SURENESSES, TEXTS, USUAL, USUAL_STEPS, Alike
from refspec.adaptive.repeats import STRETCH, Repeats
from refspec.decoding.fallback import FallbackDrafter
from refspec.session import Session


def text(alike: Alike, held: int, sureness: float, gain: float, steps: int = FIRST) -> None:
    alike.begin(held, sureness)
    for _ in range(steps):
        alike.add(gain)


def test_before_any_text_a_first_guess_is_expected() -> None:
    assert Alike().usual == pytest.approx(USUAL)


def test_texts_of_another_kind_are_told_apart_by_sureness_and_by_length() -> None:
    alike = Alike()
    for _ in range(8):
        text(alike, 60, -1.0, 0.3)
        text(alike, 60, -2.0, -0.2)
        text(alike, 4000, -1.0, -0.1)
    found = {}
    for held, sureness in ((60, -1.0), (60, -2.0), (4000, -1.0), (60, math.nan)):
        alike.begin(held, sureness)
        found[held, sureness] = alike.usual
    assert found[60, -1.0] > 0.2 and found[60, -2.0] < -0.1 and found[4000, -1.0] < 0
    assert found[60, math.nan] == pytest.approx(0.05, abs=0.03), "of unknown sureness: like both"


def test_the_kernel_is_the_one_in_the_head_of_the_file() -> None:
    alike = Alike()
    text(alike, 31, -1.0, 0.5, steps=4)  # log2(32) = 5
    alike.begin(127, -1.0 - 2 * SURENESSES)  # 2 more is one scale of length
    weight = math.exp(-(1.0**2 + 2.0**2) / 2)
    mean = (USUAL_STEPS * USUAL + 4 * 0.5) / (USUAL_STEPS + 4)
    assert alike.usual == pytest.approx((ALL * mean + weight * 2.0) / (ALL + weight * 4))


def test_only_the_first_steps_of_a_text_count_and_old_texts_are_forgotten() -> None:
    alike = Alike()
    alike.begin(60, -1.0)
    for i in range(FIRST + 50):
        alike.add(1.0 if i < FIRST else -9.0)
    alike.begin(60, -1.0)
    assert alike.usual > 0.4
    for _ in range(TEXTS):
        text(alike, 60, -1.0, -0.2)
    alike.begin(60, -1.0)
    assert alike.usual < -0.15


@given(
    st.lists(
        st.tuples(st.integers(0, 9000), st.one_of(st.just(math.nan), st.floats(-9, 0)), st.floats(-2, 3)), max_size=30
    )
)
def test_what_is_expected_is_within_what_was_seen(texts: list[tuple[int, float, float]]) -> None:
    alike = Alike()
    for held, sureness, gain in texts:
        text(alike, held, sureness, gain, steps=3)
    alike.begin(100, -1.0)
    seen = [USUAL, *(gain for _, _, gain in texts)]
    assert min(seen) - 1e-9 <= alike.usual <= max(seen) + 1e-9


def losing(account: Account, sureness: float) -> None:
    account.new_text(60)
    account.expect(sureness)
    while not account.off:
        account.speculated(0.6, 1.0)


def test_a_text_like_those_that_lost_begins_off_and_others_do_not() -> None:
    account = Account()
    for _ in range(6):
        account.reserve = RESERVE
        losing(account, -2.0)
        account.new_text(60)
        account.expect(-0.5)
        account.off = False  # this one gets a chance, whatever came of the first
        for _ in range(FIRST):
            account.speculated(1.3, 1.0)
    account.new_text(60)
    account.expect(-2.0)
    assert account.off and not account.may_try()
    account.new_text(60)
    account.expect(-0.5)
    assert not account.off, "one that is like those that gained begins at once"


def test_texts_that_begin_off_are_tried_again_before_long() -> None:
    """A text of 60 tokens is too short to put aside what a try costs: what one puts aside is left to the next."""
    account, tries, tokens = Account(), 0, 0
    for i in range(40):
        account.new_text(60)
        account.expect(-2.0)
        for j in range(60):
            if account.off and account.may_try():
                tries += 1
                account.begin_try()
            if account.off:
                account.say([1000 * i + j])
                account.watched(1)
                tokens += 1
            else:
                account.speculated(0.6, 1.0)
    assert 2 <= tries <= tokens * WATCH / STAKE + 5


def test_a_draft_is_of_one_token_until_more_has_been_earned() -> None:
    account = Account()
    account.new_text(60)
    assert account.careful and account.allowance < CAREFUL
    while account.careful:
        account.speculated(2.0, 1.2)
    assert account.allowance >= CAREFUL


@given(st.lists(st.integers(0, 2**31 - 1), min_size=STRETCH, max_size=STRETCH), st.lists(st.integers(0, 9), max_size=5))
def test_a_text_that_says_a_stretch_again_is_told(stretch: list[int], between: list[int]) -> None:
    repeats = Repeats()
    repeats.add(stretch)
    repeats.add(between)
    repeats.add(stretch[:-1])
    told = [repeats.begun()] if len(set(stretch)) == STRETCH and not between else []
    assert not any(told)
    repeats.add(stretch[-1:])
    assert repeats.begun() and not repeats.begun(), "once, then a longer one is wanted"


def test_ids_beyond_unicode_and_overlapping_stretches_are_fine() -> None:
    repeats = Repeats()
    repeats.add([2**31 - 1] * STRETCH)
    assert not repeats.begun()
    repeats.add([2**31 - 1])
    assert repeats.begun(), "the same token again and again is a stretch too"


class Surveyed(Perfect):
    """A drafter that says how sure it is: of so many rows, as a number to be found again."""

    def survey(self, tokens, features):
        self.extend(tokens, features)
        return -float(len(tokens))


@pytest.mark.parametrize("wrap", [lambda d: d, FallbackDrafter], ids=["bare", "lookup"])
@pytest.mark.parametrize(
    ("rows", "told"), [(2, None), (7, None), (8, -8.0), (15, -15.0), (30, -16.0), (600, -16.0), (512 + 5, None)]
)
def test_a_window_is_told_how_sure_the_drafter_is_of_the_end_of_a_prompt(rows, told, wrap):
    target = ToyTarget(n_ctx=700, end=())
    window, heard = Window(4), []
    expect = window.expect
    window.expect = lambda sureness: (heard.append(sureness), expect(sureness))
    session = Session(target, wrap(Surveyed(target)), draft_max=4)
    generation = session.generate(tokens=[i % 7 for i in range(rows + 1)], max_tokens=5, policy=window)
    heard.clear()
    list(generation)  # the toys check that each row comes once
    assert [s for s in heard if not math.isnan(s)] == ([] if told is None else [told])


def test_a_drafter_that_cannot_tell_is_asked_for_nothing():
    target = ToyTarget(n_ctx=60, end=())
    texts = []
    for drafter in (Perfect(target), Surveyed(target)):
        window = Window(4)
        run = Session(target, drafter, draft_max=4).generate(tokens=[1] * 30, max_tokens=12, policy=window)
        list(run)
        texts.append(run.tokens)
        assert math.isnan(window._alike._text.sureness) == (type(drafter) is Perfect)
    assert texts[0] == texts[1]
