"""`refspec/reference/penalties.py` from C, or from there without C, bit for bit: V vocabulary, n tokens of history."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refspec.native.module import ffi, lib
from refspec.reference import penalties as reference
from refspec.reference.penalties import Penalties


class Penalizer:
    """`penalties.penalize` for one Penalties, vocabulary and longest history, with everything C needs prepared once.

    breaks int8 [V] is above 0 for sequence breakers, None if there are none; its entries may change between calls.
    """

    def __init__(
        self, penalties: Penalties, vocab: int, longest: int, breaks: npt.NDArray[np.int8] | None = None
    ) -> None:
        self.penalties, self.breaks = penalties, breaks
        self.c: Any = None
        if lib is None:
            return
        self._floats, self._ints = map(ffi.typeof, ("float[]", "int32_t[]"))
        scratch, lengths = ffi.new("int32_t[]", vocab), ffi.new("int32_t[]", max(longest, 1))
        marks = ffi.NULL if breaks is None else ffi.from_buffer("int8_t[]", breaks)
        buffers = {"breaks": marks, "scratch": scratch, "lengths": lengths}
        self.c = ffi.new("rs_penalties *", _fields(penalties) | buffers)
        self._keep = (scratch, lengths, marks)

    def __call__(self, row: npt.NDArray[np.floating], history: npt.NDArray[np.int32]) -> npt.NDArray[np.floating]:
        """Logits [V] of the token that follows history [n], as a new array; `row` [V] is not changed."""
        if self.c is None or row.dtype != np.float32:
            breaks = () if self.breaks is None else self.breaks[history] > 0
            return reference.penalize(row, history, self.penalties, breaks)
        out = np.array(row)
        lib.rs_penalize(ffi.from_buffer(self._floats, out), ffi.from_buffer(self._ints, history), len(history), self.c)
        return out


def _fields(p: Penalties) -> dict[str, Any]:
    names = (
        "repeat", "presence", "frequency", "dry_multiplier", "dry_base", "repeat_last_n", "dry_allowed_length",
        "dry_last_n", "counting", "dry",
    )  # fmt: skip
    return {name: getattr(p, name) for name in names}
