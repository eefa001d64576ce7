"""Which tokens may come next: those of an automaton, the tokens that end an output, and all within a limit.

An output is a sequence of the language and one end token. A token is allowed if an output can still be completed after
it in the tokens that are left; so what is sampled under the mask always ends, and always matches.

Legend: n allowed tokens.
"""

from __future__ import annotations

import numpy as np

from refspec.errors import UsageError
from refspec.grammar.tokens import DEAD, NEVER, Row, TokenAutomaton, Tokens

ENDED = -2  # the state after an end token


class Constraint:
    """An automaton, the end tokens of a model, and how many tokens an output may have, its end token included."""

    def __init__(self, automaton: TokenAutomaton, ends: Tokens | list[int], limit: int) -> None:
        """UsageError where no output fits into the limit."""
        self.automaton, self.limit = automaton, limit
        self.ends = np.sort(np.asarray(ends, np.int32))
        if not len(self.ends):
            raise UsageError("grammar: the model has no end token, so no output could end")
        self.start = automaton.start
        needed = int(automaton.shortest[self.start]) + 1
        if needed > limit:
            raise UsageError(
                f"grammar: the shortest output that matches has {needed} tokens, its end included, and {limit} are "
                "allowed; raise max_tokens (-n) or the context (-c)"
            )
        finite = automaton.shortest[automaton.shortest != NEVER]
        self._ample = int(finite.max()) + 2  # with so many tokens left no token is too long a way
        self._rows: dict[int, Row] = {}

    def allowed(self, state: int, left: int) -> Row:
        """The tokens that may come where `left` may, this one included; the state after an end token is ENDED."""
        if state == ENDED:
            return Row(self.ends[:0], self.ends[:0])
        row = self._row(state)
        if left >= self._ample:
            return row
        after = np.where(row.next == ENDED, -1, self.automaton.shortest[np.maximum(row.next, 0)])
        fits = after + 2 <= left
        return Row(row.ids[fits], row.next[fits])

    def step(self, state: int, token: int, left: int) -> int:
        """The state after a token, DEAD where it is not allowed."""
        if state < 0:
            return DEAD
        if token in self.ends:
            return ENDED if self.automaton.shortest[state] == 0 and left > 0 else DEAD
        after = self.automaton.step(state, token)
        return after if after != DEAD and self.automaton.shortest[after] + 2 <= left else DEAD

    def forced(self, state: int, left: int) -> list[int]:
        """The tokens that must follow, as long as there is but one that may."""
        found = list[int]()
        while state >= 0:
            row = self.allowed(state, left)
            if len(row.ids) != 1:
                break
            found.append(int(row.ids[0]))
            state, left = int(row.next[0]), left - 1
        return found

    def _row(self, state: int) -> Row:
        """The automaton's row, with the end tokens in a final state."""
        if state not in self._rows:
            row = self.automaton.row(state)
            if self.automaton.shortest[state] == 0:
                ids = np.concatenate([row.ids, self.ends])
                order = np.argsort(ids)
                ended = np.full(len(self.ends), ENDED, np.int32)
                row = Row(ids[order], np.concatenate([row.next, ended])[order])
            self._rows[state] = row
        return self._rows[state]
