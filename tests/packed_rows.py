"""Random rows in ggml's formats: any bits for codes, finite scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.reference import packed_matmul

# float16 numbers of a block, at these bytes
SCALES_AT = {2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 12: (0, 2), 13: (0, 2), 14: (208,)}
Q8_1, Q8_K = 9, 15  # types of inputs


def weights_of(kind: int, rows: int, blocks: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """[rows, bytes of a row]; a float16 row has `blocks` numbers."""
    rng = np.random.default_rng(seed)
    if kind == packed_matmul.F16:
        return rng.standard_normal((rows, blocks)).astype(np.float16).view(np.uint8)
    raw = rng.integers(0, 256, (rows, blocks, packed_matmul.KINDS[kind][1]), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        raw[..., at : at + 2] = rng.standard_normal((rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def inputs_of(kind: int, rows: int, blocks: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """[rows, bytes of a row] of the type that inputs are quantized to: codes of -127..127; K types: and their sums."""
    rng, other = np.random.default_rng(seed), packed_matmul.KINDS[kind][2]
    if other == packed_matmul.F16:
        return rng.standard_normal((rows, blocks)).astype(np.float16).view(np.uint8)
    codes = rng.integers(-127, 128, (rows, blocks, 256 if other == Q8_K else 32)).astype(np.int8)
    d = rng.standard_normal((rows, blocks, 1)).astype(np.float32 if other == Q8_K else np.float16)
    parts = [d.view(np.uint8), codes.view(np.uint8)]
    if other == Q8_1:  # the sum of the numbers, rounded; any here, as nothing may depend on it
        parts.insert(1, rng.standard_normal((rows, blocks, 1)).astype(np.float16).view(np.uint8))
    if other == Q8_K:
        parts.append(codes.astype(np.int16).reshape(rows, blocks, 16, 16).sum(-1, dtype=np.int16).view(np.uint8))
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(rows, -1))
