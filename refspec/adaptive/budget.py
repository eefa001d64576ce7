"""The budget that turns speculation off where it does not pay, and tries it again: of chains and of trees.

All in plain tokens: what a step decided, less what plain decoding would have decided in the time that such a step
takes, is the step's gain. Four questions.

Does it pay on this output? A few steps say little, so they are read against what outputs after prompts like this one
gained (`adaptive/prompt_prior.py`), which counts as PRIOR steps:

    allowance  =  PRIOR expected + g_1 + ... + g_n + DEBT       sums decay by KEEP; expected is cut to 0..EXPECTED_MOST

Speculation is off where nothing is left of it, and from the beginning where `expected` is below 0. The tokens a step
was expected to decide do not count: where an output is hard, what was learned on others expects too much.

How much may be tried? A draft of one token tells as much of an output as a longer one and costs less where it is wrong,
so it is one while the allowance is below CAREFUL. What counts of such a step is not what it gained but what it shows
that the length that suits the output would gain (`adaptive/probe.py`).

Can it be afforded? `reserve` begins with RESERVE, adds what every step gained by the clock and WATCH of each token
decided while off, and turns speculation off when it is used up, whatever is expected. So a drafter that never pays
costs at most RESERVE once and WATCH of the rest.

When again? At once for a new output, where outputs like it gained. Otherwise when TRY has been saved, WATCH of each
token decided while off, and the reserve holds as much; or when the output repeats itself (`adaptive/repeats.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from refspec.adaptive.probe import KEEP, Probe
from refspec.adaptive.prompt_prior import PromptPrior
from refspec.adaptive.repeats import Repeats

PRIOR, DEBT = 10.0, 1.0  # steps that `expected` is worth, plain tokens
CAREFUL = 3.5  # plain tokens
EXPECTED_MOST = 0.3  # the most that is believed
RESERVE, RESERVE_MOST = 8.0, 40.0  # plain tokens, to begin with and at most
TRY, WATCH = 2.0, 0.015  # plain tokens that a try needs, and the share of those decided that is saved for it


class Budget:
    """`off`: speculation does not pay, until another try is allowed; `reserve`: plain tokens it may still lose."""

    def __init__(self) -> None:
        self.off, self.reserve = False, RESERVE
        self._prior = PromptPrior()
        self._saved = 0.0  # for a try
        self.begin()

    def begin(self, held: int = 0) -> None:
        """A new output after `held` positions: speculation that did not pay on one may pay on the next."""
        self._held, self._repeats = held, Repeats()
        self._left = self.off, self._saved  # by the output before
        self._begin_evidence()
        self.expect(math.nan)

    def expect(self, mean_log_probability: float) -> None:
        """The prompt has been read: the drafter's mean log-probability along its end, nan where it cannot tell."""
        self._prior.begin(self._held, mean_log_probability)
        self.off, self._saved = self._left
        if self.expected < 0:
            self.off = True
        elif self.off and self.reserve >= TRY:
            self.off, self._saved = False, 0.0

    def _begin_evidence(self) -> None:
        self._gain = 0.0  # decayed sum since the output or the last try began: what its steps gained or showed
        self.probe = Probe()

    @property
    def remembered(self) -> int:
        """Outputs that are remembered."""
        return len(self._prior)

    @property
    def expected(self) -> float:
        """Plain tokens that a step gains on average, of an output like this."""
        return self._prior.expected

    @property
    def allowed(self) -> float:
        """Plain tokens that this output may lose, by what it and outputs like it gained."""
        return PRIOR * min(max(self.expected, 0.0), EXPECTED_MOST) + self._gain + DEBT

    @property
    def allowance(self) -> float:
        """Plain tokens that may be lost before speculation is turned off."""
        return min(self.reserve, self.allowed)

    @property
    def earned(self) -> float:
        """Plain tokens that this output has shown itself to gain, since the last try."""
        return max(self._gain, 0.0)

    @property
    def careful(self) -> bool:
        """Whether so little may be lost that a draft should be a probe."""
        return self.allowance < CAREFUL

    def may_try(self) -> bool:
        """Whether enough has been saved for a try, and the reserve can pay for it."""
        return min(self._saved, self.reserve) >= TRY

    def begin_try(self) -> None:
        """On again, and nothing known of what follows."""
        self.off, self._saved = False, 0.0
        self._begin_evidence()

    def speculated(self, decided: float, usual: float, took: float | None = None, shown: float | None = None) -> None:
        """Count a step that drafted: tokens decided in `took` plain tokens' time, where such steps take `usual`.

        `shown` is what it shows of this output, where that is not what it gained. May turn speculation off.
        """
        gain = decided - usual
        self.charge(decided, usual if took is None else took)
        self._gain = self._gain * KEEP + (gain if shown is None else shown)
        self._prior.add(gain)
        self.off = self.off or self.allowance < 0

    def charge(self, decided: float, took: float) -> None:
        """A step that counts in the reserve only, because it says little of the output."""
        self.reserve = min(self.reserve + decided - took, RESERVE_MOST)

    def watched(self, decided: int) -> None:
        """So many tokens decided while off, said already."""
        self._saved = min(self._saved + WATCH * decided, TRY)
        self.reserve = min(self.reserve + WATCH * decided, RESERVE_MOST)
        if self.reserve >= TRY and self._repeats.begun():
            self._saved = TRY

    def say(self, tokens: Sequence[int]) -> None:
        """Tokens decided, in order: all of an output's."""
        self._repeats.add(tokens)

    def state(self) -> dict[str, Any]:
        """What outlasts an output, for `resume`."""
        return {"reserve": self.reserve, "outputs": self._prior.state()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state; ValueError, KeyError or TypeError for a damaged one."""
        self.reserve = min(max(float(state["reserve"]), 0.0), RESERVE_MOST)
        self._prior.resume(state["outputs"])
