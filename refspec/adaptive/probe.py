"""What drafts of one token show of a text: what it gains by the length that suits it.

While little may be lost one token at a time is staked (`adaptive/budget.py`). On many machines a second row is dear and
the next ones cheap, so that drafts of one token gain nothing where drafts of three gain a quarter: by what the stakes
themselves gain such a text would never be drafted more of. But whether a first token stands says what more tokens would
have been worth. Of n stakes a stood; with d_i the chance that token i stands if those before it do, and c_k the cost of
a step of k drafted tokens in plain tokens, they show

    shown  =  max over k >= 1 of  a (1 + d_2 + d_2 d_3 + ... + d_2 .. d_k) + n (1 - c_k)

plain tokens. n and a decay by KEEP, as the account's sums do. What a stake loses is paid all the same: this is
evidence, not income. And where one token is expected to lose on this text and more of them to gain, more are staked:
with p = (a + GUESSED d_1) / (n + GUESSED), a draft of k gains

    gain(k)  =  1 + p (1 + d_2 + d_2 d_3 + ... + d_2 .. d_k) - c_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

KEEP = 1 - 1 / 96  # of the sums of a text, per step
GUESSED = 4.0  # stakes that the chance of all texts is worth


class Stakes(NamedTuple):
    """Decayed counts of a text, and what they showed when they were looked at last;

    native/account.c holds the same three.
    """

    staked: float = 0.0
    stood: float = 0.0
    shown: float = 0.0

    def and_one(self, stood: bool, cost: Sequence[float], plain: float, depth: Sequence[float]) -> Stakes:
        """With one more:

        cost [most + 1] seconds of a step by tokens drafted, of one of plain decoding, and chances by depth [most].
        """
        n, a = self.staked * KEEP + 1, self.stood * KEEP + stood
        return Stakes(n, a, max(a * more + n * (1 - cost[k] / plain) for k, more in enumerate(_behind(depth), 1)))

    def length(self, cost: Sequence[float], plain: float, depth: Sequence[float]) -> int:
        """How many tokens to stake: one, unless that loses and more gain."""
        p = (self.stood + GUESSED * depth[0]) / (self.staked + GUESSED)
        best, most = 1, 0.0
        for k, more in enumerate(_behind(depth), 1):
            gain = 1 + p * more - cost[k] / plain
            if k == 1 and gain > 0:
                break
            if gain > most:
                best, most = k, gain
        return best


def _behind(depth: Sequence[float]) -> list[float]:
    """1 + d_2 + ... + d_2 .. d_k for k = 1, 2, ..."""
    sums, more, chance = [], 0.0, 1.0
    for share in (1.0, *depth[1:]):
        chance *= share
        more += chance
        sums.append(more)
    return sums
