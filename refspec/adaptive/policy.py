"""How many tokens to draft, chosen every step: the length that decides most tokens per second here and now.

A policy without models or clocks: it is told what steps cost and accepted (`learn`), asked how many tokens to draft at
most (`plan`), asked before each of them whether to go on (`stop`), and where to cut what was drafted (`keep`). Or it
lends C what it knows for several steps (`ahead`, native/window.c) and is told what came of them (`went`). It never sees
a coin, so whatever it chooses the text stays lossless, and in the one-coin mode the same.

With L the rate of tokens to beat (the better of plain decoding and the steps so far), a step of length k is worth
tokens - L seconds, which a renewal process maximizes exactly when L is its best rate. Token i + 1 is drafted while the
chance S that tokens 0..i all stand reaches

    threshold(i)  =  min over j > i of  L (cost(j) - cost(i)) / (1 + expected tokens from i + 1 to j - 1, given that i stands)

so a step of the cost curve may be climbed if what lies behind it pays. The drafter runs a row before it can say how
sure it is of token i, so that is asked only if what came of it so far was worth the row, and never where the threshold
is 1 or more. A change of batch size costs extra, now and on the way back to `home`, the best fixed length, or the
longest that may be drafted now. Chances are `adaptive/acceptance_model.py`'s, costs `adaptive/costs.py`'s at the
context of the text so far; what steps gained is kept in plain tokens, which are dearer after a long prompt as steps
are.

Where speculation does not pay, its account turns it off, and until a text has earned more it stakes one token at a time
(`adaptive/budget.py`). Experiments with lengths that are little known are paid from EXPLORE of the tokens decided,
those with known ones by texts that have earned as much. So is a look at what plain decoding costs where nothing else
shows it: a window that takes plain steps for dearer than they are would never turn off, and never find out.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from refspec.adaptive.acceptance_model import EDGES
from refspec.adaptive.base import DISTURBED, DOUBTED, TRIAL, Policy
from refspec.adaptive.budget import CAREFUL, FULL
from refspec.adaptive.costs import Costs
from refspec.decoding.burst import Ahead, Purse
from refspec.native.window import NativeWindow
from refspec.reference.metrics import Step

EXPLORE, SAVED = 0.01, 8.0  # of the tokens decided, and plain tokens at most
REFRESH = 16  # steps between two computations of the thresholds
KNOWN = 3  # observations of a length that make it known, unless the first shows it to be far from the best
ENOUGH, ASKED = 8, 0.02  # askings that make an average, and the weight of a new one in an old average
MOVE = 1.02  # how much better another fixed length must be to move home
# steps after which each length is tried once more that is thought to reach this much of the best one's rate
AGAIN, NEAR = 2000, 0.8
# steps: after a prompt of 1000 tokens the first takes twice what it will, the fifth as long as all that follow
COLD = 6
# steps taken in at once: after a step of half a millisecond the interpreter's own code must be read from memory again
TOGETHER = 4
LOOKED = 8  # of so many steps while off, one whose cost is taken in
# steps without a plain one after which so many are taken, to see what plain decoding costs; twice as many each time, at
# most
LOOK, LOOKS, LOOK_MOST = 64, 3, 1024


class _Told(NamedTuple):
    """A step and what the window thought when it was planned."""

    step: Step
    before: int
    planned: int
    chances: list[float]
    confidences: list[float]
    refused: float | None
    forced: bool
    woke: bool
    cold: bool  # one of the first steps of its text


class Window(Policy):
    """The policy for one pair; keep it from one generation to the next, and call `begin` for each.

    most     the longest draft, 1 or more
    off      speculation is not paying; `plan` gives 0 until the account allows another try
    """

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        super().__init__(most, costs)
        self._explore = 1.0  # plain tokens left for experiments
        self._chances: list[float] = []  # S of the tokens asked about in this step
        self._confidences: list[float] = []
        self._refused: float | None = None  # of the token that ended the draft
        self._limits: list[float] = []
        self._gains: list[float] = []  # tokens expected for one of chance, by the best continuation
        # of token i at 2 i: times asked about it, and the average gain of having asked
        self._surplus = array("d", bytes(16 * most))
        self._c = NativeWindow(
            most,
            EDGES,
            bins=self.belief.bins,
            cells=self.belief.cells,
            depths=self.belief.depths,
            surplus=self._surplus,
        )
        self._known: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
        self._cost: list[float] = []
        self._home, self._guess, self._trial, self._room = 0, 1, TRIAL, most
        self._tried = [KNOWN if self.costs.seen.get(k + 1) else 0 for k in range(most + 1)]
        self._steps = self._unseen = self._looks = 0  # in all, since a plain one, and plain ones to be taken
        self._look = LOOK
        self._untold: list[_Told] = []  # steps not taken in yet
        self.begin()

    def state(self) -> dict[str, Any]:
        """What outlasts a text, for `resumed`."""
        self._take_in()
        return super().state() | {"surplus": list(self._surplus), "tried": self._tried, "steps": self._steps}

    def _resume(self, state: Mapping[str, Any], *, new_costs: bool) -> None:
        surplus, tried = [float(x) for x in state["surplus"]], [int(n) for n in state["tried"]]
        if (len(surplus), len(tried)) != (len(self._surplus), self.most + 1):
            raise ValueError("this window was another one")
        for i, value in enumerate(surplus):  # in place: C reads and writes it too
            self._surplus[i] = value
        if not new_costs:
            self._tried = tried
        self._steps = int(state["steps"])

    def begin(self, held: int = 0) -> None:
        """A new generation after `held` positions: no step came before, and its prompt's rows do not wait."""
        self._take_in()  # of a text that was broken off
        self._held = self.costs.context = held
        self._age = REFRESH  # what steps cost is another matter here
        self._before, self._cold = 0, COLD  # rows of the step before, and steps until the caches are warm
        self._planned, self._forced, self._woke, self._running, self._looks = 0, False, False, False, 0
        self.new_text(held)

    def plan(self, room: int) -> int:
        """The most tokens to draft in this step, at most `room`; 0 verifies the pending token alone."""
        if self.off and not self.may_try():
            self._planned, self._forced, self._woke, self._running = 0, False, False, True
            return 0
        self._chances, self._confidences, self._refused = [], [], None
        self._forced, self._woke, self._running = False, False, True
        room = min(room, self.most)
        self._planned = 0
        if room <= 0 or not self.costs.comparable:
            return 0
        if self.off:
            self.begin_try()
            self._woke, self._trial, self._looks = True, TRIAL, 0
            self.belief.forget(DOUBTED)
        self._room = room = min(room, self._longest)
        if self._age >= REFRESH or not self._cost:
            self._refresh()
        if self._looks or self._look_due():
            self._looks -= 1
            return 0
        self._limits, self._gains = self._for(room, self._before)
        self._planned = self._forced_length(room) or min(self._worth_asking(room), self._hopeful(room))
        return self._planned

    def ahead(self) -> Ahead | None:
        """Steps that may be run without asking; `went` follows. None where the next one has to be planned by itself.

        Asking is dear where a step takes a millisecond or two. While off these are steps of plain decoding, else C ends
        drafts as `stop` and `keep` would, and learns what came of them.
        """
        self._running = True
        if self.off:
            # else what the change of size costs is to be looked at
            steps = self.off_for() if self._before in (0, 1) else 0
            return Ahead(steps) if steps > 1 else None
        if self._c.c is None or self._trial or self._looks or not self.costs.comparable:
            return None
        if self._age >= REFRESH or not self._cost or self._untold:
            self._refresh()
        self._room = self._longest
        if self._look_due():
            looks, self._looks = self._looks, 0
            return Ahead(looks)
        if self._least_tried(self._room):
            return None
        account = Purse(self._plain, self.reserve, self.allowed, CAREFUL, *self.stakes)
        return Ahead(REFRESH - self._age, self._worth_asking(self.most), self._before, self._c.c, account)

    def went(self, steps: Sequence[Step], around: float) -> None:
        """Take in the steps that were run ahead, each of which took refspec `around` seconds more than it says."""
        last = steps[-1]
        # rows of the step before each, and of the last
        before = [self._before, *(len(step.draft) + 1 for step in steps)]
        self._woke, self._forced = False, False
        tokens = [token for step in steps for token in step.tokens]
        self.say(tokens)
        if self.off:
            self._planned, self._cold, look = 0, max(self._cold - len(steps), 0), True
            self.watched(len(tokens))
            self._unseen = 0
        else:
            self._planned = 1
            self._unseen += len(steps)
            for step, rows in zip(steps, before, strict=False):
                k = len(step.draft)
                look = not self._is_cold(k)
                if step.asked:
                    self._count(k, rows, len(step.tokens), step.seconds.total + around, cold=not look, forced=False)
        self._before = before.pop()
        if look:
            kind = len(last.draft), last.asked, before[-1]
            alike = [
                step.seconds
                for step, rows in zip(steps, before, strict=True)
                if (len(step.draft), step.asked, rows) == kind
            ]
            target, drafter = (median(seconds[i] for seconds in alike) for i in (0, 1))
            self.costs.context = self._held + last.position
            self.costs.learn(
                len(last.draft), before[-1], target, drafter if last.asked else None, None, max(last.asked - 1, 0)
            )
        for drafted in (False, True):
            own = [step.seconds.other + around for step in steps if bool(step.draft) == drafted]
            if own:
                self.costs.learn_own(drafted, sum(own) / len(own), len(own))
        self._explore = min(self._explore + EXPLORE * (last.position + len(last.tokens) - steps[0].position), SAVED)
        self._age += len(steps)
        self._steps += len(steps)

    def stop(self, i: int, confidence: float) -> bool:
        """Whether to draft no token i (0 = first), its likeliest candidate having this probability; see `base.Stop`."""
        chance = self.belief.chance(confidence, i) * (self._chances[i - 1] if i else 1.0)
        asked, average = self._surplus[2 * i] + 1, self._surplus[2 * i + 1]
        surplus = max(chance - self._limits[i], 0.0) * self._gains[i]
        self._surplus[2 * i], self._surplus[2 * i + 1] = asked, average + (surplus - average) * max(1 / asked, ASKED)
        if chance < self._limits[i] and not self._forced:
            self._refused = confidence
            return True
        self._chances.append(chance)
        self._confidences.append(confidence)
        return False

    def keep(self, drafted: int) -> int:
        """How many of the drafted tokens to verify:

        fewer where the last ones climbed a step of the cost curve for too little.
        """
        if self._forced or drafted < 2 or drafted > len(self._chances):
            return drafted
        best, value, tokens = 0, -math.inf, 0.0
        for j in range(drafted + 1):
            tokens += self._chances[j - 1] if j else 0.0
            worth = tokens - self._rate * self._cost_after(self._before, j)
            if worth > value:
                best, value = j, worth
        return best

    def learn(self, step: Step) -> None:
        """Take in what a step drafted, accepted and cost; where little is new in it, a few together."""
        self.say(step.tokens)
        if self.off and not self._planned:
            self._watch(step)
            return
        self._untold.append(self._told(step))
        if self._forced or not self._planned or step.stop is not None or len(self._untold) >= TOGETHER:
            self._take_in()

    def _told(self, step: Step) -> _Told:
        """A step that was run, with what was thought of it; the next one follows."""
        cold = self._is_cold(len(step.draft))
        told = _Told(
            step,
            self._before,
            self._planned,
            self._chances,
            self._confidences,
            self._refused,
            self._forced,
            self._woke,
            cold,
        )
        self._before = len(step.draft) + 1
        self._age += 1
        self._steps += 1
        self._unseen += 1
        return told

    @property
    def _longest(self) -> int:
        """The longest draft that may be staked on this text as it is."""
        if not self.careful:
            return self.most
        return self.stakes.length(self._cost, self._plain, self._depth) if self._cost else 1

    def _is_cold(self, k: int) -> bool:
        """Whether a step that drafted k tokens is one of the first of its text; asked once of each."""
        self._cold -= self._cold > 0
        # only what is known can be told from what is seen
        return self._cold > 0 and self.costs.seen.get(k + 1, 0) >= KNOWN

    def _take_in(self) -> None:
        told, self._untold = self._untold, []
        for t in told:
            drafted, tokens, (target, drafter, other) = len(t.step.draft), len(t.step.tokens), t.step.seconds
            if not t.cold and (len(told) < TOGETHER or t is told[-1]):  # of several alike, one cost is enough
                asked = len(t.chances) + (t.refused is not None)
                self.costs.context = self._held + t.step.position
                # What a try asks of drafter and refspec has left the caches meanwhile: it is no part of what steps cost
                # that follow each other.
                tries = t.woke or (t.forced and drafted == 1)
                self.costs.learn(
                    drafted,
                    t.before,
                    target,
                    None if tries else drafter,
                    None if t.forced else other,
                    max(asked - 1, 0),
                )
            self.belief.learn(t.confidences, drafted, t.step.accepted, t.refused)
            if t.planned:
                self._count(drafted, t.before, tokens, t.step.seconds.total, cold=t.cold, forced=t.forced)
            self._explore = min(self._explore + EXPLORE * tokens, SAVED)

    def _count(self, k: int, before: int, tokens: int, seconds: float, *, cold: bool, forced: bool) -> None:
        """A step that drafted k tokens, after one of `before` rows: what it gained.

        The reserve is charged with what it took, but one disturbed step, and the first ones, when the prompt has the
        caches and the graph is new and plain decoding would have been slow as well, with no more than steps take. What
        the text is like is judged by what such steps take, for a machine that becomes slower for a while says nothing
        of it.
        """
        usual = self._takes(before, k)
        took = min(seconds, usual * (1.0 if cold else DISTURBED)) / self._plain
        if forced and k > 1:  # an experiment says little of the text
            self.reserve = min(self.reserve + tokens - took, FULL)
            return
        shown = None
        if k == 1 and self.careful:
            shown = self.stake(tokens > 1, self._cost, self._plain, self._depth) - (usual - self._cost[1]) / self._plain
        self.speculated(tokens, usual / self._plain, took, shown)
        if not forced:
            self._went_at(tokens, seconds / self._plain)

    def _watch(self, step: Step) -> None:
        """A step while off: what it cost is looked at now and then, because looking is a part of it."""
        target, _, other = step.seconds
        self.costs.context = self._held + step.position
        if self._before != 1 or self._steps % LOOKED == 0:
            self.costs.learn(0, self._before, target, None, other)
        self.watched(len(step.tokens))
        self._unseen = 0
        self._explore = min(self._explore + EXPLORE * len(step.tokens), SAVED)
        self._before = 1
        self._age += 1
        self._steps += 1

    def _refresh(self) -> None:
        """Costs, chances by depth and the rate to beat, as they are known now."""
        self._take_in()
        self._age, self._known = 0, {}
        self._cost = [self.costs.step(k) for k in range(self.most + 1)]  # without a change of size
        self._draft, self._plain = self.costs.drafter[1], self.costs.plain()
        self._depth, self._value, chance = self.belief.by_depth(), [1.0], 1.0
        for share in self._depth:
            chance *= share
            self._value.append(self._value[-1] + chance)
        self._guess = max(range(1, self.most + 1), key=self._worth)
        best = max(0, self._guess, key=self._worth)
        if self._worth(best) > MOVE * self._worth(self._home):
            self._home = best
        self._rate = self._rate_with(self._value[best], self._cost[best] / self._plain) / self._plain
        self._c.know(
            self._cost, self._depth, home=self._home, rate=self._rate, change=self.costs.switch, row=self._draft
        )

    def _cost_after(self, before: int, k: int) -> float:
        """What a step takes and the way back will cost; what cannot be drafted now is not gone back to."""
        return self._takes(before, k) + self.costs.switch * (k != min(self._home, self._room))

    def _takes(self, before: int, k: int) -> float:
        """Seconds of a step of k drafted tokens after one of `before` rows, 0 for none."""
        return self._cost[k] + self.costs.switch * (before not in (0, k + 1))

    def _for(self, room: int, before: int) -> tuple[list[float], list[float]]:
        """`_thresholds`, computed once for costs and chances as they are."""
        key = (room, before)
        return self._known.get(key) or self._known.setdefault(key, self._thresholds(*key))

    def _thresholds(self, room: int, before: int) -> tuple[list[float], list[float]]:
        """[room] the chance of standing that token i needs to be drafted, by the formula in the head of this file, and
        the gain.
        """
        cost = [self._cost_after(before, k) for k in range(room + 1)]
        limits, gains = [], []
        for i in range(room):
            least, gain, more, chance = math.inf, 1.0, 1.0, 1.0
            for j in range(i + 1, room + 1):
                if j > i + 1:
                    chance *= self._depth[j - 1]
                    more += chance
                run = self._draft if i else 0.0  # its own row has run when token i is asked about
                limit = self._rate * (cost[j] - cost[i] - run) / more
                if limit < least:
                    least, gain = limit, more
            limits.append(least)
            gains.append(gain)
        return limits, gains

    def _worth_asking(self, room: int) -> int:
        """The longest draft whose every token is worth the row that tells how sure the drafter is of it; 1 at least."""
        price = self._rate * self._draft
        for i in range(max(self._home, 1), room):
            if self._surplus[2 * i] >= ENOUGH and self._surplus[2 * i + 1] < price:
                return i
        return room

    def _hopeful(self, room: int) -> int:
        """The longest draft that could be worth it, were the drafter as sure as can be:

        its next token would have to stand for certain, or more.
        """
        return next((i for i in range(1, room) if self._limits[i] >= 1.0), room)

    def _forced_length(self, room: int) -> int:
        """A length to draft in full, whatever its chances: of a trial, or because too little is known of it;

        0 for none.
        """
        # evidence, or a low belief would never be found wrong; of one token, which costs little where it is right
        if self._trial:
            self._trial -= 1
            self._forced = True
            return 1
        wanted = self._least_tried(room)
        if wanted:
            self._explore -= max(self._loss(wanted), 0.0)
            self._tried[wanted] += 1
            self._forced = True
        return wanted

    def _look_due(self) -> bool:
        """Whether to take plain steps now; it is paid for then."""
        if self._unseen < self._look:
            return False
        # in tokens, the way there and back with it
        loss = (LOOKS * self._cost[0] + 2 * self.costs.switch) * self._rate - LOOKS
        if loss > min(self._explore, self.earned):
            return False
        self._explore -= max(loss, 0.0)
        self._looks, self._unseen, self._look = LOOKS, 0, min(2 * self._look, LOOK_MOST)
        self.costs.doubt(1)
        return True

    def _least_tried(self, room: int) -> int:
        """A length of which too little is known, if it can be afforded; 0 for none."""
        wanted = min(range(1, room + 1), key=self._tried.__getitem__)
        if self._tried[wanted] >= KNOWN + self._steps // AGAIN:
            return 0
        known = self._tried[wanted] >= KNOWN
        seen = self._tried[wanted] and self.costs.seen.get(wanted + 1)
        if seen and self._worth(wanted) < NEAR * max(map(self._worth, range(self.most + 1))):
            # it would have to cost much less than it did
            self._tried[wanted] = self._tried[wanted] + 1 if known else KNOWN
            return 0
        return 0 if self._loss(wanted) > (min(self._explore, self.earned) if known else self._explore) else wanted

    def _worth(self, k: int) -> float:
        """Tokens per second of steps that draft k tokens."""
        return self._value[k] / self._cost[k]

    def _loss(self, k: int) -> float:
        """Tokens that a step of length k is expected to decide less than its time is worth."""
        return self._cost_after(self._before, k) * self._rate - self._value[k]


ChainPolicy = Window
