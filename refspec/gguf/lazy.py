"""Arrays that stay on disk and are read a few rows at a time, so that no conversion holds a whole file in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 19  # elements read at a time: 1 MiB of 16-bit weights, so that a block stays in the processor's cache


Rows = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Lazy:
    """An array of `shape` whose rows first..last-1 `rows(first, last)` reads; last - first is a multiple of `unit`.

    An array stored as `bits_type` (f16 or bf16) also has `bits(first, last)`: the same rows as stored, in uint16.
    """

    shape: tuple[int, ...]
    rows: Rows
    unit: int = 1
    bits: Rows | None = None
    bits_type: str | None = None

    def blocks(self, *, as_bits: bool = False) -> Iterator[np.ndarray]:
        """All rows in order, a block of about BLOCK elements at a time (at least `unit` rows)."""
        rows = self.bits if as_bits and self.bits is not None else self.rows
        width = max(int(np.prod(self.shape[1:], dtype=np.int64)), 1)
        step = max(BLOCK // width // self.unit, 1) * self.unit
        for first in range(0, self.shape[0], step):
            yield rows(first, min(first + step, self.shape[0]))

    def load(self) -> np.ndarray:
        """The whole array."""
        return self.rows(0, self.shape[0])

    def reordered(self, function: Callable[[np.ndarray], np.ndarray], unit: int) -> Lazy:
        """The array with `function` applied to it, which must only move rows within every `unit` rows."""

        def over(rows: Rows) -> Rows:
            return lambda first, last: function(rows(first, last))

        bits = None if self.bits is None else over(self.bits)
        return Lazy(self.shape, over(self.rows), max(unit, self.unit), bits, self.bits_type)

    def take(self, ids: np.ndarray) -> Lazy:
        """The rows `ids` [D], ascending: neighbours are read together."""

        def over(rows: Rows) -> Rows:
            def taken(first: int, last: int) -> np.ndarray:
                wanted = ids[first:last]
                runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 8) + 1)
                return np.concatenate([rows(int(r[0]), int(r[-1]) + 1)[r - r[0]] for r in runs])

            return taken

        bits = None if self.bits is None else over(self.bits)
        return Lazy((len(ids), *self.shape[1:]), over(self.rows), bits=bits, bits_type=self.bits_type)
