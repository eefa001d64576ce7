"""DeferredDrafter: rows wait while speculation is off, and run together when it is tried again.

Off, plain decoding must cost what it costs without a drafter, so rows are copied and queued instead of run. The newest
BACKLOG rows are kept: a drafter that missed older ones drafts from a sequence with a gap, which can cost acceptance
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from refspec.decoding.drafter import Coins, Drafter, TreeDrafter
from refspec.decoding.wrapped import WrappedDrafter
from refspec.reference.draft import Draft, Stop
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree, TreeShape
from refspec.reference.tree_grow import More

BACKLOG = 256  # rows


class DeferredDrafter(WrappedDrafter):
    """A Drafter that runs `inner` only when asked to draft, while `waiting()` says so; else row by row."""

    def __init__(self, inner: Drafter, waiting: Callable[[], bool]) -> None:
        super().__init__(inner)
        self.waiting = waiting
        # Rows that wait, oldest first, in buffers that are made once: a step that decodes plainly should cost no more
        # than that.
        self._tokens = np.empty(2 * BACKLOG, np.int32)
        self._features: Array = np.empty((0, 0), np.float32)  # [2 * BACKLOG, W] once a row has come
        self._queued = 0

    @property
    def n_rows(self) -> int:
        """True rows committed or waiting."""
        return self.inner.n_rows + min(self._queued, BACKLOG)

    def extend(self, tokens: Ids, features: Array) -> None:
        """Queue rows while waiting, else append what waits and then these."""
        if not self.waiting():
            self._flush()
            self.inner.extend(tokens, features)
            return
        tokens, features = tokens[-BACKLOG:], features[-BACKLOG:]
        first, n = self._queued, len(tokens)
        if len(self._features) == 0:
            self._features = np.empty((2 * BACKLOG, features.shape[1]), np.float32)
        if first + n > 2 * BACKLOG:  # only the newest are wanted
            for rows in (self._tokens, self._features):
                rows[:BACKLOG] = rows[first - BACKLOG : first]
            first = BACKLOG
        self._tokens[first : first + n], self._features[first : first + n] = tokens, features
        self._queued = first + n

    def survey(self, tokens: Ids, features: Array) -> float:
        """Append what waits, then these, waiting or not; how sure `inner` is of them, if it can tell."""
        self._flush()
        return super().survey(tokens, features)

    def draft(
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Append what waits, then draft."""
        self._flush()
        return self.inner.draft(k, coins=coins, sampler=sampler, stop=stop)

    def draft_tree(
        self, shape: TreeShape, *, coins: Coins | None = None, sampler: Sampler | None = None, more: More | None = None
    ) -> Tree:
        """Append what waits, then draft a tree; for an `inner` that can."""
        self._flush()
        return cast(TreeDrafter, self.inner).draft_tree(shape, coins=coins, sampler=sampler, more=more)

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows; rows that wait are not run for that, unless some were missed."""
        waiting = n_rows - self.inner.n_rows
        if 0 <= waiting <= self._queued <= BACKLOG:
            self._queued = waiting
            return
        if waiting >= 0:
            self._flush()
        self._queued = 0
        self.inner.rollback(n_rows)

    def reset(self) -> None:
        """Forget every row."""
        self._queued = 0
        self.inner.reset()

    def _flush(self) -> None:
        if self._queued:
            newest = slice(max(self._queued - BACKLOG, 0), self._queued)
            self._queued = 0
            self.inner.extend(self._tokens[newest], self._features[newest])
