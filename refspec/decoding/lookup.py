"""Prompt lookup: draft what followed the last time the sequence ended like this. No model, no features.

The rule, all of it: of the suffixes of the sequence with `longest`, ..., `shortest` tokens take the longest that
occurred before; of its occurrences take the most recent; draft the tokens that followed it. Where these run into the
end of the sequence the drafted tokens are read on (one that repeats with a period is continued for ever). Nothing is
drafted when no suffix occurred before.

The index holds, for each length n, the place after the most recent occurrence of every n-gram, and is kept as tokens
come: O(longest) per token however long the context is, with a journal so that rolling back is as cheap. An n-gram
enters when its next token is known, so the end of the sequence never finds itself. The drafts are deterministic: no
coin is used, and q_draft is None. Source of the idea: prompt lookup decoding (Saxena 2023). Departure: longest match
first at every step, most recent occurrence.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from refspec.decoding.drafter import Coins
from refspec.errors import ShapeError, UsageError
from refspec.reference.draft import Draft, Stop
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

LONGEST, SHORTEST = 4, 1


class LookupDrafter:
    """Drafts what is there already; `matched` is the length of the suffix the last draft came from, 0 for none."""

    capture_layers: tuple[int, ...] = ()

    def __init__(self, longest: int = LONGEST, shortest: int = SHORTEST) -> None:
        """Raises UsageError unless 1 <= shortest <= longest."""
        if not 1 <= shortest <= longest:
            raise UsageError(f"lookup: matches of {shortest} to {longest} tokens; need 1 <= shortest <= longest")
        self.longest, self.shortest = longest, shortest
        self.seconds = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget every token; the time spent stays counted."""
        self.matched = 0
        self._tokens: list[int] = []
        self._first = 0  # 1 when x_0 is one of the tokens
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token after its most recent occurrence
        self._journal: list[list[tuple[tuple[int, ...], int]]] = []  # per token: the entries it replaced, -1 = was new

    @property
    def n_rows(self) -> int:
        """True rows committed: the tokens after x_0."""
        return len(self._tokens) - self._first

    def begin(self, token: int) -> None:
        """Take x_0; raises ShapeError once a token has come."""
        if self._tokens:
            raise ShapeError("lookup: the first token comes before every row; reset first")
        self._append(int(token))
        self._first = 1

    def extend(self, tokens: Ids, features: Array) -> None:
        """Append tokens [T]; the features are ignored."""
        start = perf_counter()
        for token in np.asarray(tokens).tolist():
            self._append(token)
        self.seconds += perf_counter() - start

    def draft(
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """What followed, up to k tokens. Confidence is a score, no probability: n / (n + 1) for a match of n tokens."""
        if k < 0:
            raise UsageError(f"draft: k = {k} must be >= 0")
        start = perf_counter()
        found = list[int]()
        self.matched, at = self._match()
        score = self.matched / (self.matched + 1)
        for i in range(k if self.matched else 0):
            if stop is not None and stop(i, score):
                break
            j = at + i
            found.append(self._tokens[j] if j < len(self._tokens) else found[j - len(self._tokens)])
        self.seconds += perf_counter() - start
        return Draft(np.array(found, np.int32), None, np.full(len(found), score, np.float32))

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows rows; raises ShapeError unless 0 <= n_rows <= self.n_rows."""
        if not 0 <= n_rows <= self.n_rows:
            raise ShapeError(f"cannot roll the lookup back to {n_rows} rows: it holds {self.n_rows}")
        while self.n_rows > n_rows:
            for key, before in reversed(self._journal.pop()):
                if before < 0:
                    del self._after[key]
                else:
                    self._after[key] = before
            self._tokens.pop()

    def close(self) -> None:
        """Release the tokens held."""
        self.reset()

    def _append(self, token: int) -> None:
        """One token, and the n-grams it follows."""
        tokens, replaced, end = self._tokens, [], len(self._tokens)
        for n in range(self.shortest, min(self.longest, end) + 1):
            key = tuple(tokens[end - n :])
            replaced.append((key, self._after.get(key, -1)))
            self._after[key] = end
        self._journal.append(replaced)
        tokens.append(token)

    def _match(self) -> tuple[int, int]:
        """(tokens matched, index of the token that followed); (0, 0) without a match."""
        tokens, end = self._tokens, len(self._tokens)
        for n in range(min(self.longest, end), self.shortest - 1, -1):
            at = self._after.get(tuple(tokens[end - n :]))
            if at is not None:
                return n, at
        return 0, 0
