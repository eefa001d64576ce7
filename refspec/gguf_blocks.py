"""Float32 blocks -> the bytes of a GGUF tensor: values checked, types converted, a block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import CheckpointError, ShapeError

Progress = Callable[[int, int], None]  # told how many bytes were just written, and how many there are in all


@dataclass(frozen=True)
class Blocks:
    """What gguf's writer is handed in place of an array: it asks for `nbytes`, then has it write itself."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type: str  # f32, f16, bf16, i64, or one that `quantize` makes
    nbytes: int
    arrays: Iterable[np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray]
    progress: Callable[[int], None] | None = None

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
            raise ShapeError(f"{self.path}: tensor {self.name!r} has {rows} rows of {shapes}, expected {list(self.shape)}")

    def _encode(self, array: np.ndarray) -> np.ndarray:
        if self.type == "i64":
            return np.ascontiguousarray(array, np.int64)
        array = np.ascontiguousarray(array, np.float32)
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN wins both
            raise CheckpointError(f"{self.path}: tensor {self.name!r} holds NaN or infinite values; nothing was written")
        if self.type == "f16":
            if max(-low, high) > 65504.0:
                raise CheckpointError(
                    f"{self.path}: tensor {self.name!r} does not fit f16 (|x| > 65504); use --outtype bf16 or f32"
                )
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
