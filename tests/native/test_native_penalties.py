"""native/penalties.c against refspec/reference/penalties.py, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec import native
from refspec.native.penalties import Penalizer
from refspec.reference.penalties import Penalties, penalize

pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
V = 6

some = st.floats(-2, 2, width=32)
penalties = st.builds(
    Penalties, repeat=st.floats(0.5, 2), presence=some, frequency=some, repeat_last_n=st.integers(-1, 9),
    dry_multiplier=st.floats(0, 3), dry_base=st.floats(1, 3), dry_allowed_length=st.integers(1, 4),
    dry_last_n=st.integers(-1, 30),
)  # fmt: skip
histories = st.lists(st.integers(0, V - 1), max_size=60) | st.lists(st.integers(0, 1), max_size=60)


@given(
    penalties,
    st.lists(histories, min_size=1, max_size=4),
    st.lists(some | st.just(-np.inf), min_size=V, max_size=V),
    st.none() | st.sets(st.integers(0, V - 1)),
)
def test_c_gives_the_same_bits_call_after_call(p, texts, logits, breakers):
    row = np.array(logits, np.float32)
    breaks = None if breakers is None else np.array([1 if t in breakers else -1 for t in range(V)], np.int8)
    penalizer = Penalizer(p, V, 60, breaks)
    for text in texts:  # scratch must be left as it was found
        got = penalizer(row, np.array(text, np.int32))
        marks = () if breakers is None else [t in breakers for t in text]
        assert got.tobytes() == penalize(row, text, p, marks).tobytes()
    assert row.tobytes() == np.array(logits, np.float32).tobytes()


def test_rows_that_are_not_float32_go_to_the_reference():
    p = Penalties(presence=1.0)
    out = Penalizer(p, V, 9)(np.zeros(V), np.array([2], np.int32))
    assert out.dtype == np.float64 and out.tolist() == [0, 0, -1, 0, 0, 0]
