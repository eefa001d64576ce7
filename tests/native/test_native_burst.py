"""Several steps of the decode cycle in one call of C are the single calls, one after the other; llama.cpp is made up."""

from typing import Any

import numpy as np
import pytest
from small_drafters import small_config, small_weights
from test_native_cycle import HT, ROOM, FakeLlama, N, V, judge_on, judged
from test_native_window import experienced

from refspec import native

pytestmark = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")

CONFIG = small_config(target_hidden_size=HT, capture_layers=tuple(range(1, N + 1)), vocab_size=V, draft_vocab_size=7)
CAPACITY, STEPS, FIRST = 30, 4, 3


class Pair:
    """A judge on a fake, and a drafter in C that holds FIRST rows."""

    def __init__(self, seed: int, ends: tuple[int, ...] = (), **fake: Any) -> None:
        self.fake = FakeLlama(**fake)
        self.judge, self.removed, self.kept = judge_on(self.fake)
        self.ends = native.ffi.new("int8_t[]", [int(token in ends) for token in range(V)])
        self.judge.ends = self.ends
        self.chain = native.Eagle3Chain(CONFIG, small_weights(CONFIG, seed), CAPACITY)
        features = np.random.default_rng(seed).normal(size=(FIRST, N * HT)).astype(np.float32)
        assert self.chain.extend(np.arange(1, FIRST + 1, dtype=np.int32), features, 0) == native.lib.RS_OK

    def features(self, rows: int) -> np.ndarray:
        return np.array(native.ffi.unpack(self.judge.target.features, rows * N * HT), np.float32).reshape(rows, N * HT)


def burst(
    pair: Pair, steps: int, draft: int, room: int, n_ctx: int, window: Any = None, lend: bool = True, **limits: float
) -> list[Any]:
    """[(drafted, accepted, tokens)] of the steps that C ran."""
    ffi, b = native.ffi, native.ffi.new("rs_burst *")
    arrays = [
        ffi.new(f"{kind}[]", size)
        for kind, size in (("rs_step", steps), ("int32_t", steps * draft + 1), ("int32_t", steps * (draft + 1)))
    ]
    arrays.append(ffi.new("float[]", draft + 1))
    b.judge, b.chain, b.window = pair.judge, pair.chain.c if lend else ffi.NULL, window or ffi.NULL
    b.steps, b.draft, b.n_ctx, b.seconds = steps, draft, n_ctx, 60.0
    account = {"plain": 1.0, "reserve": 1e9, "allowance": 1e9, "careful": -1e9} | {
        name: limits.pop(name) for name in ("plain", "reserve", "allowance", "careful") if name in limits
    }
    for name, value in account.items():
        setattr(b.account, name, value)
    b.ran, b.drafted, b.tokens, b.confidence = arrays
    for name, value in limits.items():
        setattr(b, name, value)
    done = native.lib.rs_burst_run(b, 5, 0, FIRST, FIRST, 0, room)
    out = []
    for i in range(done):
        s = b.ran[i]
        assert 0 <= s.target <= s.total and 0 <= s.drafter <= s.total
        drafted, tokens = (
            list(arrays[1])[i * draft :][: s.drafted],
            list(arrays[2])[i * (draft + 1) :][: s.accepted + 1],
        )
        out.append((drafted, s.accepted, tokens))
    return out


def one_by_one(pair: Pair, steps: int, draft: int, room: int, n_ctx: int, window: Any = None) -> list[Any]:
    """The same by the calls it is made of."""
    out, pending, first, before = [], 5, FIRST, 0
    while len(out) < steps and room > 0 and first < n_ctx:
        k = min(draft, room - 1, n_ctx - first - 1)
        tokens, confidence = np.zeros(k, np.int32), np.zeros(k, np.float32)
        pair.chain.restart()
        assert pair.chain.draft(tokens, confidence, first) == native.lib.RS_OK
        drafted = tokens.tolist()
        # nothing is drafted behind the end of a text
        asked = next((i + 1 for i, token in enumerate(drafted) if pair.ends[token]), k)
        stops: list[bool] = []
        drafted = drafted[:asked]
        if window is not None and k:
            stops, kept = window.decide(before, k, confidence.tolist()[:asked])
            drafted = drafted[:kept]
        accepted, decided = judged(pair.judge, pending, drafted, first)
        if stops:
            window.learn(confidence.tolist()[: len(stops)], any(stops), len(drafted), accepted)
        out.append((drafted, accepted, decided))
        assert pair.chain.extend(np.array(decided, np.int32), pair.features(accepted + 1), first) == native.lib.RS_OK
        pending, first, room, before = decided[-1], first + len(decided), room - len(decided), len(drafted) + 1
        if any(pair.ends[token] for token in decided):
            break
    return out


@pytest.mark.parametrize("ends", [(), (2,), (0, 7)])
@pytest.mark.parametrize(("room", "n_ctx"), [(50, 20), (5, 20), (50, 6), (1, 20)])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("draft", [1, 3])
def test_a_burst_is_its_steps(draft: int, windowed: bool, room: int, n_ctx: int, ends: tuple[int, ...]) -> None:
    accepted = 0
    for seed in range(12):
        window, twin = (experienced(seed, draft)._c if windowed else None for _ in range(2))
        at_once, parts = Pair(seed, ends), Pair(seed, ends)
        ran = burst(at_once, STEPS, draft, room, n_ctx, window.c if window else None)
        assert ran == one_by_one(parts, STEPS, draft, room, n_ctx, twin) and ran
        if window is not None and twin is not None:
            assert list(window._arrays["cells"]) == list(twin._arrays["cells"])
        assert at_once.fake.sent == parts.fake.sent and at_once.removed == parts.removed
        assert at_once.judge.stage == native.lib.RS_RESTED
        rows = FIRST + sum(len(tokens) for _, _, tokens in ran)
        np.testing.assert_array_equal(at_once.chain.keys[:rows], parts.chain.keys[:rows])
        for pair in (at_once, parts):
            pair.chain.restart()
        np.testing.assert_array_equal(at_once.chain.logits(), parts.chain.logits())
        accepted += sum(a for _, a, _ in ran)
    assert accepted or room == 1 or windowed


def test_steps_without_a_drafter_leave_all_their_states() -> None:
    pair = Pair(0)
    ran = burst(pair, STEPS, 0, 50, 20, lend=False)
    assert [tokens for _, _, tokens in ran] == [[t] for t in decided_from(5, STEPS)]
    np.testing.assert_array_equal(pair.features(STEPS)[:, :HT], np.repeat(pair.fake.inputs[1, :1], STEPS, 0))


def decided_from(pending: int, steps: int) -> list[int]:
    """What the fake decides after FIRST rows."""
    out: list[int] = []
    for i in range(steps):
        out.append(((out[-1] if out else pending) + FIRST + i) % V)
    return out


@pytest.mark.parametrize("lend", [False, True])
def test_a_step_that_fails_is_left_to_the_caller(lend: bool) -> None:
    pair = Pair(1, fail_at=2)
    ran = burst(pair, STEPS, 1 if lend else 0, 50, 20, lend=lend)
    assert len(ran) == 2 and pair.judge.stage == native.lib.RS_RUNNING
    assert native.ffi.cast("uintptr_t", pair.judge.target.features) != 0


def test_a_drafter_that_is_damaged_ends_a_burst_before_its_step() -> None:
    pair = Pair(1)
    pair.chain._outputs["true_logits"][:] = np.nan
    assert burst(pair, STEPS, 2, 50, 20) == [] and not pair.fake.sent and pair.judge.stage == native.lib.RS_RESTED


def test_states_that_are_not_finite_take_the_step_back() -> None:
    pair = Pair(1)
    pair.fake.inputs[:] = np.nan
    assert (
        burst(pair, STEPS, 2, 50, 20) == [] and len(pair.fake.sent) == 1 and pair.judge.stage == native.lib.RS_KEEPING
    )


def test_no_step_is_begun_when_the_time_or_the_allowance_is_used_up() -> None:
    window = experienced(0, 2)._c
    assert len(burst(Pair(2), STEPS, 2, 50, 20, seconds=1e-9)) <= 1
    assert len(burst(Pair(2), STEPS, 2, 50, 20, window.c, allowance=-1e9)) == 1
    # steps that cost all there is
    assert len(burst(Pair(2), STEPS, 2, 50, 20, window.c, reserve=0.0, plain=1e-12)) == 1
    assert len(burst(Pair(2), STEPS, 2, 50, 20, window.c)) == STEPS <= ROOM


def test_a_step_drafts_one_token_while_little_may_be_lost() -> None:
    window = experienced(0, 2)._c
    free = burst(Pair(2), STEPS, 2, 50, 20, window.c, careful=-1e9)
    held = burst(Pair(2), STEPS, 2, 50, 20, window.c, allowance=1e9, careful=2e9)
    assert max(len(drafted) for drafted, *_ in free) == 2 and max(len(drafted) for drafted, *_ in held) == 1
    (poor,) = burst(Pair(2), 1, 2, 50, 20, window.c, reserve=0.0, careful=0.5)
    assert len(poor[0]) <= 1
    # steps that cost nothing
    earned = burst(Pair(2), STEPS, 2, 50, 20, window.c, allowance=0.0, careful=0.5, plain=1e9)
    assert len(earned[0][0]) <= 1 and max(len(drafted) for drafted, *_ in earned[1:]) == 2
