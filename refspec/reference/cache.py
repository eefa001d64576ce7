"""The KV cache of one attention layer: append rows, drop the newest ones again.

Not a ring and not paged: row i holds position i, so a rollback forgets everything from one row on.
Shape legend: S rows held, T rows added, Hkv key/value heads, hd head size.
"""

from __future__ import annotations

import numpy as np

from refspec.errors import ShapeError
from refspec.reference.ops import Array


class RowBuffer:
    """A growing float32 array of rows; appending is amortized O(rows), rolling back O(1)."""

    def __init__(self, *row_shape: int) -> None:
        self._data: Array = np.empty((64, *row_shape), dtype=np.float32)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def rows(self) -> Array:
        """The rows held, [S, *row_shape]: a view, valid until the next append."""
        return self._data[: self._n]

    def append(self, rows: Array) -> None:
        """Add rows [T, *row_shape] at the end."""
        end = self._n + len(rows)
        if end > len(self._data):
            grown = np.empty((max(end, 2 * len(self._data)), *self._data.shape[1:]), dtype=np.float32)
            grown[: self._n] = self.rows
            self._data = grown
        self._data[self._n : end] = rows
        self._n = end

    def rollback(self, n: int) -> None:
        """Keep the first n rows; raises ShapeError unless 0 <= n <= len."""
        if not 0 <= n <= self._n:
            raise ShapeError(f"cannot roll back to {n} rows: {self._n} are held")
        self._n = n


class KVCache:
    """Keys (already rotated) and values of S rows, [S, Hkv, hd] each."""

    def __init__(self, n_kv_heads: int, head_dim: int) -> None:
        self._keys = RowBuffer(n_kv_heads, head_dim)
        self._values = RowBuffer(n_kv_heads, head_dim)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Array:
        """[S, Hkv, hd]: a view, valid until the next append."""
        return self._keys.rows

    @property
    def values(self) -> Array:
        """[S, Hkv, hd]: a view, valid until the next append."""
        return self._values.rows

    def append(self, k: Array, v: Array) -> None:
        """Add rows k and v, [T, Hkv, hd] each."""
        self._keys.append(k)
        self._values.append(v)

    def rollback(self, n: int) -> None:
        """Keep the first n rows; raises ShapeError unless 0 <= n <= len."""
        self._keys.rollback(n)
        self._values.rollback(n)
