"""Matrix multiplication with quantized weights whose result for a row of inputs does not depend on the other rows.

The reference of the C kernels in native/packed_*.c; not a quantizer. A weight is d * scale * code - dmin * min with
integers for code, scale and min; an input is d' * code'. Within a block the sum of code * code' * scale is an integer
and thus exact. Blocks are added one after the other in float32, nothing fused. So the file's blocks fix the order of
every sum, and neither the instruction set nor the number of rows changes a bit. (llama.cpp uses one function for a
single row and others for several, each with its own order.)

Source of the block formats: ggml-common.h of llama.cpp. Legend: M rows of weights, N rows of inputs, B blocks of a row,
G groups of a block with a scale each, E numbers of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.errors import ShapeError
from refspec.reference.ops import Array

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]

# ggml_type -> (numbers in a block, bytes of a block, ggml_type that its inputs are quantized to)
KINDS = {
    1: (1, 2, 1), 2: (32, 18, 8), 3: (32, 20, 9), 6: (32, 22, 8), 7: (32, 24, 9), 8: (32, 34, 8),
    12: (256, 144, 15), 13: (256, 176, 15), 14: (256, 210, 15),
}  # fmt: skip
F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = KINDS
CHUNK = 512  # float16 numbers that are summed together; the sums of the chunks are then added
LANES = 16
INPUT_BYTES = {1: 2, 8: 34, 9: 36, 15: 292}  # ggml_type of inputs -> bytes of a block


class Blocks(NamedTuple):
    """Unpacked weights: d * scales * codes - dmin * mins."""

    d: Array  # [M, B]
    codes: Whole  # [M, B, G, E], signed
    scales: Whole  # [M, B, G]
    dmin: Array | None = None  # [M, B]
    mins: Whole | None = None  # [M, B, G]


def matmul(kind: int, weights: Bytes, inputs: Bytes) -> Array:
    """weights [M, bytes of a row] of the ggml_type `kind`, inputs [N, bytes of a row] of its input type -> [N, M]."""
    _, nbytes, inputs_kind = KINDS[kind]
    blocks = weights.shape[1] // nbytes
    if weights.shape[1] % nbytes or inputs.shape[1] != blocks * INPUT_BYTES[inputs_kind]:
        raise ShapeError(f"weights and inputs: rows of {weights.shape[1]} and {inputs.shape[1]} bytes differ in width")
    if kind == F16:
        x, y = weights.view(np.float16).astype(np.float32), inputs.view(np.float16).astype(np.float32)
        chunks = [slice(i, i + CHUNK) for i in range(0, blocks, CHUNK)]
        return _in_turn(np.stack([_halves(x[:, s], y[:, s]) for s in chunks], axis=-1))
    w = unpack(kind, weights.reshape(len(weights), blocks, nbytes))
    d, codes = _inputs(inputs_kind, inputs.reshape(len(inputs), blocks, -1))
    codes = codes.reshape(*codes.shape[:2], *w.codes.shape[2:])
    sums = np.einsum("mbge,nbge,mbg->nmb", w.codes, codes, w.scales).astype(np.float32)
    terms = w.d[None] * d[:, None] * sums
    if w.dmin is None or w.mins is None:
        return _in_turn(terms)
    offsets = np.einsum("nbge,mbg->nmb", codes, w.mins).astype(np.float32)
    return _in_turn(np.stack([terms, -(w.dmin[None] * d[:, None] * offsets)], axis=-1).reshape(*terms.shape[:2], -1))


def rows_matmul(keys: Array, rows: Array) -> Array:
    """keys [M, K] and rows [N, K], both float16, K a multiple of LANES -> [N, M], as attention needs it.

    Products are exact in float32. Numbers k, k + LANES, k + 2 LANES, ... are summed in turn, and the LANES sums in
    halves: the first and the second half are added, then the halves of that.
    """
    products = rows.astype(np.float32)[:, None] * keys.astype(np.float32)[None]  # [N, M, K]
    sums = _in_turn(np.moveaxis(products.reshape(*products.shape[:2], -1, LANES), 2, -1))  # [N, M, LANES]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def _halves(x: Array, y: Array) -> Array:
    """x [M, K], y [N, K] -> [N, M]: even and odd numbers are summed apart; each single product is exact."""
    even, odd = (_in_turn(x[None, :, i::2] * y[:, None, i::2]) for i in (0, 1))
    return even + odd


def _in_turn(terms: Array) -> Array:
    """The sum over the last axis, one term after the other."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for i in range(terms.shape[-1]):
        total += terms[..., i]
    return total


def _inputs(kind: int, raw: Bytes) -> tuple[Array, Whole]:
    """d [N, B] and codes [N, B, numbers of a block] of Q8_0, Q8_1 (whose rounded sum is not used) or Q8_K."""
    at, size = {8: (2, 32), 9: (4, 32), 15: (4, 256)}[kind]
    d = raw[..., :4].copy().view(np.float32)[..., 0] if kind == 15 else _half(raw, 0)
    return d, raw[..., at : at + size].view(np.int8).astype(np.int64)


def _half(raw: Bytes, at: int) -> Array:
    """The float16 at byte `at` of every block."""
    return raw[..., at : at + 2].copy().view(np.float16)[..., 0].astype(np.float32)


def unpack(kind: int, raw: Bytes) -> Blocks:
    """Blocks [M, B, bytes of a block] of the quantized type `kind`, unpacked."""
    m, b = raw.shape[:2]

    def whole(x: npt.NDArray[np.integer], groups: int = 1) -> Whole:
        return x.astype(np.int64).reshape(m, b, groups, -1)

    ones = np.ones((m, b, 1), np.int64)
    if kind == Q8_0:
        return Blocks(_half(raw, 0), whole(raw[..., 2:].view(np.int8)), ones)
    if kind in (Q4_0, Q4_1, Q5_0, Q5_1):  # low halves of the last 16 bytes are the first 16 numbers
        four = np.concatenate([raw[..., -16:] & 15, raw[..., -16:] >> 4], -1)
        if kind in (Q5_0, Q5_1):  # the fifth bits of all numbers are one little-endian word before them
            four = four | np.unpackbits(raw[..., -20:-16], axis=-1, bitorder="little") << 4
        if kind in (Q4_0, Q5_0):
            return Blocks(_half(raw, 0), whole(four) - (8 if kind == Q4_0 else 16), ones)
        return Blocks(_half(raw, 0), whole(four), ones, -_half(raw, 2), ones)
    if kind == Q6_K:  # two halves of 128 numbers: 4 bits of them in `low`, 2 in `high`
        low, high = raw[..., :128].reshape(m, b, 2, 2, 32), raw[..., 128:192].reshape(m, b, 2, 1, 32)
        four = np.concatenate([low & 15, low >> 4], axis=3)  # [M, B, 2, 4, 32]
        two = high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        scales = raw[..., 192:208].view(np.int8).astype(np.int64)
        return Blocks(_half(raw, 208), whole(four | two << 4, 16) - 32, scales)
    low = raw[..., 48 if kind == Q5_K else 16 :].reshape(m, b, 4, 32)
    codes = np.stack([low & 15, low >> 4], axis=3).reshape(m, b, 8, 32)
    if kind == Q5_K:
        codes = codes | (raw[..., 16:48].reshape(m, b, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    s = raw[..., 4:16].astype(np.int64)  # 8 scales and 8 minima of 6 bits each, in 12 bytes
    scales = np.concatenate([s[..., :4] & 63, s[..., 8:] & 15 | s[..., :4] >> 6 << 4], -1)
    mins = np.concatenate([s[..., 4:8] & 63, s[..., 8:] >> 4 | s[..., 4:8] >> 6 << 4], -1)
    return Blocks(_half(raw, 0), whole(codes, 8), scales, _half(raw, 2), mins)
