"""The account that turns speculation off where it does not pay, keeps a cheap watch, and tries again: of chains and of trees.

All in plain tokens: what a step decided, less what plain decoding would have decided in the time that such a step takes, is the step's gain. Four
questions.

Does it pay on this text? Each text has its own answer, and a few steps say little, so they are read against what texts like it gained
(`windows/alike.py`), which a text is thought to be like for as many as PRIOR steps:

    allowance  =  PRIOR usual + g_1 + ... + g_n + DEBT          sums decay by KEEP; usual is taken to be 0..USUAL_MOST

and off where nothing is left of it, or before anything is drafted where usual is below 0. What a step was expected to decide does not count, though it
would be less noise: where a text is hard, what was learned on others expects too much.

How much may be staked? A draft of one token tells as much of a text as a longer one and costs less where it is wrong, so it is one while
the allowance is below CAREFUL.

May it be afforded? `reserve` begins with RESERVE, adds what every step gained by the clock and WATCH of each token decided while off, and turns
speculation off when it is used up, whatever is usual. So a drafter that never pays costs at most RESERVE once and WATCH of the rest.

When again? On a new text at once, where texts like it gained. Otherwise when STAKE has been put aside, and the reserve
holds as much: WATCH of each token decided while off, or EAGER, halved with each try of this text that failed. And as soon as the text begins to repeat
itself (`windows/repeats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refspec.windows.alike import FIRST, Alike
from refspec.windows.repeats import Repeats

PRIOR, DEBT = 10.0, 1.0  # steps that `usual` is worth, plain tokens
CAREFUL = 3.5  # plain tokens
KEEP = 1 - 1 / 96  # of the sums of a text, per step
USUAL_MOST = 0.3  # the most that is believed
RESERVE, FULL = 8.0, 40.0  # plain tokens, to begin with and at most
ROUNDING = 1e-6  # tokens: what is put aside one by one may be there a little sooner than a quotient says
STAKE, WATCH, EAGER = 2.0, 0.015, 0.03  # plain tokens, and shares of those decided
FAILED = 2  # tries, as many as have failed on a text before any where texts like it lost


class Account:
    """off       speculation is not paying, until the account allows another try
    reserve  plain tokens that speculation may still lose
    """

    def __init__(self) -> None:
        self.off, self.reserve = False, RESERVE
        self._alike = Alike()
        self._aside = 0.0
        self._running = False  # the prompt has been read
        self.new_text()

    @property
    def texts(self) -> int:
        """Texts that are remembered."""
        return len(self._alike)

    def account_state(self) -> dict[str, Any]:
        """What outlasts a text, for `resume_account`."""
        return {"reserve": self.reserve, "texts": self._alike.state()}

    def resume_account(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state; ValueError, KeyError or TypeError for a damaged one."""
        self.reserve = min(max(float(state["reserve"]), 0.0), FULL)
        self._alike.resume(state["texts"])

    def new_text(self, held: int = 0) -> None:
        """After `held` positions; what did not pay on one text may on the next."""
        self._held, self._repeats = held, Repeats()
        self._left = self.off, self._aside  # by the text before
        self._begin_again()
        self.expect(math.nan)

    def expect(self, sureness: float) -> None:
        """How sure the drafter was along the end of this text's prompt, which has been read: a mean log probability, nan where it cannot tell."""
        self._alike.begin(self._held, sureness)
        (self.off, self._aside), self._failed = self._left, 0
        if self.usual < 0:
            self.off, self._failed = True, FAILED
        elif self.off and self.reserve >= STAKE:
            self.off, self._aside = False, 0.0

    def _begin_again(self) -> None:
        self._gain = 0.0  # decayed sum over this text, or since the last try
        self._counted = 0

    @property
    def usual(self) -> float:
        """Plain tokens that a step gains on average, of a text like this."""
        return self._alike.usual

    @property
    def allowance(self) -> float:
        """Plain tokens that may be lost before speculation is turned off."""
        return min(self.reserve, PRIOR * min(max(self.usual, 0.0), USUAL_MOST) + self._gain + DEBT)

    @property
    def earned(self) -> float:
        """Plain tokens that this text has gained, since the last try."""
        return max(self._gain, 0.0)

    @property
    def careful(self) -> bool:
        """Whether so little may be lost that a draft should be of one token."""
        return self.allowance < CAREFUL

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

    def speculated(self, decided: float, spent: float, took: float | None = None) -> None:
        """A step that drafted: tokens decided, and what such a step takes in plain tokens; what it took itself, if that differs. May turn speculation off."""
        gain = decided - spent
        self.reserve = min(self.reserve + decided - (spent if took is None else took), FULL)
        self._gain, self._counted = self._gain * KEEP + gain, self._counted + 1
        self._alike.add(gain)
        if self.off:  # already: a step that was planned before
            return
        self.off = self.allowance < 0
        self._failed = self._failed + 1 if self.off else 0 if self._counted > FIRST else self._failed

    def off_for(self) -> int:
        """Tokens to be decided before the next try, unless the text begins to repeat itself; 0 where one is allowed now, or speculation is on."""
        if not self.off:
            return 0
        aside = (STAKE - self._aside) / max(WATCH, self._eager())
        return max(math.ceil(aside - ROUNDING), math.ceil((STAKE - self.reserve) / WATCH - ROUNDING), 0)

    def watched(self, decided: int) -> None:
        """So many tokens decided by one or more steps while off, said already."""
        share = max(WATCH, self._eager() if self.reserve >= STAKE else 0.0)
        self._aside = min(self._aside + share * decided, STAKE)
        self.reserve = min(self.reserve + WATCH * decided, FULL)
        if self.reserve >= STAKE and self._repeats.begun():
            self._aside = STAKE

    def say(self, tokens: Sequence[int]) -> None:
        """Tokens decided, in order: all of a text's."""
        self._repeats.add(tokens)

    def _eager(self) -> float:
        return EAGER / 2 ** max(self._failed - 1, 0)
