"""An output that begins to repeat itself is told, once for each stretch."""

from hypothesis import given
from hypothesis import strategies as st

from refspec.adaptive.repeats import STRETCH, Repeats


@given(st.lists(st.integers(0, 2**31 - 1), min_size=STRETCH, max_size=STRETCH), st.lists(st.integers(0, 9), max_size=5))
def test_an_output_that_repeats_a_stretch_is_told(stretch: list[int], between: list[int]) -> None:
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
