"""The operations: their formulas in float64, and batch invariance to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refspec.reference import ops

SEEDS = st.integers(0, 2**32 - 1)
WIDTHS = st.integers(1, 70)
STYLES = ["interleaved", "half_split"]


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@given(SEEDS, st.integers(0, 9), WIDTHS, st.sampled_from([1e-3, 1.0, 1e4]))
def test_rms_norm_is_its_formula(seed: int, rows: int, width: int, scale: float) -> None:
    x, w = normal(seed, rows, width, scale=scale), normal(seed + 1, width)
    wide = x.astype(np.float64)
    expected = w * wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ops.rms_norm(x, w, 1e-5), expected, rtol=2e-6, atol=1e-7)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not ops.rms_norm(np.zeros((2, 8), np.float32), np.ones(8, np.float32), 1e-6).any()


@given(SEEDS, WIDTHS, st.sampled_from([1.0, 100.0]))
def test_softmax_is_its_formula_and_sums_to_one(seed: int, width: int, scale: float) -> None:
    x = normal(seed, 3, width, scale=scale)
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    p = ops.softmax(x)
    np.testing.assert_allclose(p, e / e.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(ops.softmax(x.T, axis=0), p.T)


def test_softmax_gives_exactly_zero_for_minus_infinity() -> None:
    assert ops.softmax(np.array([-np.inf, 1, 1], np.float32)).tolist() == [0, 0.5, 0.5]


def test_swiglu_is_its_formula_without_warning_at_the_extremes() -> None:
    gate = np.array([[-1000, -1, 0, 1, 1000]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        out = ops.swiglu(gate, np.full_like(gate, 2))
    np.testing.assert_allclose(out, [[0, -2 / (1 + np.e), 0, 2 / (1 + 1 / np.e), 2000]], rtol=1e-6, atol=0)


def test_argmax_takes_the_lowest_index_on_ties() -> None:
    assert ops.argmax(np.array([0, 3, 3, 1], np.float32)) == 1


@pytest.mark.parametrize("style", STYLES)
def test_rope_turns_a_pair_by_position_times_frequency(style: str) -> None:
    x = np.zeros((1, 1, 4), np.float32)
    second = np.s_[0, 0, 2] if style == "interleaved" else np.s_[0, 0, 1]  # first element of pair 1
    partner = 3  # its other element, in both styles
    x[second] = 1
    out = ops.rope(x, np.array([50]), 100.0, style)  # pair 1 of hd 4: 50 * 100^(-1/2) = 5 radians
    np.testing.assert_allclose([out[second], out[0, 0, partner]], [np.cos(5), np.sin(5)], rtol=1e-6)
    assert np.count_nonzero(out) == 2


@given(SEEDS, st.sampled_from(STYLES), st.integers(0, 500), st.integers(0, 500), st.integers(0, 4000), st.booleans())
def test_rope_scores_depend_on_the_distance_only(
    seed: int, style: str, i: int, j: int, shift: int, scaled: bool
) -> None:
    q, k = normal(seed, 1, 1, 16), normal(seed + 1, 1, 1, 16)
    freqs = np.linspace(1, 8, 8, dtype=np.float32) if scaled else None

    def score(pq: int, pk: int) -> float:
        turned = [ops.rope(x, np.array([p]), 10000.0, style, freqs) for x, p in ((q, pq), (k, pk))]
        return float((turned[0] * turned[1]).sum())

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=2e-5)


@given(SEEDS, st.sampled_from(STYLES), st.integers(0, 10**6))
def test_rope_keeps_lengths(seed: int, style: str, position: int) -> None:
    x = normal(seed, 1, 2, 16)
    out = ops.rope(x, np.array([position]), 10000.0, style)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@given(SEEDS, st.integers(0, 1000))
def test_the_two_rope_styles_are_one_permutation_apart(seed: int, position: int) -> None:
    x = normal(seed, 1, 2, 16)
    to_half = np.concatenate([np.arange(0, 16, 2), np.arange(1, 16, 2)])
    at = np.array([position])
    halved = ops.rope(x[..., to_half], at, 10000.0, "half_split")
    assert np.array_equal(ops.rope(x, at, 10000.0, "interleaved")[..., to_half], halved)


def test_rope_divisors_of_linear_scaling_are_divided_positions() -> None:
    x = normal(0, 3, 2, 8)
    scaled = ops.rope(x, np.array([0, 4, 400]), 10000.0, "half_split", np.full(4, 4, np.float32))
    assert np.array_equal(scaled, ops.rope(x, np.array([0, 1, 100]), 10000.0, "half_split"))


def test_an_unknown_rope_style_is_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        ops.rope(normal(0, 1, 1, 4), np.array([0]), 10000.0, "sideways")


@given(SEEDS, st.integers(1, 6), st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]))
def test_attention_is_its_formula_and_its_weights_are_causal(seed: int, rows: int, heads: tuple[int, int]) -> None:
    n_heads, n_kv = heads
    n_keys = rows + 3
    q, k, v = normal(seed, rows, n_heads, 8), normal(seed + 1, n_keys, n_kv, 8), normal(seed + 2, n_keys, n_kv, 8)
    visible = np.arange(4, 4 + rows)
    out, weights = ops.attention(q, k, v, visible, return_weights=True)
    assert weights is not None
    full_k, full_v = (np.repeat(a, n_heads // n_kv, axis=1).astype(np.float64) for a in (k, v))
    scores = np.einsum("thd,shd->hts", q, full_k) / np.sqrt(8)
    scores[:, np.arange(n_keys)[None] >= visible[:, None]] = -np.inf
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(weights, p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, np.einsum("hts,shd->thd", p, full_v).reshape(rows, -1), rtol=1e-5, atol=2e-6)
    without, none = ops.attention(q, k, v, visible)
    assert none is None
    assert np.array_equal(without, out)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 9), WIDTHS, st.integers(1, 300), st.data())
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    seed: int, rows: int, width: int, n_out: int, data: st.DataObject
) -> None:
    x, y = normal(seed, rows, width), normal(seed + 1, rows, width)
    w, gain = normal(seed + 2, n_out, width), normal(seed + 3, width)
    t = data.draw(st.integers(0, rows - 1))
    one = slice(t, t + 1)
    assert np.array_equal(ops.matvec(w, x)[one], ops.matvec(w, x[one]))
    assert np.array_equal(ops.rms_norm(x, gain, 1e-5)[one], ops.rms_norm(x[one], gain, 1e-5))
    assert np.array_equal(ops.softmax(x)[one], ops.softmax(x[one]))
    assert np.array_equal(ops.swiglu(x, y)[one], ops.swiglu(x[one], y[one]))
    assert np.array_equal(ops.gather_rows(w, np.array([0] * rows))[one], ops.gather_rows(w, np.array([0])))
    heads, at = np.repeat(x[:, None, :], 2, axis=1)[..., : width // 2 * 2], np.arange(rows) * 7
    for style in STYLES:
        assert np.array_equal(ops.rope(heads, at, 1e4, style)[one], ops.rope(heads[one], at[one], 1e4, style))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 40), st.sampled_from([2, 16, 64]), st.data())
def test_attention_of_a_row_ignores_neighbours_and_later_keys(
    seed: int, rows: int, head_dim: int, data: st.DataObject
) -> None:
    q, k, v = normal(seed, rows, 4, head_dim), normal(seed + 1, rows, 2, head_dim), normal(seed + 2, rows, 2, head_dim)
    visible = np.arange(1, rows + 1)
    together, _ = ops.attention(q, k, v, visible)
    t = data.draw(st.integers(0, rows - 1))
    alone, _ = ops.attention(q[t : t + 1], k[: t + 1].copy(), v[: t + 1].copy(), visible[t : t + 1])
    assert np.array_equal(together[t : t + 1], alone)


@pytest.mark.parametrize("n_out, n_in", [(512, 1536), (1000, 333), (2048, 512)])
def test_wide_products_keep_their_bits_too(n_out: int, n_in: int) -> None:  # BLAS splits these between threads
    w, x = normal(0, n_out, n_in), normal(1, 5, n_in)
    together = ops.matvec(w, x)
    for t in range(5):
        assert np.array_equal(together[t], ops.matvec(w, x[t : t + 1].copy())[0])
    np.testing.assert_allclose(together, x.astype(np.float64) @ w.T.astype(np.float64), atol=2e-4)
