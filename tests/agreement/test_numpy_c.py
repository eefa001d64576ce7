"""NumPy = C: every operation, and the drafter under every switch combination; bounds and reasons: tolerances.py."""

import numpy as np
import pytest
import tolerances
from drafter_cases import DEPTH, Case, cases, difference, run_c, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from small_drafters import small_rows

from refspec import native
from refspec.reference import ops
from refspec.reference.eagle3 import Eagle3Drafter

if native.backend != "c":
    pytest.skip("the C module is not built", allow_module_level=True)

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(0, 5)
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([128, 255, 1000, 4096]))
SCALES = st.sampled_from([1e-4, 1.0, 30.0])
QUICK = settings(max_examples=60, deadline=None)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def assert_within(c: np.ndarray, numpy: np.ndarray, bound: np.ndarray | float) -> None:
    assert c.shape == numpy.shape and c.dtype == numpy.dtype == np.float32
    assert np.array_equal(np.isnan(c), np.isnan(numpy)) and np.array_equal(np.isinf(c), np.isinf(numpy))
    finite = np.isfinite(numpy)
    excess = np.abs(c[finite].astype(np.float64) - numpy[finite]) - np.broadcast_to(bound, c.shape)[finite]
    assert (excess <= 0).all(), f"over the bound by {excess.max()}"


@QUICK
@given(SEEDS, ROWS, WIDTHS, SCALES)
def test_rms_norm(seed: int, rows: int, width: int, scale: float) -> None:
    x, w = normal(seed, rows, width, scale=scale), normal(seed + 1, width)
    expected = ops.rms_norm(x, w, 1e-5)
    assert_within(native.rms_norm(x, w, 1e-5), expected, tolerances.norm(width) * np.abs(expected) + tolerances.TINY)


@QUICK
@given(
    SEEDS, ROWS, st.integers(1, 4), st.integers(1, 40), st.sampled_from(["interleaved", "half_split"]), st.booleans(),
    st.sampled_from([1e4, 5e5]), st.integers(0, 10**6),
)  # fmt: skip
def test_rope(seed: int, rows: int, heads: int, half: int, style: str, divided: bool, theta: float, far: int) -> None:
    x, positions = normal(seed, rows, heads, 2 * half), np.arange(rows) * 3 + far
    freqs = np.linspace(1, 32, half, dtype=np.float32) if divided else None
    expected = ops.rope(x, positions, theta, style, freqs)
    assert_within(native.rope(x, positions, theta, style, freqs), expected, tolerances.rotation(x))


@QUICK
@given(SEEDS, ROWS, st.integers(1, 60), WIDTHS, SCALES)
def test_matvec(seed: int, rows: int, n_out: int, n_in: int, scale: float) -> None:
    w, x = normal(seed, n_out, n_in), normal(seed + 1, rows, n_in, scale=scale)
    assert_within(native.matvec(w, x), ops.matvec(w, x), tolerances.matvec(w, x))


@QUICK
@given(SEEDS, ROWS, WIDTHS, SCALES, st.booleans())
def test_softmax(seed: int, rows: int, width: int, scale: float, masked: bool) -> None:
    x = normal(seed, rows, width, scale=scale)
    if masked:
        x[:, 1::2] = -np.inf
    expected = ops.softmax(x)
    bound = tolerances.exponentials(width) * expected.astype(np.float64) + tolerances.TINY
    assert_within(native.softmax(x), expected, bound)
    assert_within(native.softmax(x.T, axis=0), ops.softmax(x.T, axis=0), bound.T)


@QUICK
@given(SEEDS, ROWS, WIDTHS, SCALES)
def test_swiglu(seed: int, rows: int, width: int, scale: float) -> None:
    gate, up = normal(seed, rows, width, scale=scale), normal(seed + 1, rows, width)
    expected = ops.swiglu(gate, up)
    assert_within(native.swiglu(gate, up), expected, tolerances.exponentials(1) * np.abs(expected) + tolerances.TINY)


def test_softmax_and_swiglu_at_the_ends_of_float32() -> None:
    ends = np.array([[-np.inf, -3e38, -745, -104, -88, 0, 88, 104, 3e38]], np.float32)
    finite = ends[:, 1:]
    with np.errstate(invalid="ignore", over="ignore"):
        assert_within(native.softmax(ends), ops.softmax(ends), 1e-37)
        assert_within(native.swiglu(finite, finite), ops.swiglu(finite, finite), 1e-30)
        for bad in ([np.nan, 1, 2], [1, np.nan, 2], [np.inf, 1, 2], [-np.inf] * 3):
            assert_within(native.softmax(np.array(bad, np.float32)), ops.softmax(np.array(bad, np.float32)), 0)


@QUICK
@given(
    SEEDS, st.integers(1, 5), st.integers(0, 40), st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]), st.integers(1, 40)
)
def test_attention(seed: int, rows: int, before: int, heads: tuple[int, int], head_dim: int) -> None:
    keys = before + rows
    q = normal(seed, rows, heads[0], head_dim)
    k, v = normal(seed + 1, keys, heads[1], head_dim), normal(seed + 2, keys, heads[1], head_dim)
    visible = np.arange(before + 1, keys + 1)
    expected, expected_weights = ops.attention(q, k, v, visible, True)
    out, weights = native.attention(q, k, v, visible, True)
    assert weights is not None and expected_weights is not None
    # A score is a sum of hd products; its error moves the weight by the same amount, relatively, and the maximum by as
    # much.
    largest = float(np.abs(q).max() * np.abs(k).max()) * head_dim / np.sqrt(head_dim)
    relative = 4 * (head_dim + 2) * tolerances.U * largest + tolerances.exponentials(keys)
    assert_within(weights, expected_weights, relative * expected_weights + tolerances.TINY)
    assert_within(out, expected, (relative + 2 * (keys + 1) * tolerances.U) * float(np.abs(v).max()))
    assert np.array_equal(native.attention(q, k, v, visible)[0], out)


@QUICK
@given(
    st.lists(st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1.0, 1.5, np.inf, np.nan]), min_size=1, max_size=50),
    st.integers(0, 60),
)
def test_argmax_is_bit_equal_with_ties_and_nan(values: list[float], padding: int) -> None:
    x = np.array(values + [-3.0] * padding, np.float32)
    assert native.argmax(x) == ops.argmax(x)


@QUICK
@given(SEEDS, st.integers(0, 30), st.integers(1, 40))
def test_gather_rows_is_bit_equal(seed: int, n: int, width: int) -> None:
    table, ids = normal(seed, 17, width), np.random.default_rng(seed).integers(0, 17, n)
    assert np.array_equal(native.gather_rows(table, ids), ops.gather_rows(table, ids))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_drafter_rows_and_chain(case: Case) -> None:
    reference, in_c, step = run_reference(case, ops), run_reference(case, native), run_c(case)
    true_rows, chained = difference(reference, in_c)
    assert true_rows <= tolerances.ROW and chained <= tolerances.CHAIN
    for (
        name,
        array,
    ) in in_c._asdict().items():  # one row by rs_eagle3_step, or many by the single kernels: the same bits
        assert np.array_equal(array, getattr(step, name)), name


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_drafted_tokens_are_equal(case: Case) -> None:
    tokens, features = small_rows(case.config, 9)
    drafts = []
    for backend in (ops, native):
        drafter = Eagle3Drafter(case.config, case.weights, backend)
        drafter.extend(tokens, features)
        drafts.append(drafter.draft(DEPTH))
    assert drafts[0].tokens.tolist() == drafts[1].tokens.tolist()
    np.testing.assert_allclose(drafts[0].confidence, drafts[1].confidence, rtol=1e-4)
