"""The packed matmul of the reference: what the codes mean, and that a row's result is its own."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from packed_rows import inputs_of, weights_of

from refspec.errors import ShapeError
from refspec.reference import packed_matmul

QUANTIZED = [kind for kind in packed_matmul.KINDS if kind != packed_matmul.F16]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_codes_scales_and_minima_are_those_of_the_gguf_package(kind: int) -> None:
    raw = weights_of(kind, 5, 3, seed=1)
    found = packed_matmul.unpack(kind, raw.reshape(5, 3, -1))
    values = found.d[..., None, None] * found.scales[..., None] * found.codes
    if found.dmin is not None and found.mins is not None:
        values = values - (found.dmin[..., None] * found.mins)[..., None]
    expected = dequantize(raw, GGMLQuantizationType(kind))
    assert np.abs(values.reshape(5, -1) - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", packed_matmul.KINDS)
def test_the_result_is_that_of_the_unpacked_numbers(kind: int) -> None:
    raw, given = weights_of(kind, 7, 4, seed=2), inputs_of(kind, 3, 4, seed=3)
    if kind == packed_matmul.F16:
        w, x = raw.view(np.float16).astype(np.float64), given.view(np.float16).astype(np.float64)
    else:
        inputs, size = packed_matmul.KINDS[kind][2], packed_matmul.KINDS[kind][0]
        blocks, at = given.reshape(3, 4, -1), 2 if inputs == packed_matmul.Q8_0 else 4
        d = blocks[..., :4].copy().view(np.float32) if size == 256 else blocks[..., :2].copy().view(np.float16)
        w, x = (
            dequantize(raw, GGMLQuantizationType(kind)).astype(np.float64),
            (d.astype(np.float64) * blocks[..., at : at + size].view(np.int8)).reshape(3, -1),
        )
    exact = x @ w.T
    assert np.abs(packed_matmul.matmul(kind, raw, given) - exact).max() <= 2e-6 * (np.abs(x) @ np.abs(w).T).max()


@pytest.mark.parametrize("kind", packed_matmul.KINDS)
def test_a_row_has_the_bits_it_has_alone(kind: int) -> None:
    raw, given = weights_of(kind, 6, 2, seed=4), inputs_of(kind, 5, 2, seed=5)
    together = packed_matmul.matmul(kind, raw, given)
    for r in range(5):
        assert np.array_equal(packed_matmul.matmul(kind, raw, given[r : r + 1])[0], together[r])


def test_rows_of_different_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match="differ in width"):
        packed_matmul.matmul(
            packed_matmul.Q8_0,
            weights_of(packed_matmul.Q8_0, 2, 3, seed=0),
            inputs_of(packed_matmul.Q8_0, 2, 2, seed=0),
        )


def test_rows_of_a_cache_are_multiplied_each_for_itself() -> None:
    rng = np.random.default_rng(6)
    keys, rows = (rng.standard_normal((n, 48)).astype(np.float16) for n in (9, 5))
    together = packed_matmul.rows_matmul(keys, rows)
    exact = rows.astype(np.float64) @ keys.astype(np.float64).T
    assert np.abs(together - exact).max() <= 1e-5
    for r in range(5):
        assert np.array_equal(packed_matmul.rows_matmul(keys[2:4], rows[r : r + 1])[0], together[r, 2:4])
    longer = [np.concatenate([x, np.zeros((len(x), 32), np.float16)], 1) for x in (keys, rows)]
    assert np.array_equal(packed_matmul.rows_matmul(*longer), together), "empty places of a cache change nothing"
