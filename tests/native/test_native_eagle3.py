"""rs_eagle3_step beyond agreement: bounds, switches it refuses, and rows that may be run again. Agreement:

tests/agreement.
"""

import ctypes

import numpy as np
import pytest
from small_drafters import small_config, small_rows, small_weights

from refspec import native
from refspec.errors import CheckpointError, ShapeError
from refspec.native import Eagle3Chain, Eagle3Rows, PackedMatrix, Team
from refspec.reference.config import BIASED, FeatureNorm
from refspec.reference.eagle3 import Eagle3Drafter

if native.backend != "c":
    pytest.skip("the C module is not built", allow_module_level=True)

CONFIG = small_config(feature_norm=FeatureNorm.PER_STATE)
WEIGHTS = small_weights(CONFIG)
TOKENS, FEATURES = small_rows(CONFIG, 6)


def test_stepping_again_from_an_earlier_row_is_rollback() -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 6)
    first = [rows.step(int(t), rows.encode(a), i) for i, (t, a) in enumerate(zip(TOKENS, FEATURES, strict=True))]
    rows.step(0, np.ones(CONFIG.hidden_size, np.float32), 3)  # another row 3, then the true ones again
    again = [rows.step(int(TOKENS[i]), rows.encode(FEATURES[i]), i) for i in range(3, 6)]
    for a, b in zip(first[3:], again, strict=True):
        assert np.array_equal(a.logits, b.logits)


def test_the_state_may_be_overwritten_by_its_successor() -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    state = rows.encode(FEATURES[0])
    expected = rows.step(3, state, 0)
    lib, p = native.lib, native.ffi.from_buffer
    null, shared = native.ffi.NULL, state.copy()
    status = lib.rs_eagle3_step(
        null, null, p("float[]", shared), p("float[]", rows.keys), p("float[]", rows.values), null,
        p("float[]", rows._scratch), rows._config, rows._weights, 3, p("float[]", shared), 0, 0,
    )  # fmt: skip
    assert status == lib.RS_OK
    assert np.array_equal(shared, expected.state_out)


@pytest.mark.parametrize(
    "token, row, message", [(-1, 0, "token -1"), (31, 0, "token 31"), (0, 2, "row 2"), (0, -1, "row -1")]
)
def test_a_token_or_row_out_of_range_is_refused(token: int, row: int, message: str) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    with pytest.raises(ShapeError, match=message):
        rows.step(token, np.zeros(CONFIG.hidden_size, np.float32), row)


@pytest.mark.parametrize("width", [0, CONFIG.hidden_size + 1])
def test_states_and_features_of_another_width_are_refused(width: int) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    with pytest.raises(ShapeError):
        rows.step(0, np.zeros(width, np.float32), 0)
    with pytest.raises(ShapeError):
        rows.encode(np.zeros(width, np.float32))


def test_a_missing_weight_or_no_capacity_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'fc'"):
        Eagle3Rows(CONFIG, {k: v for k, v in WEIGHTS.items() if k != "fc"}, 2)
    with pytest.raises(ShapeError, match="0 rows"):
        Eagle3Rows(CONFIG, WEIGHTS, 0)


@pytest.mark.parametrize(
    "field, value",
    [("rope_style", 2), ("feature_norm", 3), ("feature_norm", -1), ("feedback", 2), ("residual", -1), ("head_dim", 7),
     ("n_kv_heads", 3),
     ("hidden", 0), ("feature_norm", 1)],  # the last: concat, whose norm weight is not there
)  # fmt: skip
def test_the_c_check_refuses_switches_and_sizes_it_does_not_know(field: str, value: int) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    assert native.lib.rs_eagle3_check(rows._config, rows._weights) == native.lib.RS_OK
    setattr(rows._config, field, value)
    assert native.lib.rs_eagle3_check(rows._config, rows._weights) == native.lib.RS_BAD_CONFIG


def chain(capacity: int, packed: bool = False) -> Eagle3Chain:
    """CONFIG's drafter as a chain;

    `packed` sends every matrix multiplication through functions of the caller's, which do what C would.
    """
    if not packed:
        return Eagle3Chain(CONFIG, WEIGHTS, capacity)
    address = lambda function: int(native.ffi.cast("uintptr_t", function))  # noqa: E731
    functions = [address(function) for function in (DOT, PACK, UNPACK)]
    return Eagle3Chain(CONFIG, WEIGHTS, capacity, {
        name: PackedMatrix(np.ascontiguousarray(WEIGHTS[name], np.float32).view(np.uint8), *functions)
        for name in ("token_embd", *BIASED)
    })  # fmt: skip


def values(pointer: object, n: int) -> np.ndarray:
    return np.frombuffer(native.ffi.buffer(native.ffi.cast("float *", pointer), 4 * n), np.float32)


@native.ffi.callback("void(int32_t, float *, size_t, void *, size_t, void *, size_t, int32_t)")
def DOT(n, out, _, row, __, packed, ___, ____) -> None:  # type: ignore[no-untyped-def]
    out[0] = float(values(row, n) @ values(packed, n)[::-1])


@native.ffi.callback("void(float *, void *, int64_t)")
def PACK(x, packed, n) -> None:  # type: ignore[no-untyped-def]
    # another order, so that an unpacked input would show
    native.ffi.memmove(packed, np.ascontiguousarray(values(x, n)[::-1]), 4 * n)


@native.ffi.callback("void(void *, float *, int64_t)")
def UNPACK(row, x, n) -> None:  # type: ignore[no-untyped-def]
    native.ffi.memmove(x, row, 4 * n)


@pytest.mark.parametrize("packed", [False, True])
def test_a_chain_drafts_what_the_reference_drafts(packed: bool) -> None:
    ours, reference = chain(12, packed), Eagle3Drafter(CONFIG, WEIGHTS)
    assert ours.extend(TOKENS.astype(np.int32), FEATURES, 0) == native.lib.RS_OK
    reference.extend(TOKENS, FEATURES)
    for _ in range(2):  # a second draft begins at the true row again
        tokens, confidence = np.empty(4, np.int32), np.empty(4, np.float32)
        ours.restart()
        assert ours.draft(tokens, confidence, len(TOKENS)) == native.lib.RS_OK
        expected = reference.draft(4)
        assert tokens.tolist() == expected.tokens.tolist()
        np.testing.assert_allclose(confidence, expected.confidence, rtol=1e-5)


def test_a_chain_refuses_before_it_writes() -> None:
    lib, ours = native.lib, chain(6)
    tokens = TOKENS.astype(np.int32)
    assert ours.extend(tokens, FEATURES, 0) == lib.RS_OK
    keys, logits = ours.keys.copy(), ours.logits().copy()
    assert ours.extend(tokens[:1], FEATURES[:1], 6) == lib.RS_CACHE_FULL
    assert ours.extend(tokens, FEATURES, 1) == lib.RS_CACHE_FULL
    assert ours.extend(np.array([0, 31], np.int32), FEATURES[:2], 0) == lib.RS_BAD_TOKEN
    assert ours.extend(np.array([0, -1], np.int32), FEATURES[:2], 0) == lib.RS_BAD_TOKEN
    broken = FEATURES[:2].copy()
    broken[1, 3] = np.inf
    assert ours.extend(tokens[:2], broken, 0) == lib.RS_NOT_FINITE
    assert ours.follow(0, 6) == lib.RS_CACHE_FULL and ours.follow(-1, 5) == lib.RS_BAD_TOKEN
    assert np.array_equal(ours.keys, keys) and np.array_equal(ours._outputs["true_logits"], logits)


class FakeTeam:
    """GNU OpenMP's functions, one thread after another; `gives` is how many threads it has, whatever was asked for."""

    def __init__(self, gives: int) -> None:
        self.gives, self.rank, self.asked = gives, 0, list[int]()
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._kept = [
            ctypes.CFUNCTYPE(None, body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(self._parallel),
            ctypes.CFUNCTYPE(ctypes.c_int)(lambda: self.rank),
            ctypes.CFUNCTYPE(ctypes.c_int)(lambda: self.gives),
        ]

    def _parallel(self, body, data: int, threads: int, flags: int) -> None:  # type: ignore[no-untyped-def]
        self.asked.append(threads)
        for rank in range(self.gives):
            self.rank = rank
            body(data)

    def team(self, threads: int) -> Team:
        parallel, rank, size = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in self._kept)
        return Team(parallel, rank, size, threads)


@pytest.mark.parametrize("gives", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_a_team_shares_a_large_matrix_and_changes_no_bit(gives: int, packed: bool) -> None:
    config = small_config(vocab_size=9001, draft_vocab_size=8501)  # its head is the only matrix worth sharing
    weights = small_weights(config)
    matrices = {}
    if packed:  # float32 rows through a function, as if they were packed
        dot = native.ffi.callback(
            "void(int32_t, float *, size_t, const void *, size_t, const void *, size_t, int32_t)",
            lambda n, out, _b, row, _r, x, _x, _n: out.__setitem__(
                0, float(np.dot(*(np.frombuffer(native.ffi.buffer(p, 4 * n), np.float32) for p in (row, x))))
            ),
        )
        matrices = {
            "output": PackedMatrix(weights["output"].view(np.uint8), int(native.ffi.cast("uintptr_t", dot)), 0, 0)
        }
    fake = FakeTeam(gives)
    alone, shared = (Eagle3Rows(config, weights, 2, matrices, team) for team in (None, fake.team(3)))
    feature = np.random.default_rng(5).standard_normal(config.n_states * config.target_hidden_size).astype(np.float32)
    results = [rows.step(7, rows.encode(feature), 0) for rows in (alone, shared)]
    assert np.array_equal(results[0].logits, results[1].logits) and np.array_equal(results[0].h, results[1].h)
    assert fake.asked == [3], "small matrices are not worth waking anyone"
