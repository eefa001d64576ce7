"""What C decides while it drafts is what the window would have decided, were it asked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec import native
from refspec.windows.costs import Costs
from refspec.windows.window import Window

pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


def experienced(seed: int, most: int) -> Window:
    """A window that knows something of costs and of how often which confidence is right."""
    rng = np.random.default_rng(seed)
    rows = 1 + np.concatenate([[0], np.cumsum(rng.exponential(rng.choice([0.05, 0.3]), most))])
    window = Window(most, Costs({r + 1: float(t) for r, t in enumerate(rows)}, switch=float(rng.exponential(0.2)), draft=float(rng.uniform(0, 0.2))))
    for _ in range(int(rng.integers(0, 300))):
        confidence = float(rng.choice([rng.random(), rng.beta(3, 1), math.nan], p=[0.4, 0.5, 0.1]))
        window.belief.see(confidence, int(rng.integers(0, most)), bool(rng.random() < rng.choice([0.2, 0.7, 0.95])))
    window._refresh()
    return window


@given(st.integers(0, 10**6), st.integers(1, 9), st.data())
def test_c_ends_cuts_and_learns_of_a_draft_as_the_window_does(seed, most, data):
    window, twin = experienced(seed, most), experienced(seed, most)._c
    for _ in range(data.draw(st.integers(1, 3))):
        before, room = data.draw(st.integers(0, most + 1)), data.draw(st.integers(1, most))
        one = st.floats(0, 1) | st.sampled_from([0.05, 0.5, 0.99, 1.0, math.nan])
        confidences = [float(np.float32(c)) for c in data.draw(st.lists(one, min_size=room, max_size=room))]
        window._before, window._room = before, room
        window._limits, window._gains = window._for(room, before)
        window._chances, window._confidences, window._refused, window._forced = [], [], None, False
        stops = []
        for i, confidence in enumerate(confidences[: window._hopeful(room)]):
            stops.append(window.stop(i, confidence))
            if stops[-1]:
                break
        kept = window.keep(len(stops) - sum(stops))
        assert twin.decide(before, room, confidences) == (stops, kept)
        n = len(window._chances)
        assert native.ffi.unpack(twin.c.chances, most)[:n] == window._chances, "bit for bit"
        accepted = data.draw(st.integers(0, kept))
        window.belief.learn(window._confidences, kept, accepted, window._refused)
        twin.learn(confidences[: len(stops)], any(stops), kept, accepted)
        for name, held in (("bins", window.belief.bins), ("cells", window.belief.cells), ("depths", window.belief.depths), ("surplus", window._surplus)):
            assert list(twin._arrays[name]) == held.tolist(), name


def test_counts_are_read_where_they_are_kept():
    window = experienced(3, 4)
    for _ in range(400):
        window.belief.see(0.9, 0, True)
    sure = window._c.decide(0, 4, [0.9] * 4)
    for _ in range(4000):
        window.belief.see(0.9, 0, False)
    assert window._c.decide(0, 4, [0.9] * 4) != sure == ([False] * 4, 4)
