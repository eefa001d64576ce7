"""Arrays that stay on disk until a few of their rows are wanted, so that a file is converted without being held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 18  # elements read at a time: 1 MiB as float32, so that a block stays in the processor's cache


@dataclass(frozen=True)
class Lazy:
    """An array of `shape` whose rows first..last-1 are made by `rows(first, last)`; last - first is a multiple of `unit`."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    unit: int = 1

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in order, a block of about BLOCK elements at a time (at least `unit` rows)."""
        width = max(int(np.prod(self.shape[1:], dtype=np.int64)), 1)
        step = max(BLOCK // width // self.unit, 1) * self.unit
        for first in range(0, self.shape[0], step):
            yield self.rows(first, min(first + step, self.shape[0]))

    def load(self) -> np.ndarray:
        """The whole array."""
        return self.rows(0, self.shape[0])

    def map(self, function: Callable[[np.ndarray], np.ndarray], unit: int = 1) -> Lazy:
        """The array with `function` applied to every block of whole multiples of `unit` rows; the shape stays."""
        return Lazy(self.shape, lambda first, last: function(self.rows(first, last)), max(unit, self.unit))

    def take(self, ids: np.ndarray) -> Lazy:
        """The rows `ids` [D], ascending: neighbours are read together."""

        def rows(first: int, last: int) -> np.ndarray:
            wanted = ids[first:last]
            runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 8) + 1)
            return np.concatenate([self.rows(int(r[0]), int(r[-1]) + 1)[r - r[0]] for r in runs])

        return Lazy((len(ids), *self.shape[1:]), rows)
