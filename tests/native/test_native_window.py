"""What C decides while it drafts is what the window would have decided, were it asked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec import native
from refspec.adaptive.budget import CAREFUL, Account
from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import Window
from refspec.adaptive.probe import KEEP

pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


def experienced(seed: int, most: int) -> Window:
    """A window that knows something of costs and of how often which confidence is right."""
    rng = np.random.default_rng(seed)
    rows = 1 + np.concatenate([[0], np.cumsum(rng.exponential(rng.choice([0.05, 0.3]), most))])
    window = Window(
        most,
        Costs(
            {r + 1: float(t) for r, t in enumerate(rows)},
            switch=float(rng.exponential(0.2)),
            draft=float(rng.uniform(0, 0.2)),
        ),
    )
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
        for name, held in (
            ("bins", window.belief.bins),
            ("cells", window.belief.cells),
            ("depths", window.belief.depths),
            ("surplus", window._surplus),
        ):
            assert list(twin._arrays[name]) == held.tolist(), name


def test_counts_are_read_where_they_are_kept():
    window = experienced(3, 4)
    for _ in range(400):
        window.belief.see(0.9, 0, True)
    sure = window._c.decide(0, 4, [0.9] * 4)
    for _ in range(4000):
        window.belief.see(0.9, 0, False)
    assert window._c.decide(0, 4, [0.9] * 4) != sure == ([False] * 4, 4)


@given(st.integers(0, 10**6), st.integers(1, 9), st.lists(st.booleans(), min_size=1, max_size=40), st.floats(1e-6, 3.0))
def test_c_reads_stakes_as_the_account_does(seed, most, stood, plain):
    window, account = experienced(seed, most), Account()
    c = native.ffi.new("rs_account *", {"plain": plain})
    for one in stood:
        shown = account.stake(one, window._cost, plain, window._depth)
        assert native.lib.rs_account_stake(c, window._c.c, one) == shown, "bit for bit"
        assert (c.staked, c.stood, c.shown) == account.stakes
        c.careful, c.reserve, c.allowance = 1.0, 2.0, 0.5
        assert native.lib.rs_account_length(c, window._c.c) == account.stakes.length(window._cost, plain, window._depth)
        c.allowance = 1.5
        assert native.lib.rs_account_length(c, window._c.c) == most


@pytest.mark.parametrize(("before", "drafted", "accepted"), [(0, 0, 0), (1, 1, 0), (2, 1, 1), (2, 3, 2), (4, 0, 0)])
@pytest.mark.parametrize("allowance", [0.1, 9.0])
def test_c_counts_a_step_as_the_window_does(before, drafted, accepted, allowance):
    window = experienced(5, 3)
    window._gain, window.reserve, window._room = allowance - window.allowed + window._gain, 20.0, 3
    c = native.ffi.new(
        "rs_account *", {"plain": window._plain, "reserve": 20.0, "allowance": window.allowed, "careful": CAREFUL}
    )
    assert native.lib.rs_account_careful(c) == window.careful == (allowance < CAREFUL)
    window._gain /= KEEP  # C lets nothing decay
    window._count(drafted, before, accepted + 1, window._takes(before, drafted), cold=False, forced=False)
    going = native.lib.rs_account_count(c, window._c.c, before, drafted, accepted + 1)
    assert c.reserve == pytest.approx(window.reserve, abs=1e-12) and c.allowance == pytest.approx(
        window.allowed, abs=1e-12
    )
    assert going != window.off
