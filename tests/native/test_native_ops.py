"""What the C kernels promise beyond agreement: refused shapes, independence of rows, in-place use, reported NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refspec import native
from refspec.errors import ShapeError

if native.backend != "c":
    pytest.skip("the C module is not built", allow_module_level=True)

SEEDS = st.integers(0, 2**32 - 1)
lib, ffi = native.lib, native.ffi


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pointer(x: np.ndarray) -> object:
    return ffi.from_buffer("float[]", x, require_writable=True)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 40), st.data())
def test_a_row_alone_has_the_bits_it_has_in_a_batch(seed: int, rows: int, width: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, rows - 1))
    one = slice(t, t + 1)
    x, w, gain = normal(seed, rows, width), normal(seed + 1, 33, width), normal(seed + 2, width)
    assert np.array_equal(native.matvec(w, x)[one], native.matvec(w, x[one]))
    assert np.array_equal(native.rms_norm(x, gain, 1e-5)[one], native.rms_norm(x[one], gain, 1e-5))
    assert np.array_equal(native.softmax(x)[one], native.softmax(x[one]))
    assert np.array_equal(native.swiglu(x, 2 * x)[one], native.swiglu(x[one], 2 * x[one]))
    q, k, v = (normal(seed + i, rows, n, 2 * width) for i, n in ((3, 4), (4, 2), (5, 2)))
    positions = np.arange(rows) * 11
    turned = native.rope(q, positions, 1e4, "interleaved")
    assert np.array_equal(turned[one], native.rope(q[one], positions[one], 1e4, "interleaved"))
    out = native.attention(q, k, v, np.arange(1, rows + 1))[0]
    assert np.array_equal(out[one], native.attention(q[one], k[: t + 1], v[: t + 1], np.array([t + 1]))[0])


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_results_do_not_depend_on_how_inputs_are_aligned_in_memory(offset: int) -> None:
    x, w = normal(0, 1, 100), normal(1, 7, 100)
    shifted = np.empty(100 + offset, np.float32)[offset:]
    shifted[:] = x[0]
    assert np.array_equal(native.matvec(w, shifted[None]), native.matvec(w, x))
    assert np.array_equal(native.softmax(shifted), native.softmax(x[0]))


def test_norm_softmax_rope_swiglu_and_feedback_may_write_onto_their_input() -> None:
    x, gain, position = normal(0, 3, 20), normal(1, 20), np.array([4, 5, 6])
    expected, y = native.rms_norm(x, gain, 1e-5), x.copy()
    lib.rs_rms_norm(pointer(y), pointer(y), pointer(gain), 1e-5, 3, 20)
    assert np.array_equal(y, expected)
    expected, y = native.softmax(x), x.copy()
    lib.rs_softmax(pointer(y), pointer(y), 3, 20)
    assert np.array_equal(y, expected)
    for style, number in (("interleaved", 0), ("half_split", 1)):
        expected, y = native.rope(x.reshape(3, 2, 10), position, 1e4, style), x.copy()
        lib.rs_rope(pointer(y), pointer(y), ffi.from_buffer("int64_t[]", position), ffi.NULL, 1e4, number, 3, 2, 10)
        assert np.array_equal(y, expected.reshape(3, 20))
    expected, gate, up = native.swiglu(x, 2 * x), x.copy(), 2 * x
    lib.rs_swiglu(pointer(gate), pointer(gate), pointer(up), 60)
    assert np.array_equal(gate, expected)
    gate = x.copy()
    lib.rs_swiglu(pointer(up), pointer(gate), pointer(up), 60)
    assert np.array_equal(up, expected)
    expected, y = native.draft_feedback(x[0], gain, 1e-5, True), x[0].copy()
    lib.rs_draft_feedback(pointer(y), pointer(y), pointer(gain), 1e-5, 1, 20)
    assert np.array_equal(y, expected)


def test_argmax_reports_the_first_nan_as_a_negative_number() -> None:
    x = np.array([1, np.nan, 9, np.nan], np.float32)
    probability = ffi.new("float *", -5.0)
    assert lib.rs_argmax(pointer(x), 4) == -2
    assert lib.rs_argmax_prob(probability, pointer(x), 4) == -2
    assert probability[0] == -5.0
    index, p = native.argmax_prob(x)
    assert index == 1 and np.isnan(p)


@pytest.mark.parametrize("x, best", [([0.0, np.inf, 1.0], 1), ([-np.inf, -np.inf], 0)])
def test_an_infinite_maximum_has_no_probability(x: list[float], best: int) -> None:
    row = np.array(x, np.float32)
    assert native.argmax(row) == best
    assert lib.rs_argmax_prob(ffi.new("float *"), pointer(row), len(x)) == -1 - best


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 5000))
def test_argmax_prob_is_the_softmax_of_the_argmax_bit_for_bit(seed: int, n: int) -> None:
    x = 5 * normal(seed, n)
    index, p = native.argmax_prob(x)
    assert index == int(np.argmax(x))
    assert np.float32(p) == native.softmax(x)[index]


def test_exp_is_within_one_ulp_over_its_whole_range() -> None:
    x = np.linspace(-87, 0, 400_001, dtype=np.float32)
    pairs = np.stack([np.zeros_like(x), x], axis=1)  # softmax of (0, x) is 1 / (1 + e), e / (1 + e)
    p = native.softmax(pairs)
    with np.errstate(under="ignore"):
        e = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(
        p[:, 1], e / (1 + e), rtol=3.5 * 2.0**-24, atol=2.0**-149
    )  # 2 half-ulps of exp, sum, division


@pytest.mark.parametrize(
    "x, finite",
    [
        ([], True),
        ([1.0, -3e38], True),
        ([0.0, np.inf], False),
        ([-np.inf] + [0.0] * 30, False),
        ([0.0] * 17 + [np.nan], False),
    ],
)
def test_all_finite(x: list[float], finite: bool) -> None:
    assert native.all_finite(np.array(x, np.float32)) is finite


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.rms_norm(normal(0, 2, 8), normal(0, 7), 1e-5),
        lambda: native.matvec(normal(0, 4, 8), normal(0, 2, 9)),
        lambda: native.swiglu(normal(0, 2, 8), normal(0, 2, 7)),
        lambda: native.rope(normal(0, 2, 3, 8), np.arange(3), 1e4, "half_split"),
        lambda: native.rope(normal(0, 2, 3, 7), np.arange(2), 1e4, "half_split"),
        lambda: native.rope(normal(0, 2, 3, 8), np.arange(2), 1e4, "half_split", normal(0, 3)),
        lambda: native.attention(normal(0, 1, 4, 8), normal(0, 5, 3, 8), normal(0, 5, 3, 8), np.array([5])),
        lambda: native.attention(normal(0, 1, 4, 8), normal(0, 5, 2, 8), normal(0, 4, 2, 8), np.array([4])),
        lambda: native.attention(normal(0, 1, 4, 8), normal(0, 5, 2, 8), normal(0, 5, 2, 8), np.array([6])),
        lambda: native.attention(normal(0, 1, 4, 8), normal(0, 5, 2, 8), normal(0, 5, 2, 8), np.array([0])),
        lambda: native.gather_rows(normal(0, 5, 8), np.array([0, 5])),
        lambda: native.gather_rows(normal(0, 5, 8), np.array([-1])),
        lambda: native.argmax(np.zeros(0, np.float32)),
        lambda: native.argmax_prob(np.zeros(0, np.float32)),
        lambda: native.draft_feedback(normal(0, 8), normal(0, 7), 1e-5, True),
        lambda: native.draft_feedback(normal(0, 8), None, 1e-5, True),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_c_sees_them(call: object) -> None:
    with pytest.raises(ShapeError):
        call()  # type: ignore[operator]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1e-30, 1e-3, 1.0, 1e4]))
def test_q8_0_in_c_gives_the_bytes_of_gguf(seed: int, rows: int, blocks: int, size: float) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    rng = np.random.default_rng(seed)
    x = (size * rng.normal(size=(rows, 32 * blocks))).astype(np.float32)
    x[0, :32] = np.round(127 * rng.uniform(-1, 1, 32) * 2) / 2  # halves: the rounding rule decides
    x[0, 0], x[-1, -32:] = 127.0, 0.0
    np.testing.assert_array_equal(native.quantize_q8_0(x), quantize(x, GGMLQuantizationType.Q8_0))
