"""How many nodes of a draft tree to verify, chosen every step: those that decide most tokens per second here and now.

A policy like `adaptive/policy.py`, without models, clocks or coins, and lossless for the same reason: the nodes
verified are decided from past steps and the drafter's confidences before this step's coin is drawn. With L the rate of
tokens to beat (the better of plain decoding and the steps so far) and v_1 >= v_2 >= ... the chances that the nodes of
the tree stand,

    nodes verified  =  argmax over n of  1 + v_1 + ... + v_n  -  L (cost(n + 1 rows) + switch if that changes the batch size)

where a size that was seen once or twice is hoped to cost no more than its neighbours say, or one disturbed step would
keep trees small for good.

v is the product along a node's path of the drafter's confidences, calibrated on what was accepted
(`adaptive/acceptance_model.py`): a child is never worth more than its parent, so the best n form a tree. What is worth
less than a row can cost is not even grown (`floor`), nor is a level after one of which no node would be verified
(`more`), for each costs a run of the drafter. Costs are `adaptive/costs.py`'s, with the levels the drafter ran in place
of a chain's tokens; the account is `adaptive/budget.py`'s, and while it is careful a tree has one node.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from refspec.adaptive.base import DISTURBED, DOUBTED, TRIAL, Policy
from refspec.adaptive.costs import Costs
from refspec.reference.metrics import Step
from refspec.reference.tree import ROOT, Tree, empty_tree

DOUBT = 0.5  # of the floor: the drafter's confidences, by which a tree is grown, are not calibrated


class TreeWindow(Policy):
    """The policy for one pair; keep it from one generation to the next, and call `begin` for each.

    most     the most nodes, 1 or more
    off      speculation is not paying; `plan` gives 0 until the account allows another try
    """

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        super().__init__(most, costs)
        self._trial = TRIAL
        self.begin()

    def begin(self, held: int = 0) -> None:
        """A new generation after `held` positions: no step came before, and its prompt's rows do not wait."""
        self._held = self.costs.context = held
        self._before = 0  # rows of the step before
        self._planned, self._woke, self._running = False, False, False
        self._tree, self._levels = empty_tree(), 0
        self.new_text(held)

    @property
    def rate(self) -> float:
        """Tokens per second to beat."""
        return self._rate_with(1.0, 1.0) / self.costs.plain()

    def plan(self, room: int) -> int:
        """The most nodes to grow in this step, at most `room`; 0 verifies the pending token alone."""
        self._planned, self._woke, self._running = False, False, True
        self._tree, self._levels = empty_tree(), 0
        room = min(room, self.most)
        if room <= 0 or not self.costs.comparable:
            return 0
        if self.off:
            if not self.may_try():
                return 0
            self.begin_try()
            self._woke, self._trial = True, TRIAL
            self.belief.forget(DOUBTED)
        self._planned = True
        return 1 if self.careful else room

    def floor(self) -> float:
        """The draft probability below which a node is not worth a row, however cheap the row."""
        if self._trial:  # evidence, or a low belief would never be found wrong
            return 0.0
        least = min(self.costs.target(r + 1) - self.costs.target(r) for r in range(1, self.most + 1))
        return min(max(DOUBT * self.rate * least, 0.0), 1.0)

    def more(self, tree: Tree) -> bool:
        """Whether a tree that was grown so far should get another level."""
        if self._trial:
            return True
        depths = tree.depths()
        return int(depths[self._best(tree)].max(initial=0)) == int(depths.max(initial=0))

    def keep(self, tree: Tree) -> Tree:
        """The part of a grown tree that is worth verifying."""
        if not self._planned:
            return tree
        self._levels = tree.height
        best = self._best(tree)
        self._trial = max(self._trial - 1, 0)
        self._tree = tree.keep(best)
        return self._tree

    def _best(self, tree: Tree) -> list[int]:
        """The nodes that are worth verifying, in order; one at least in a trial."""
        chances, depths, rate = self._chances(tree), tree.depths().tolist(), self.rate
        order = sorted(range(len(chances)), key=lambda i: (-chances[i], depths[i], i))
        best, value, tokens = 0, -math.inf, 1.0
        for n in range(len(order) + 1):
            tokens += chances[order[n - 1]] if n else 0.0
            worth = tokens - rate * (self.costs.hoped(n + 1) + self._change(n + 1))
            if worth > value and not (self._trial and n == 0 and order):
                best, value = n, worth
        return sorted(order[:best])

    def learn(self, step: Step, path: Sequence[int]) -> None:
        """Take in what a step verified, accepted (`path`, nodes of what `keep` returned) and cost."""
        tokens, (target, drafter, other) = len(step.tokens), step.seconds
        self.say(step.tokens)
        self.costs.context = self._held + step.position
        chained = max(self._levels - 1, 0)
        feed, draft = self.costs.drafter
        usual = self._seconds_of(step.nodes + 1) + feed + draft * chained + self.costs.other.get(True, 0.0)
        # growing a tree that was not worth a row is no part of what plain decoding costs
        if self._planned and not step.nodes:
            other = self.costs.other.get(False, 0.0)
        self.costs.learn(step.nodes, self._before, target, None if self.off or self._woke else drafter, other, chained)
        if self._planned:
            self._judged(path)
            # A first step builds llama.cpp's graph, which plain decoding would have had to do as well; and one
            # disturbed step is no evidence.
            took = min(step.seconds.total, DISTURBED * usual) - (self.costs.switch if self._before == 0 else 0.0)
            self.speculated(tokens, usual / self.costs.plain(), took / self.costs.plain())
            self._went_at(tokens, step.seconds.total / self.costs.plain())
        elif self.off:
            self.watched(tokens)
        self._before = step.nodes + 1

    def _seconds_of(self, rows: int) -> float:
        return self.costs.target(rows) + self._change(rows)

    def _change(self, rows: int) -> float:
        return self.costs.switch if self._before not in (0, rows) else 0.0

    def _chances(self, tree: Tree) -> list[float]:
        """[N] that each node stands."""
        out: list[float] = []
        for confidence, parent, depth in zip(
            tree.confidence.tolist(), tree.parents.tolist(), tree.depths().tolist(), strict=True
        ):
            out.append(self.belief.chance(confidence, depth - 1) * (1.0 if parent == ROOT else out[parent]))
        return out

    def _judged(self, path: Sequence[int]) -> None:
        """Count the children of every node the text came to: one of them stood, or none."""
        tree, stood = self._tree, set(path)
        came_to = {ROOT, *path}
        for i, (confidence, parent, depth) in enumerate(
            zip(tree.confidence.tolist(), tree.parents.tolist(), tree.depths().tolist(), strict=True)
        ):
            if parent in came_to:
                self.belief.see(confidence, depth - 1, i in stood)


TreePolicy = TreeWindow
