"""What drafts of each length cost and decide, as known now, and the chance a token needs to be drafted.

With L the rate of tokens to beat (the better of plain decoding and the steps so far), a step of length k is worth
tokens - L seconds, which a renewal process maximizes exactly when L is its best rate. Token i + 1 is drafted while the
chance that tokens 0..i are all accepted reaches

    threshold(i)  =  min over j > i of  L (cost(j) - cost(i)) / (1 + tokens expected from i + 1 to j - 1, given i)

so a step of the cost curve may be climbed if what lies behind it pays. A change of batch size costs extra, now and on
the way back to `home`, the best fixed length, or the longest that may be drafted now. Not a policy:
`adaptive/policy.py` decides. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from refspec.adaptive.base import Rate
from refspec.adaptive.costs import Costs

MOVE = 1.02  # how much better another fixed length must be to move home


class Thresholds(NamedTuple):
    """By token: the chance it needs to be drafted, and the tokens that are then expected, by the best continuation."""

    chance: list[float]
    tokens: list[float]


class Lengths:
    """What steps of each length cost and decide; depth [most]: chances of a token whose predecessors are accepted."""

    def __init__(self, costs: Costs, depth: Sequence[float], home: int, rate: Rate) -> None:
        self._costs = costs
        self._known: dict[tuple[int, int], Thresholds] = {}
        self.cost = [costs.step(k) for k in range(len(depth) + 1)]  # [most + 1] by tokens drafted, the size unchanged
        self.plain, self.drafter, self.depth = costs.plain(), costs.drafter[1], depth  # a plain step, one more token
        self.tokens = list(accumulate(accumulate(depth, mul), initial=1.0))  # [most + 1] expected by tokens drafted
        best = max(range(len(self.cost)), key=self.worth)
        self.home = best if self.worth(best) > MOVE * self.worth(home) else home  # the best fixed length
        self.rate = rate.to_beat(self.tokens[best], self.cost[best] / self.plain) / self.plain  # per second, to beat

    def worth(self, k: int) -> float:
        """Tokens per second of steps that draft k tokens."""
        return self.tokens[k] / self.cost[k]

    def takes(self, before: int, k: int) -> float:
        """Seconds of a step of k drafted tokens after a batch of `before` tokens, 0 for none."""
        return self.cost[k] + self._costs.switch * (before not in (0, k + 1))

    def takes_and_returns(self, before: int, k: int, room: int) -> float:
        """The same with the way back to home; what cannot be drafted now is not gone back to."""
        return self.takes(before, k) + self._costs.switch * (k != min(self.home, room))

    def loss(self, before: int, k: int, room: int) -> float:
        """Tokens that a step of length k is expected to decide less than its time is worth."""
        return self.takes_and_returns(before, k, room) * self.rate - self.tokens[k]

    def thresholds(self, before: int, room: int) -> Thresholds:
        """[room] by the formula in the head of this file; computed once."""
        key = (before, room)
        return self._known.get(key) or self._known.setdefault(key, self._thresholds(*key))

    def _thresholds(self, before: int, room: int) -> Thresholds:
        cost = [self.takes_and_returns(before, k, room) for k in range(room + 1)]
        found = Thresholds([], [])
        for i in range(room):
            least, tokens, more, chance = math.inf, 1.0, 1.0, 1.0
            spent = self.drafter if i else 0.0  # the drafter has run when token i is asked about
            for j in range(i + 1, room + 1):
                if j > i + 1:
                    chance *= self.depth[j - 1]
                    more += chance
                needed = self.rate * (cost[j] - cost[i] - spent) / more
                if needed < least:
                    least, tokens = needed, more
            found.chance.append(least)
            found.tokens.append(tokens)
        return found
