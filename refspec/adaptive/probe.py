"""What drafts of one token show of an output: what it would gain by the draft length that suits it.

While little may be lost, a step drafts one token, a probe (`adaptive/budget.py`). On many machines a second token of a
batch is dear and the next ones are cheap, so that drafts of one token gain nothing where drafts of three gain a
quarter: by what the probes themselves gain, such an output would never get longer drafts. But whether a first token is
accepted says what more tokens would have been worth. Let a of n probes be accepted, d_i the chance that token i is
accepted if those before it are, and c_k the cost of a step of k drafted tokens in plain tokens. They show

    shown  =  max over k >= 1 of  a (1 + d_2 + d_2 d_3 + ... + d_2 .. d_k) + n (1 - c_k)

plain tokens; n and a decay by KEEP, as the budget's sums do. What a probe loses is paid all the same: this is evidence,
not income. Where one token is expected to lose on this output and more of them to gain, a probe has more tokens: with
p = (a + GUESSED d_1) / (n + GUESSED), a draft of k gains

    gain(k)  =  1 + p (1 + d_2 + d_2 d_3 + ... + d_2 .. d_k) - c_k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KEEP = 1 - 1 / 96  # of the sums of an output, per step
GUESSED = 4.0  # probes that the chance of all outputs is worth


@dataclass
class Probe:
    """Decayed counts of an output, and what they showed when the last probe was added."""

    probes: float = 0.0
    accepted: float = 0.0
    shown: float = 0.0

    def add(self, accepted: bool, cost: Sequence[float], plain: float, depth: Sequence[float]) -> float:
        """Count one more probe, and what it shows beyond those before it.

        cost [most + 1] seconds of a step by tokens drafted, `plain` of one of plain decoding, chances by depth [most].
        """
        before = self.shown * KEEP
        self.probes, self.accepted = n, a = self.probes * KEEP + 1, self.accepted * KEEP + accepted
        self.shown = max(a * more + n * (1 - cost[k] / plain) for k, more in enumerate(_behind(depth), 1))
        return self.shown - before

    def length(self, cost: Sequence[float], plain: float, depth: Sequence[float]) -> int:
        """How many tokens a probe drafts: one, unless that loses and more gain."""
        p = (self.accepted + GUESSED * depth[0]) / (self.probes + GUESSED)
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
