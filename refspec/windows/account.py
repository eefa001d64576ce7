"""The account that turns speculation off where it does not pay, keeps a cheap watch, and tries again: of chains and of trees.

In units of plain tokens. A step adds the tokens it was expected to decide (less noise than those it did) and pays what it took, in
tokens that plain decoding would have decided meanwhile. At zero speculation goes off. Off, the account gains WATCH of each token decided;
at STAKE one more try is made, and at half of it where a new text begins, since what did not pay on one may on the next. A second
account, with RESERVE to begin with, adds the tokens really decided: were the chances wrong, it ends the losses. A drafter that never pays
thus costs at most RESERVE tokens once and 2 WATCH of the rest.
"""

from __future__ import annotations

START, RESERVE, STAKE, CAP = 4.0, 8.0, 2.0, 12.0  # plain tokens
WATCH = 0.015  # of the tokens decided


class Account:
    """off       speculation is not paying, until the account allows another try
    account  plain tokens that speculation may still lose by expectation; `reserve` by what really was decided
    """

    def __init__(self) -> None:
        self.off, self.account, self.reserve = False, START, RESERVE
        self._running = False  # the prompt has been read

    def new_text(self) -> None:
        """What did not pay on one text may on the next: half a stake is enough for a try."""
        if self.off and 2 * min(self.account, self.reserve) >= STAKE:
            self.account, self.reserve = max(self.account, STAKE), max(self.reserve, STAKE)

    def waiting(self) -> bool:
        """Whether the drafter's rows may wait: speculation is off, and the prompt has been read."""
        return self.off and self._running

    @property
    def may_try(self) -> bool:
        """Whether there is enough for a try."""
        return min(self.account, self.reserve) >= STAKE

    def speculated(self, expected: float, decided: int, spent: float) -> None:
        """A step that drafted: tokens expected and decided, and what it took in plain tokens; may turn speculation off."""
        self.account = min(self.account + expected - spent, CAP)
        self.reserve = min(self.reserve + decided - spent, CAP)
        self.off = min(self.account, self.reserve) < 0

    def watched(self, decided: int) -> None:
        """A step while off."""
        self.account = min(self.account + WATCH * decided, CAP)
        self.reserve = min(self.reserve + WATCH * decided, CAP)
