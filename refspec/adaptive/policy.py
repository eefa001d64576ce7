"""How many tokens to draft, chosen every step: the length that decides most tokens per second here and now.

A policy without models or clocks. `plan` says how many tokens a step may draft; the plan is asked before each of them
whether to go on (`stop`), and where to cut what was drafted (`keep`); `learn` takes it back with what the step cost and
accepted. It never sees a coin, so the output stays lossless whatever it chooses, and in the one-coin mode the same.

A token is drafted while its chance reaches the threshold of `adaptive/lengths.py`. The drafter runs once more before it
can say how sure it is of token i, so that is asked only if what came of it so far was worth the run, and never where
the threshold is 1 or more. Chances are `adaptive/acceptance_model.py`'s, costs `adaptive/costs.py`'s at the context so
far; what steps gained is kept in plain tokens, which are dearer after a long prompt as steps are.

Where speculation does not pay, the budget turns it off, and until an output has earned more it gets probes only
(`adaptive/budget.py`). Experiments with lengths that are little known are paid from EXPLORE of the tokens decided,
those with known ones by outputs that have earned as much. So is a look at what plain decoding costs where nothing else
shows it: a policy that takes plain steps for dearer than they are would never turn off, and never find out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from refspec.adaptive.acceptance_model import AcceptanceModel
from refspec.adaptive.base import DISTURBED, DOUBTED, TRIAL, Policy
from refspec.adaptive.costs import Costs
from refspec.adaptive.lengths import Lengths
from refspec.reference.metrics import Step

EXPLORE, SAVED = 0.01, 8.0  # of the tokens decided, and plain tokens at most
REFRESH = 16  # steps between two computations of the thresholds
KNOWN = 3  # observations of a length that make it known, unless the first shows it to be far from the best
ENOUGH, ASKED = 8, 0.02  # askings that make an average, and the weight of a new one in an old average
AGAIN, NEAR = 2000, 0.8  # steps after which a length is tried once more that reaches this much of the best one's rate
COLD = 6  # steps: after a prompt of 1000 tokens the first takes twice as long, the fifth no longer than the others
SAMPLED, SAMPLED_OFF = 4, 8  # of so many steps of known lengths, and while off, one whose cost is learned
LOOK, LOOK_MOST = 64, 1024  # steps without a plain one before a look, twice as many each time, and at most
LOOKS = 3  # plain steps of a look


class Phase(Enum):
    """What a step is for."""

    OFF = "off"  # plain decoding, because speculation does not pay
    PLAIN = "plain"  # plain decoding, because nothing may be drafted or nothing is known of costs
    LOOK = "look"  # plain decoding, to see what it costs
    TRIAL = "trial"  # one token, whatever its chance: or a low chance would never be found wrong
    EXPERIMENT = "experiment"  # a length of which too little is known, whatever the chances
    CAREFUL = "careful"  # a probe, because little may be lost
    FULL = "full"  # as many tokens as are worth it


class StepPlan:
    """What one step drafts and what is thought of it; made by `ChainPolicy.plan`.

    phase        what the step is for
    draft        most tokens to draft, 0 for a plain step
    before       tokens of the batch before
    woke         the first step after speculation was off
    confidences  of the tokens that were drafted, as far as they were asked about
    chances      that each of them, and all before it, are accepted
    gains        (token, gain) of each asking
    refused      the confidence of the token before which the draft ended
    """

    def __init__(self, phase: Phase, before: int, draft: int = 0, *, woke: bool = False) -> None:
        self.phase, self.before, self.draft, self.woke = phase, before, draft, woke
        self.chances: list[float] = []
        self.confidences: list[float] = []
        self.gains: list[tuple[int, float]] = []
        self.refused: float | None = None

    def judged_by(self, acceptance: AcceptanceModel, lengths: Lengths, room: int) -> StepPlan:
        """The plan itself, with what `stop` and `keep` need."""
        self._acceptance, self._lengths, self._room = acceptance, lengths, room
        self._thresholds = lengths.thresholds(self.before, room)
        return self

    @property
    def forced(self) -> bool:
        """Whether the draft is for evidence, whatever the chances."""
        return self.phase is Phase.TRIAL or self.phase is Phase.EXPERIMENT

    @property
    def asked(self) -> int:
        """Tokens that the drafter was asked about."""
        return len(self.chances) + (self.refused is not None)

    def stop(self, i: int, confidence: float) -> bool:
        """Whether to draft no token i (0 = first), whose likeliest candidate has this probability; a `draft.Stop`."""
        chance = self._acceptance.chance(confidence, i) * (self.chances[i - 1] if i else 1.0)
        needed = self._thresholds.chance[i]
        self.gains.append((i, max(chance - needed, 0.0) * self._thresholds.tokens[i]))
        if chance < needed and not self.forced:
            self.refused = confidence
            return True
        self.chances.append(chance)
        self.confidences.append(confidence)
        return False

    def keep(self, drafted: int) -> int:
        """How many of the drafted tokens to verify: fewer where the last ones gain less than they cost."""
        if drafted < 2 or self.forced or drafted > len(self.chances):
            return drafted
        best, most, tokens = 0, -math.inf, 0.0
        for k in range(drafted + 1):
            tokens += self.chances[k - 1] if k else 0.0
            worth = tokens - self._lengths.rate * self._lengths.takes_and_returns(self.before, k, self._room)
            if worth > most:
                best, most = k, worth
        return best


class ChainPolicy(Policy):
    """The policy for one pair; keep it from one generation to the next, and call `begin` for each."""

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        super().__init__(most, costs)
        self._lengths: Lengths | None = None
        self._trial, self._looks = TRIAL, 0  # steps left of them
        self._explore = 1.0  # plain tokens left for experiments
        self._tried = [KNOWN if self.costs.seen.get(k + 1) else 0 for k in range(most + 1)]
        self._asked, self._gains = [0] * most, [0.0] * most  # by token: times asked about, and what that gained
        self._steps = self._unseen = 0  # in all, and since a plain one
        self._look = LOOK

    def begin(self, held: int = 0) -> None:
        """A new generation after `held` positions: no step came before, and its prompt is read."""
        super().begin(held)
        self._age, self._cold, self._looks = REFRESH, COLD, 0  # steps since a refresh, and until the caches are warm

    def plan(self, room: int) -> StepPlan:
        """What to draft in this step, at most `room` tokens."""
        self._reading = False
        before, woke, room = self._before, self.off, min(room, self.most)
        if woke and not self.budget.may_try():
            return StepPlan(Phase.OFF, before)
        if room <= 0 or not self.costs.comparable:
            return StepPlan(Phase.OFF if woke else Phase.PLAIN, before)
        if woke:
            self.budget.begin_try()
            self.acceptance.forget(DOUBTED)
            self._trial, self._looks = TRIAL, 0
        careful = self.budget.careful
        if careful:
            room = min(room, self._probe_length())
        lengths = self._lengths
        if lengths is None or self._age >= REFRESH:
            lengths = self._refresh()
        if self._looks or self._look_due(lengths):
            self._looks -= 1
            return StepPlan(Phase.LOOK, before, woke=woke)
        if self._trial:
            self._trial -= 1
            phase, draft = Phase.TRIAL, 1
        elif draft := self._experiment(lengths, room):
            phase = Phase.EXPERIMENT
        else:
            phase, draft = Phase.CAREFUL if careful else Phase.FULL, self._worth_asking(lengths, room)
        return StepPlan(phase, before, draft, woke=woke).judged_by(self.acceptance, lengths, room)

    def learn(self, plan: StepPlan, step: Step) -> None:
        """Take in what a step drafted, accepted and cost."""
        drafted, decided = len(step.draft), len(step.tokens)
        self.budget.say(step.tokens)
        if plan.phase is Phase.OFF:
            self.costs.context = self._held + step.position
            if plan.before != 1 or self._steps % SAMPLED_OFF == 0:
                self.costs.learn(0, plan.before, step.seconds.target, None, step.seconds.other)
            self.budget.watched(decided)
            self._unseen = 0
        else:
            known = self.costs.seen.get(drafted + 1, 0) >= KNOWN
            self._cold = max(self._cold - 1, 0)
            cold = known and self._cold > 0  # only what is known can be told from what is seen
            if not known or (not cold and (plan.forced or not plan.draft or self._steps % SAMPLED == 0)):
                self._learn_costs(plan, step)
            for i, gain in plan.gains:
                self._asked[i] += 1
                self._gains[i] += (gain - self._gains[i]) * max(1 / self._asked[i], ASKED)
            self.acceptance.learn(plan.confidences, drafted, step.accepted, plan.refused)
            if plan.draft:
                self._learn_gain(plan, drafted, decided, step.seconds.total, cold=cold)
            self._unseen += 1
        self._explore = min(self._explore + EXPLORE * decided, SAVED)
        self._before = drafted + 1
        self._age += 1
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """What outlasts an output, for `resumed`."""
        return super().state() | {
            "asked": self._asked, "gains": self._gains, "tried": self._tried, "steps": self._steps,
        }  # fmt: skip

    def _resume(self, state: Mapping[str, Any], *, new_costs: bool) -> None:
        asked, tried = [int(n) for n in state["asked"]], [int(n) for n in state["tried"]]
        gains = [float(x) for x in state["gains"]]
        if (len(asked), len(gains), len(tried)) != (self.most, self.most, self.most + 1):
            raise ValueError("this policy was another one")
        self._asked, self._gains, self._steps = asked, gains, int(state["steps"])
        if not new_costs:
            self._tried = tried

    def _refresh(self) -> Lengths:
        """Costs, chances by depth and the rate to beat, as they are known now."""
        home = self._lengths.home if self._lengths else 0
        self._age, self._lengths = 0, Lengths(self.costs, self.acceptance.by_depth(), home, self.rate)
        return self._lengths

    def _probe_length(self) -> int:
        known = self._lengths
        return self.budget.probe.length(known.cost, known.plain, known.depth) if known else 1

    def _worth_asking(self, lengths: Lengths, room: int) -> int:
        """The longest draft whose every token is worth the drafter's run and could be worth it, were it certain."""
        price = lengths.rate * lengths.drafter
        needed = lengths.thresholds(self._before, room).chance
        for i in range(1, room):
            unpaid = i >= lengths.home and self._asked[i] >= ENOUGH and self._gains[i] < price
            if unpaid or needed[i] >= 1.0:
                return i
        return room

    def _experiment(self, lengths: Lengths, room: int) -> int:
        """A length of which too little is known, if it can be afforded; 0 for none."""
        length = min(range(1, room + 1), key=self._tried.__getitem__)
        tried, worth = self._tried[length], lengths.worth
        if tried >= KNOWN + self._steps // AGAIN:
            return 0
        known = tried >= KNOWN
        seen = tried and self.costs.seen.get(length + 1)
        if seen and worth(length) < NEAR * max(map(worth, range(self.most + 1))):
            self._tried[length] = tried + 1 if known else KNOWN  # it would have to cost much less than it did
            return 0
        loss = lengths.loss(self._before, length, room)
        if loss > (min(self._explore, self.budget.earned) if known else self._explore):
            return 0
        self._explore -= max(loss, 0.0)
        self._tried[length] += 1
        return length

    def _look_due(self, lengths: Lengths) -> bool:
        """Whether to take plain steps now; they are paid for then."""
        if self._unseen < self._look:
            return False
        # in tokens, with the change of size there and back
        loss = (LOOKS * lengths.cost[0] + 2 * self.costs.switch) * lengths.rate - LOOKS
        if loss > min(self._explore, self.budget.earned):
            return False
        self._explore -= max(loss, 0.0)
        self._looks, self._unseen, self._look = LOOKS, 0, min(2 * self._look, LOOK_MOST)
        self.costs.doubt(1)
        return True

    def _learn_costs(self, plan: StepPlan, step: Step) -> None:
        """Of a try, the drafter's seconds and refspec's do not count: their data has left the caches meanwhile."""
        drafted, (target, drafter, other) = len(step.draft), step.seconds
        self.costs.context = self._held + step.position
        drafting = None if plan.woke or (plan.forced and drafted == 1) else drafter
        own, chained = None if plan.forced else other, max(plan.asked - 1, 0)
        self.costs.learn(drafted, plan.before, target, drafting, own, chained)

    def _learn_gain(self, plan: StepPlan, drafted: int, decided: int, seconds: float, *, cold: bool) -> None:
        """What a step that was to draft gained: of the reserve by the clock, of the output by what such steps take."""
        lengths, budget = self._lengths, self.budget
        assert lengths is not None
        plain, usual = lengths.plain, lengths.takes(plan.before, drafted)
        # plain decoding would be slow as well after the prompt, and a slower machine says nothing of the output
        took = min(seconds, usual * (1.0 if cold else DISTURBED)) / plain
        if plan.forced and drafted > 1:
            budget.charge(decided, took)
            return
        shown = None
        if drafted == 1 and budget.careful:
            shown = budget.probe.add(decided > 1, lengths.cost, plain, lengths.depth)
            shown -= (usual - lengths.cost[1]) / plain
        budget.speculated(decided, usual / plain, took, shown)
        if not plan.forced:
            self.rate.add(decided, seconds / plain)
