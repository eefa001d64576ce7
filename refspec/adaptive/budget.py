"""The account that turns speculation off where it does not pay, keeps a cheap watch, and tries again: of chains and of
trees.

All in plain tokens: what a step decided, less what plain decoding would have decided in the time that such a step
takes, is the step's gain. Four questions.

Does it pay on this text? Each text has its own answer, and a few steps say little, so they are read against what texts
like it gained (`adaptive/prompt_prior.py`), which a text is thought to be like for as many as PRIOR steps:

    allowance  =  PRIOR usual + g_1 + ... + g_n + DEBT          sums decay by KEEP; usual is taken to be 0..USUAL_MOST

and off where nothing is left of it, or before anything is drafted where usual is below 0. What a step was expected to
decide does not count, though it would be less noise: where a text is hard, what was learned on others expects too much.

How much may be staked? A draft of one token tells as much of a text as a longer one and costs less where it is wrong,
so it is one while the allowance is below CAREFUL. What counts of such a step is not what it gained but what it shows
that the length that suits the text would have (`adaptive/probe.py`, which also says where one token is no stake because
more are expected to gain and one to lose).

May it be afforded? `reserve` begins with RESERVE, adds what every step gained by the clock and WATCH of each token
decided while off, and turns speculation off when it is used up, whatever is usual. So a drafter that never pays costs
at most RESERVE once and WATCH of the rest.

When again? On a new text at once, where texts like it gained. Otherwise when STAKE has been put aside, WATCH of each
token decided while off, and the reserve holds as much. And as soon as the text begins to repeat itself
(`adaptive/repeats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refspec.adaptive.probe import KEEP, Stakes
from refspec.adaptive.prompt_prior import Alike
from refspec.adaptive.repeats import Repeats

PRIOR, DEBT = 10.0, 1.0  # steps that `usual` is worth, plain tokens
CAREFUL = 3.5  # plain tokens
USUAL_MOST = 0.3  # the most that is believed
RESERVE, FULL = 8.0, 40.0  # plain tokens, to begin with and at most
ROUNDING = 1e-6  # tokens: what is put aside one by one may be there a little sooner than a quotient says
STAKE, WATCH = 2.0, 0.015  # plain tokens, and a share of those decided


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

    @property
    def remembered(self) -> int:
        """Outputs that are remembered."""
        return self.texts

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
        """How sure the drafter was along the end of this text's prompt, which has been read:

        a mean log probability, nan where it cannot tell.
        """
        self._alike.begin(self._held, sureness)
        self.off, self._aside = self._left
        if self.usual < 0:
            self.off = True
        elif self.off and self.reserve >= STAKE:
            self.off, self._aside = False, 0.0

    def _begin_again(self) -> None:
        # decayed sum over this text, or since the last try: what its steps gained, or what they showed it to gain
        self._gain = 0.0
        self.stakes = Stakes()

    @property
    def usual(self) -> float:
        """Plain tokens that a step gains on average, of a text like this."""
        return self._alike.usual

    @property
    def allowed(self) -> float:
        """Plain tokens that this text may lose, by what it and texts like it gained."""
        return PRIOR * min(max(self.usual, 0.0), USUAL_MOST) + self._gain + DEBT

    @property
    def allowance(self) -> float:
        """Plain tokens that may be lost before speculation is turned off."""
        return min(self.reserve, self.allowed)

    @property
    def earned(self) -> float:
        """Plain tokens that this text has shown itself to gain, since the last try."""
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

    def speculated(self, decided: float, spent: float, took: float | None = None, shown: float | None = None) -> None:
        """A step that drafted: tokens decided, and what such a step takes in plain tokens; what it took itself, if that
        differs, and what it shows that such steps would gain on this text, if that is not what it gained. May turn
        speculation off."""
        gain = decided - spent
        self.reserve = min(self.reserve + decided - (spent if took is None else took), FULL)
        self._gain = self._gain * KEEP + (gain if shown is None else shown)
        self._alike.add(gain)
        self.off = self.off or self.allowance < 0

    def stake(self, stood: bool, cost: Sequence[float], plain: float, depth: Sequence[float]) -> float:
        """What more is shown of this text by a draft of one token; see `stakes.Stakes.and_one`."""
        before, self.stakes = self.stakes.shown * KEEP, self.stakes.and_one(stood, cost, plain, depth)
        return self.stakes.shown - before

    def off_for(self) -> int:
        """Tokens to be decided before the next try, unless the text begins to repeat itself;

        0 where one is allowed now, or speculation is on.
        """
        if not self.off:
            return 0
        return max(math.ceil((STAKE - min(self._aside, self.reserve)) / WATCH - ROUNDING), 0)

    def watched(self, decided: int) -> None:
        """So many tokens decided by one or more steps while off, said already."""
        self._aside = min(self._aside + WATCH * decided, STAKE)
        self.reserve = min(self.reserve + WATCH * decided, FULL)
        if self.reserve >= STAKE and self._repeats.begun():
            self._aside = STAKE

    def say(self, tokens: Sequence[int]) -> None:
        """Tokens decided, in order: all of a text's."""
        self._repeats.add(tokens)
