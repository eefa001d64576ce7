"""The packed matmul in C is the reference bit for bit: on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_rows import SCALES_AT, inputs_of, weights_of

from refspec import native
from refspec.reference import packed_matmul

if native.backend != "c":
    pytest.skip("the C module is not built", allow_module_level=True)

lib, ffi = native.lib, native.ffi
BEST = ffi.string(lib.rs_matmul_set()).decode()
HERE = [*["avx2"][: BEST != ""], *["avx512"][: BEST == "avx512"]]


def matmul(set_name: str, kind: int, weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    out = np.full((len(inputs), len(weights)), np.nan, np.float32)
    blocks = weights.shape[1] // packed_matmul.KINDS[kind][1]
    scratch = np.empty(lib.rs_matmul_scratch(kind, len(inputs)), np.uint8)
    code = lib.rs_matmul(
        ffi.from_buffer("float[]", out), ffi.from_buffer("uint8_t[]", scratch), set_name.encode(), kind,
        ffi.from_buffer("uint8_t[]", weights), ffi.from_buffer("uint8_t[]", inputs), len(inputs), len(weights), blocks,
    )  # fmt: skip
    assert code == 0
    return out


@pytest.mark.parametrize("kind", packed_matmul.KINDS)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 19), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_every_instruction_set_gives_the_bits_of_the_reference(
    kind: int, rows: int, n: int, blocks: int, seed: int
) -> None:
    blocks *= 173 if kind == packed_matmul.F16 else 1  # up to two chunks of 512
    weights, inputs = weights_of(kind, rows, blocks, seed=seed), inputs_of(kind, n, blocks, seed=seed + 1)
    expected = packed_matmul.matmul(kind, weights, inputs)
    for name in HERE:
        assert np.array_equal(matmul(name, kind, weights, inputs), expected), name


@pytest.mark.parametrize("kind", packed_matmul.KINDS)
@pytest.mark.parametrize("extreme", [0, 255])
def test_codes_at_their_limits_overflow_nowhere(kind: int, extreme: int) -> None:
    weights = weights_of(kind, 17, 3, seed=0)
    if kind != packed_matmul.F16:
        raw = weights.reshape(17, 3, -1)
        keep = [i for at in SCALES_AT[kind] for i in (at, at + 1)]
        others = [i for i in range(raw.shape[2]) if i not in keep]
        raw[..., others] = extreme
        if kind == packed_matmul.Q8_0:
            raw[..., others] = 0x80 if extreme else 0x7F  # -128 and 127
    for sign in (127, -127):
        inputs = inputs_of(kind, 9, 3, seed=1)
        if kind != packed_matmul.F16:
            at, size = {8: (2, 32), 9: (4, 32), 15: (4, 256)}[packed_matmul.KINDS[kind][2]]
            blocks = inputs.reshape(9, 3, -1)
            blocks[..., at : at + size] = np.int8(sign).view(np.uint8)
            blocks[..., at + size :] = np.full((9, 3, (blocks.shape[2] - at - size) // 2), 16 * sign, np.int16).view(
                np.uint8
            )
        expected = packed_matmul.matmul(kind, weights, inputs)
        assert np.isfinite(expected).all()
        for name in HERE:
            assert np.array_equal(matmul(name, kind, weights, inputs), expected), name


def test_many_rows() -> None:
    weights, inputs = weights_of(packed_matmul.Q8_0, 33, 64, seed=6), inputs_of(packed_matmul.Q8_0, 300, 64, seed=7)
    expected = packed_matmul.matmul(packed_matmul.Q8_0, weights, inputs)
    for name in HERE:
        assert np.array_equal(matmul(name, packed_matmul.Q8_0, weights, inputs), expected)


def test_an_unknown_type_or_instruction_set_is_refused() -> None:
    out, nothing = ffi.new("float[1]"), ffi.new("uint8_t[64]")
    # ggml_type 0 is F32, which is not packed
    assert lib.rs_matmul(out, nothing, BEST.encode(), 0, nothing, nothing, 1, 1, 1) == lib.RS_BAD_CONFIG
    assert lib.rs_matmul(out, nothing, b"", packed_matmul.Q8_0, nothing, nothing, 1, 1, 1) == lib.RS_BAD_CONFIG
    assert lib.rs_matmul(out, nothing, b"neon", packed_matmul.Q8_0, nothing, nothing, 1, 1, 1) == lib.RS_BAD_CONFIG
    assert not lib.rs_matmul_takes(0) and all(lib.rs_matmul_takes(kind) for kind in packed_matmul.KINDS)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_rows_of_a_cache_give_the_bits_of_the_reference(m: int, n: int, k: int, parts: int, seed: int) -> None:
    rng, k = np.random.default_rng(seed), 16 * k
    a, b = (rng.standard_normal((rows, k)).astype(np.float16) for rows in (m, n))
    expected = packed_matmul.rows_matmul(a, b)
    for name in HERE:
        out = np.full((n, m), np.nan, np.float32)
        bits = [ffi.from_buffer("uint16_t[]", x) for x in (a, b)]
        assert lib.rs_matmul_rows(ffi.from_buffer("float[]", out), name.encode(), bits[0], m, bits[1], n, k, parts) == 0
        assert np.array_equal(out, expected), name
