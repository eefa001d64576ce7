"""Float32 blocks -> the bytes of a GGUF tensor: values checked, types converted, a block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import CheckpointError, ShapeError

Progress = Callable[[int, int], None]  # told the bytes just written, and the bytes of the whole file

# (stored, written) types that are converted bit by bit, without going through float32
DIRECT = (("bf16", "bf16"), ("f16", "f16"), ("bf16", "f16"))
# The largest magnitude allowed, as 16 bits without their sign, doubled: finite, and for f16 within its range.
_LARGEST = {("bf16", "bf16"): 0xFEFE, ("f16", "f16"): 0xF7FE, ("bf16", "f16"): 0x8EFE}


@cache
def _bf16_as_f16() -> np.ndarray:
    """Every bfloat16 as float16, [65536] by its bits: four times as fast as converting."""
    with np.errstate(over="ignore"):
        return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32).astype(np.float16)


@dataclass(frozen=True)
class Blocks:
    """Given to gguf's writer in place of an array; the writer reads `nbytes`, then calls `tofile`."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: str  # f32, f16, bf16, i64, or one that `quantize` makes
    nbytes: int
    arrays: Iterable[np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray]
    progress: Callable[[int], None] | None = None
    stored: str | None = None  # f16 or bf16: the blocks are its bits, and (stored, type) is in DIRECT

    def tofile(self, file: Any) -> None:
        """Encode and write block by block; `ShapeError` unless the blocks make up the announced shape."""
        rows, shapes = 0, set()
        for array in self.arrays:
            data = self._encode(array)
            shapes.add(array.shape[1:])
            rows += len(array) if array.ndim else 1
            if rows > (self.shape[0] if self.shape else 1) or shapes != {self.shape[1:]}:
                break
            file.write(data.data.cast("B") if data.size else b"")
            if self.progress is not None:
                self.progress(data.nbytes)
        if rows != (self.shape[0] if self.shape else 1) or shapes != {self.shape[1:]}:
            raise ShapeError(f"{self.path}: tensor {self.name!r} has {rows} rows of {shapes}, not {list(self.shape)}")

    def _encode(self, array: np.ndarray) -> np.ndarray:
        if self.stored is not None:
            return self._direct(self.stored, np.ascontiguousarray(array, np.uint16))
        if self.type == "i64":
            return np.ascontiguousarray(array, np.int64)
        array = np.ascontiguousarray(array, np.float32)
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max of an array with a NaN are NaN
            raise self._not_finite()
        if self.type == "f16":
            if max(-low, high) > 65504.0:
                raise self._too_large()
            return array.astype(np.float16)
        if self.type == "bf16":  # to the nearest, ties to even
            bits = array.view(np.uint32)
            rounded = bits >> 16
            rounded &= 1
            rounded += bits
            rounded += 0x7FFF
            rounded >>= 16
            return rounded.astype(np.uint16)
        return array if self.type == "f32" else np.ascontiguousarray(self.quantize(array))

    def _direct(self, stored: str, bits: np.ndarray) -> np.ndarray:
        """16 bits to 16 bits."""
        largest = int((bits << 1).max()) if bits.size else 0  # without the sign
        if largest > _LARGEST[stored, stored]:
            raise self._not_finite()
        if largest > _LARGEST[stored, self.type]:
            raise self._too_large()
        return bits if stored == self.type else np.take(_bf16_as_f16(), bits)

    def _not_finite(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {self.name!r} holds NaN or infinite values; nothing was written")

    def _too_large(self) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.name!r} does not fit f16 (|x| > 65504); use --outtype bf16 or f32")
