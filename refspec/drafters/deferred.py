"""DeferredDrafter: rows wait while speculation is off, and run together when it is tried again.

Off, plain decoding must cost what it costs without a drafter, so rows are copied and queued instead of run. The newest BACKLOG rows
are kept: a drafter that missed older ones drafts from a text with a gap, which can cost acceptance and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from refspec.drafters.base import Draft, Drafter, Stop, TreeDrafter
from refspec.drafters.wrapped import WrappedDrafter
from refspec.ops import Array, Ids
from refspec.sampling import Sampler
from refspec.trees.tree import Tree, TreeShape

BACKLOG = 256  # rows


class DeferredDrafter(WrappedDrafter):
    """A Drafter that runs `inner` only when asked to draft, while `waiting()` says so; otherwise row by row as `inner` does."""

    def __init__(self, inner: Drafter, waiting: Callable[[], bool]) -> None:
        super().__init__(inner)
        self.waiting = waiting
        self._queue: deque[tuple[npt.NDArray[np.int32], Array]] = deque()
        self._queued = 0

    @property
    def n_rows(self) -> int:
        """True rows committed or waiting."""
        return self.inner.n_rows + self._queued

    def extend(self, tokens: Ids, features: Array) -> None:
        """Queue rows while waiting, else append what waits and then these."""
        if not self.waiting():
            self._flush()
            self.inner.extend(tokens, features)
            return
        self._queue.append((np.array(tokens, np.int32), np.array(features, np.float32)))  # copies: the target reuses its buffer
        self._queued += len(tokens)
        while self._queued - len(self._queue[0][0]) >= BACKLOG:
            self._queued -= len(self._queue.popleft()[0])

    def draft(
        self, k: int, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Append what waits, then draft."""
        self._flush()
        return self.inner.draft(k, coins=coins, sampler=sampler, stop=stop)

    def draft_tree(
        self, shape: TreeShape, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None
    ) -> Tree:
        """Append what waits, then draft a tree; for an `inner` that can."""
        self._flush()
        return cast(TreeDrafter, self.inner).draft_tree(shape, coins=coins, sampler=sampler)

    def rollback(self, n_rows: int) -> None:
        """Append what waits, then keep the first n_rows true rows."""
        self._flush()
        self.inner.rollback(n_rows)

    def reset(self) -> None:
        """Forget every row."""
        self._queue.clear()
        self._queued = 0
        self.inner.reset()

    def _flush(self) -> None:
        if self._queue:
            tokens, features = (np.concatenate(parts) for parts in zip(*self._queue, strict=True))
            self._queue.clear()
            self._queued = 0
            self.inner.extend(tokens, features)
