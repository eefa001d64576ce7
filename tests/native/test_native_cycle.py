"""The calls of a decode cycle in C, run on a made-up llama.cpp: its functions are Python ones that keep what they were
sent.
"""

import ctypes
from typing import Any

import numpy as np
import pytest

from refspec import native
from refspec.reference import ops
from refspec.reference.sampling import Sampler

needs_c = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")
pytestmark = needs_c

V, H, HT, N, ROOM = 11, 4, 3, 2, 6
P, I32 = ctypes.c_void_p, ctypes.c_int32


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", I32), *((name, P) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits"))]


def numbers(address: int, kind: Any, count: int) -> list[Any]:
    return list((kind * count).from_address(address))


class FakeLlama:
    """Logits of a row: one peak at (token + position) mod V; state of a row: its token everywhere, plus its input."""

    def __init__(self, fail_at: int = -1, poison: float | None = None) -> None:
        self.sent: list[tuple[str, list[int], list[int]]] = []
        self.fail_at, self.poison = fail_at, poison
        self.logits = np.zeros((ROOM, V), np.float32)
        self.states = {name: np.zeros((ROOM, H), np.float32) for name in ("encoder", "decoder")}
        self.inputs = np.arange(2 * ROOM * HT, dtype=np.float32).reshape(2, ROOM, HT)
        self.rows = 0
        self.kept = [
            ctypes.CFUNCTYPE(I32, P, Batch)(self._encode),
            ctypes.CFUNCTYPE(I32, P, Batch)(self._decode),
            ctypes.CFUNCTYPE(P, P, I32)(self._logits_ith),
            ctypes.CFUNCTYPE(P, P)(lambda context: self.states["encoder" if context == 1 else "decoder"].ctypes.data),
            ctypes.CFUNCTYPE(P, P, ctypes.c_uint32)(lambda context, layer: self.inputs[layer].ctypes.data),
        ]

    def addresses(self) -> list[int]:
        return [ctypes.cast(function, P).value or 0 for function in self.kept]

    def _encode(self, context: int, batch: Batch) -> int:
        n = batch.n_tokens
        self.sent.append(("encode", numbers(batch.pos, I32, n), []))
        embd = np.array(numbers(batch.embd, ctypes.c_float, n * N * HT), np.float32).reshape(n, N * HT)
        self.states["encoder"][:n] = embd[:, :H]
        return 7 if len(self.sent) - 1 == self.fail_at else 0

    def _decode(self, context: int, batch: Batch) -> int:
        n = self.rows = batch.n_tokens
        tokens, positions = numbers(batch.token, I32, n), numbers(batch.pos, I32, n)
        self.sent.append(("decode", positions, tokens))
        self.logits[:] = 0
        for i in range(n):
            self.logits[i, (tokens[i] + positions[i]) % V] = 3.0
            if batch.embd:
                self.states["decoder"][i] = tokens[i] + np.array(numbers(batch.embd + 4 * H * i, ctypes.c_float, H))
        if self.poison is not None:
            self.logits[n - 1] = self.poison
        return 7 if len(self.sent) - 1 == self.fail_at else 0

    def _logits_ith(self, context: int, row: int) -> int:
        return self.logits[row + self.rows if row < 0 else row].ctypes.data


class Chain:
    """An rs_chain on a fake, with everything it points to."""

    def __init__(
        self, fake: FakeLlama, fc_norm: np.ndarray | None = None, output_norm: np.ndarray | None = None
    ) -> None:
        ffi = native.ffi
        self.fake, self.c = fake, ffi.new("rs_chain *")
        for field, address in zip(("encode", "decode", "logits_ith", "states"), fake.addresses()[:4], strict=True):
            setattr(self.c, field, ffi.cast(ffi.typeof(getattr(self.c, field)), address))
        self.c.encoder, self.c.decoder = ffi.cast("void *", 1), ffi.cast("void *", 2)
        self.features, self.steps = ffi.new("float[]", ROOM * N * HT), ffi.new("float[]", ROOM * H)
        self.tokens, self.flags = ffi.new("int32_t[]", ROOM), ffi.new("int8_t[]", [1] * ROOM)
        self.positions = [ffi.new("int32_t[]", ROOM) for _ in range(2)]
        self.c.features.embd, self.c.features.pos, self.c.features.logits = self.features, self.positions[0], self.flags
        self.c.steps.token, self.c.steps.embd, self.c.steps.pos = self.tokens, self.steps, self.positions[1]
        self.sources, self.last_g = ffi.new("float *[]", N), ffi.new("float[]", H)
        self.c.sources, self.c.last_g = self.sources, self.last_g
        self.norms = [] if fc_norm is None else [ffi.from_buffer("float[]", row) for row in fc_norm]
        self.norm_pointers = ffi.new("float *[]", self.norms) if self.norms else ffi.NULL
        self.output_norm = ffi.NULL if output_norm is None else ffi.from_buffer("float[]", output_norm)
        self.c.fc_norm, self.c.output_norm = self.norm_pointers, self.output_norm
        self.c.n_states, self.c.target_width, self.c.width, self.c.vocab, self.c.capacity = N, HT, H, V, ROOM
        self.c.eps = 1e-5

    def extend(self, tokens: list[int], features: np.ndarray, first: int) -> int:
        ids = native.ffi.new("int32_t[]", tokens)
        rows = native.ffi.from_buffer("float[]", np.ascontiguousarray(features, np.float32))
        return int(native.lib.rs_chain_extend(self.c, ids, rows, len(tokens), first))

    def draft(self, k: int, first: int) -> tuple[int, list[int], list[float]]:
        tokens, confidence = native.ffi.new("int32_t[]", k), native.ffi.new("float[]", k)
        status = int(native.lib.rs_chain_draft(self.c, tokens, confidence, k, first))
        return status, list(tokens), list(confidence)


FEATURES = np.random.default_rng(2).normal(size=(3, N * HT)).astype(np.float32)


def test_true_rows_are_encoded_and_decoded_at_their_positions() -> None:
    chain = Chain(fake := FakeLlama())
    assert chain.extend([4, 5, 6], FEATURES, 20) == native.lib.RS_OK
    assert fake.sent == [("encode", [0, 1, 2], []), ("decode", [20, 21, 22], [4, 5, 6])]
    np.testing.assert_array_equal(np.array(list(chain.last_g), np.float32), FEATURES[2, :H])
    assert native.ffi.unpack(chain.c.logits, V).index(3.0) == (6 + 22) % V


def test_features_are_normed_per_state_on_the_way() -> None:
    weights = np.random.default_rng(3).normal(size=(N, HT)).astype(np.float32)
    chain = Chain(FakeLlama(), fc_norm=weights)
    chain.extend([1, 2, 3], FEATURES, 0)
    sent = np.array(list(chain.features), np.float32).reshape(ROOM, N * HT)[:3]
    expected = np.concatenate([ops.rms_norm(FEATURES[:, s * HT : (s + 1) * HT], weights[s], 1e-5) for s in range(N)], 1)
    np.testing.assert_allclose(sent, expected, rtol=1e-6)


@pytest.mark.parametrize("post", [False, True])
def test_a_draft_chains_the_argmax_with_the_state_the_feedback_rule_gives(post: bool) -> None:
    weight = np.random.default_rng(4).normal(size=H).astype(np.float32)
    chain = Chain(fake := FakeLlama(), output_norm=weight if post else None)
    chain.extend([4], FEATURES[:1], 8)
    state, fake.sent = fake.states["decoder"][0].copy(), []
    status, tokens, confidence = chain.draft(3, 9)
    first = (4 + 8) % V
    second = (first + 9) % V
    assert (status, tokens) == (native.lib.RS_OK, [first, second, (second + 10) % V])
    assert fake.sent == [("decode", [9], [first]), ("decode", [10], [second])], "the last draft token needs no row"
    fed = ops.rms_norm(state[None], weight, 1e-5)[0] if post else state
    after_first = first + fed
    fed_last = ops.rms_norm(after_first[None], weight, 1e-5)[0] if post else after_first
    np.testing.assert_allclose(np.array(list(chain.steps), np.float32)[:H], fed_last, rtol=1e-5)
    peak = np.exp(3.0) / (np.exp(3.0) + V - 1)
    np.testing.assert_allclose(confidence, peak, rtol=1e-5)


def test_bad_rows_are_refused_before_anything_runs() -> None:
    chain, lib = Chain(fake := FakeLlama()), native.lib
    poisoned = FEATURES.copy()
    poisoned[1, 2] = np.nan
    assert chain.extend([1, V], FEATURES[:2], 0) == chain.extend([-1], FEATURES[:1], 0) == lib.RS_BAD_TOKEN
    assert chain.extend([1, 2, 3], poisoned, 0) == lib.RS_NOT_FINITE
    assert (
        chain.extend([1] * (ROOM + 1), np.zeros((ROOM + 1, N * HT)), 0)
        == chain.extend([], FEATURES[:0], 0)
        == lib.RS_BAD_CONFIG
    )
    assert fake.sent == []


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_failing_call_stops_the_work_and_keeps_its_code(fail_at: int) -> None:
    chain = Chain(fake := FakeLlama(fail_at=fail_at))
    status = chain.extend([4], FEATURES[:1], 8)
    if fail_at == 2:
        assert status == native.lib.RS_OK
        status = chain.draft(3, 9)[0]
    assert (status, chain.c.code, len(fake.sent)) == (native.lib.RS_ENGINE, 7, fail_at + 1)


def test_logits_that_are_not_finite_draft_nothing() -> None:
    chain = Chain(FakeLlama(poison=np.nan))
    chain.extend([4], FEATURES[:1], 8)
    assert chain.draft(2, 9)[0] == native.lib.RS_NOT_FINITE


def target_on(fake: FakeLlama) -> tuple[Any, ...]:
    ffi = native.ffi
    c = ffi.new("rs_target *")
    addresses = fake.addresses()
    for field, address in (("decode", addresses[1]), ("logits_ith", addresses[2]), ("layer_input", addresses[4])):
        setattr(c, field, ffi.cast(ffi.typeof(getattr(c, field)), address))
    tokens, positions, layers = (
        ffi.new("int32_t[]", [3, 5, 8, 0, 0, 0]),
        ffi.new("int32_t[]", ROOM),
        ffi.new("uint32_t[]", [1, 0]),
    )
    features = ffi.new("float[]", ROOM * 2 * HT)
    c.batch.token, c.batch.pos, c.layers, c.features = tokens, positions, layers, features
    c.n_states, c.width, c.vocab, c.capacity = 2, HT, V, ROOM
    return c, tokens, positions, layers, features


def test_a_target_run_keeps_the_states_of_every_row_side_by_side() -> None:
    c, *_kept, features = kept = target_on(fake := FakeLlama())
    assert native.lib.rs_target_run(c, 3, 5) == native.lib.RS_OK and kept
    assert fake.sent == [("decode", [5, 6, 7], [3, 5, 8])]
    got = np.array(list(features), np.float32).reshape(ROOM, 2, HT)
    np.testing.assert_array_equal(got[:3, 0], fake.inputs[1, :3])
    np.testing.assert_array_equal(got[:3, 1], fake.inputs[0, :3])
    assert not got[3:].any(), "nothing is written past the rows that ran"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_target_run_refuses_a_newest_row_that_decides_nothing(poison: float) -> None:
    kept = target_on(FakeLlama(poison=poison))
    assert native.lib.rs_target_run(kept[0], 2, 0) == native.lib.RS_NOT_FINITE


def test_a_target_run_checks_its_size_and_keeps_the_code_of_a_failure() -> None:
    kept = target_on(fake := FakeLlama(fail_at=0))
    assert (
        native.lib.rs_target_run(kept[0], 0, 0)
        == native.lib.rs_target_run(kept[0], ROOM + 1, 0)
        == native.lib.RS_BAD_CONFIG
    )
    assert native.lib.rs_target_run(kept[0], 1, 0) == native.lib.RS_ENGINE and kept[0].code == 7 and len(fake.sent) == 1


def verifier_on(
    fake: FakeLlama, removes: bool = True, pair_rows: bool = False
) -> tuple[Any, list[tuple[int, ...]], Any]:
    """An rs_verifier, what it removed, and what must be kept alive."""
    ffi, (target, *kept) = native.ffi, target_on(fake)
    removed: list[tuple[int, ...]] = []

    def remove(memory: int, *what: int) -> bool:
        removed.append(what)
        return removes

    kind = ctypes.CFUNCTYPE(ctypes.c_bool, P, I32, I32, I32)(remove)
    c, sampler = ffi.new("rs_verifier *"), native.c_sampler(Sampler())
    c.target, c.remove = target, ffi.cast(ffi.typeof(c.remove), ctypes.cast(kind, P).value)
    c.sampler, c.pair_rows = sampler[0], pair_rows
    space = [
        ffi.new(f"{name}[]", size)
        for name, size in (("float *", ROOM), ("double", ROOM), ("double", V), ("int32_t", V), ("int32_t", ROOM))
    ]
    c.rows, c.coins, c.p, c.order, c.tokens = space
    return c, removed, (target, kept, kind, sampler, space)


def verified(c: Any, pending: int, draft: list[int], first: int) -> tuple[int, list[int]]:
    accepted = int(native.lib.rs_verify_step(c, pending, native.ffi.new("int32_t[]", draft), len(draft), first, 0))
    return accepted, native.ffi.unpack(c.tokens, accepted + 1) if accepted >= 0 else []


def test_a_step_keeps_what_was_accepted() -> None:
    c, removed, kept = verifier_on(fake := FakeLlama())
    true = [(3 + 5) % V]
    true.append((true[0] + 6) % V)
    assert verified(c, 3, [*true, 0], 5) == (2, [*true, (true[1] + 7) % V]) and kept
    assert fake.sent == [("decode", [5, 6, 7, 8], [3, *true, 0])] and removed == [(0, 8, -1)]
    assert verified(c, 3, true[:1], 5) == (1, true) and len(removed) == 1, "where all are accepted nothing is removed"
    assert verified(c, 3, [], 5) == (0, true[:1]) and len(removed) == 1


def test_a_single_token_in_a_pair_is_removed_again() -> None:
    c, removed, kept = verifier_on(fake := FakeLlama(), pair_rows=True)
    assert verified(c, 3, [], 5) == (0, [8]) and kept
    assert fake.sent == [("decode", [5, 6], [3, 3])] and removed == [(0, 6, -1)]
    fake.sent.clear()
    assert verified(c, 3, [8], 5)[0] == 1 and fake.sent == [("decode", [5, 6], [3, 8])], "two tokens are company enough"


def test_a_step_says_whether_its_tokens_have_run() -> None:
    lib = native.lib
    for fake, removes, draft, status, ran in (
        (FakeLlama(fail_at=0), True, [1], lib.RS_ENGINE, False),
        (FakeLlama(poison=np.nan), True, [1], lib.RS_NOT_FINITE, False),
        (FakeLlama(), True, [0] * ROOM, lib.RS_BAD_CONFIG, False),
        (FakeLlama(), True, [V], lib.RS_BAD_TOKEN, True),
        (FakeLlama(), False, [0], lib.RS_ENGINE, True),
    ):
        c, _, kept = verifier_on(fake, removes)
        assert verified(c, 3, draft, 5)[0] == status and c.ran == ran and kept
