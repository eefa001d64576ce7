"""The account that turns speculation off where it does not pay, keeps a cheap watch, and tries again: of chains and of trees.

All in plain tokens: what a step decided, less what plain decoding would have decided in its time, is the step's gain. Three questions.

Does it pay on this text? Each text has its own answer, and a few steps say little, so they are read against what other texts were like:

    off where  PRIOR max(usual, 0) + g_1 + ... + g_n  <  -DEBT          sums decay by KEEP

`usual` is the average gain of the first FIRST steps of every text and try, the steps that this rule has hardly chosen yet, those of texts
after prompts of about this length (to a factor of two) counting first: after a long prompt several rows are dearer beside one. What a step was
expected to decide does not count, though it would be less noise: where a text is hard, what was learned on others expects too much.

May it be afforded? `reserve` begins with RESERVE, adds every gain and WATCH of each token decided while off, and turns speculation off
when it is used up, whatever is usual. So a drafter that never pays costs at most RESERVE once and WATCH of the rest.

When again? On a new text at once, where speculation usually pays. Otherwise when STAKE has been put aside, and the reserve
holds as much: WATCH of each token decided while off, or EAGER, halved with each try of this text that failed.
"""

from __future__ import annotations

import math

PRIOR, DEBT = 2.0, 2.0  # steps that `usual` is worth, plain tokens
FIRST = 16  # steps
KEEP, USUAL_KEEP = 1 - 1 / 48, 1 - 1 / 100  # of the sums of a text, and of those of the first steps, per step
USUAL, USUAL_STEPS, USUAL_MOST = 0.1, 20.0, 0.3  # the first guess, the steps it is worth, the most that is believed
RESERVE, FULL = 8.0, 40.0  # plain tokens, to begin with and at most
ROUNDING = 1e-6  # tokens: what is put aside one by one may be there a little sooner than a quotient says
STAKE, WATCH, EAGER = 2.0, 0.015, 0.05  # plain tokens, and shares of those decided


class Account:
    """off       speculation is not paying, until the account allows another try
    reserve  plain tokens that speculation may still lose
    """

    def __init__(self) -> None:
        self.off, self.reserve = False, RESERVE
        self._usual = [USUAL * USUAL_STEPS, USUAL_STEPS]  # decayed sums over first steps: gains, steps
        self._usual_after: dict[int, list[float]] = {}  # the same of texts after prompts of so many binary digits
        self._aside = 0.0
        self._running = False  # the prompt has been read
        self.new_text()

    def new_text(self, held: int = 0) -> None:
        """After `held` positions; what did not pay on one text may on the next."""
        self._failed = 0
        self._alike = self._usual_after.setdefault(held.bit_length(), [0.0, 0.0])
        self._begin_again()
        if self.off and self.usual > 0 and self.reserve >= STAKE:
            self._aside = STAKE

    def _begin_again(self) -> None:
        self._gain = 0.0  # decayed sum over this text, or since the last try
        self._counted = 0

    @property
    def usual(self) -> float:
        """Plain tokens that a first step gains on average, of a text like this."""
        gains, steps = self._usual
        like, n = self._alike
        return (like + USUAL_STEPS * gains / steps) / (n + USUAL_STEPS)

    @property
    def allowance(self) -> float:
        """Plain tokens that may be lost before speculation is turned off."""
        return min(self.reserve, PRIOR * min(max(self.usual, 0.0), USUAL_MOST) + self._gain + DEBT)

    def waiting(self) -> bool:
        """Whether the drafter's rows may wait: speculation is off, and the prompt has been read."""
        return self.off and self._running

    def may_try(self) -> bool:
        """Whether enough has been put aside for a try, and the reserve can pay for it."""
        return min(self._aside, self.reserve) >= STAKE

    def begin_try(self) -> None:
        """On again, and nothing known of what follows."""
        self.off, self._aside = False, 0.0
        self._begin_again()

    def speculated(self, decided: float, spent: float) -> None:
        """A step that drafted: tokens decided, and what it took in plain tokens; may turn speculation off."""
        gain = decided - spent
        self.reserve = min(self.reserve + gain, FULL)
        self._gain, self._counted = self._gain * KEEP + gain, self._counted + 1
        if self._counted <= FIRST:
            for sums in (self._usual, self._alike):
                sums[:] = sums[0] * USUAL_KEEP + gain, sums[1] * USUAL_KEEP + 1
        if self.off:  # already: a step that was planned before
            return
        self.off = self.allowance < 0
        self._failed = self._failed + 1 if self.off else 0 if self._counted > FIRST else self._failed

    def off_for(self) -> int:
        """Tokens that are sure to be decided before the next try; 0 where one is allowed now, or speculation is on."""
        if not self.off:
            return 0
        aside = (STAKE - self._aside) / max(WATCH, self._eager())
        return max(math.ceil(aside - ROUNDING), math.ceil((STAKE - self.reserve) / WATCH - ROUNDING), 0)

    def watched(self, decided: int) -> None:
        """One or more steps while off."""
        share = max(WATCH, self._eager() if self.reserve >= STAKE else 0.0)
        self._aside = min(self._aside + share * decided, STAKE)
        self.reserve = min(self.reserve + WATCH * decided, FULL)

    def _eager(self) -> float:
        return EAGER / 2 ** max(self._failed - 1, 0)
