"""How many nodes of a draft tree to verify, chosen every step: those that decide most tokens per second here and now.

A policy like `adaptive/policy.py`, without models, clocks or coins, and lossless for the same reason: the nodes
verified are decided from past steps and the drafter's confidences. With L the rate of tokens to beat (the better of
plain decoding and the steps so far) and v_1 >= v_2 >= ... the chances that the tree's nodes are accepted,

    nodes verified  =  argmax over n of  1 + v_1 + ... + v_n  -  L (cost(n + 1) + switch if that changes the batch size)

where a size seen once or twice, perhaps disturbed, is hoped to cost no more than its neighbours say.

v is the product along a node's path of the drafter's confidences, calibrated on what was accepted
(`adaptive/acceptance_model.py`): a child is never worth more than its parent, so the best n form a tree. A node that is
worth less than the cheapest token of a batch costs is not even grown (`floor`), nor is a level after one of which no
node would be verified (`more`), for each costs a run of the drafter. Costs are `adaptive/costs.py`'s, with levels in
place of a chain's tokens; the budget is `adaptive/budget.py`'s, and while it is careful a tree has one node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from refspec.adaptive.acceptance_model import AcceptanceModel
from refspec.adaptive.base import DISTURBED, DOUBTED, TRIAL, Policy
from refspec.adaptive.costs import Costs
from refspec.reference.metrics import Step
from refspec.reference.tree import ROOT, Tree, empty_tree

DOUBT = 0.5  # of the floor: the drafter's confidences, by which a tree is grown, are not calibrated


class TreePlan:
    """What one step verifies; made by `TreePolicy.plan`.

    nodes   the most to grow, 0 for a plain step
    before  tokens of the batch before
    woke    the first step after speculation was off
    trial   whether one node at least is verified, whatever its chance
    floor   the draft probability below which a node is not worth a place in the batch, however cheap
    tree    what `keep` returned
    levels  of what was grown
    """

    def __init__(
        self, nodes: int, before: int, costs: Costs, acceptance: AcceptanceModel, *, rate: float = 0.0,
        floor: float = 0.0, woke: bool = False, trial: bool = False,
    ) -> None:  # fmt: skip
        self.nodes, self.before, self.floor, self.woke, self.trial = nodes, before, floor, woke, trial
        self._costs, self._acceptance, self._rate = costs, acceptance, rate
        self.tree, self.levels = empty_tree(), 0

    def more(self, tree: Tree) -> bool:
        """Whether a tree that was grown so far should get another level."""
        if self.trial:
            return True
        depths = tree.depths()
        return int(depths[self._best(tree)].max(initial=0)) == int(depths.max(initial=0))

    def keep(self, tree: Tree) -> Tree:
        """The part of a grown tree that is worth verifying."""
        if not self.nodes:
            return tree
        self.levels, self.tree = tree.height, tree.keep(self._best(tree))
        return self.tree

    def _best(self, tree: Tree) -> list[int]:
        """The nodes that are worth verifying, in order; one at least in a trial."""
        chances, depths = self._chances(tree), tree.depths().tolist()
        order = sorted(range(len(chances)), key=lambda i: (-chances[i], depths[i], i))
        best, most, tokens = 0, -math.inf, 1.0
        for n in range(len(order) + 1):
            tokens += chances[order[n - 1]] if n else 0.0
            worth = tokens - self._rate * (self._costs.hoped(n + 1) + switch(self._costs, self.before, n + 1))
            if worth > most and not (self.trial and n == 0 and order):
                best, most = n, worth
        return sorted(order[:best])

    def _chances(self, tree: Tree) -> list[float]:
        """[N] that each node is accepted."""
        found: list[float] = []
        for confidence, parent, depth in _nodes(tree):
            found.append(self._acceptance.chance(confidence, depth - 1) * (1.0 if parent == ROOT else found[parent]))
        return found


class TreePolicy(Policy):
    """The policy for one pair; keep it from one generation to the next, and call `begin` for each."""

    def __init__(self, most: int, costs: Costs | None = None) -> None:
        super().__init__(most, costs)
        self._trial = TRIAL  # steps left of it

    def plan(self, room: int) -> TreePlan:
        """What to grow in this step, at most `room` nodes; 0 verifies the pending token alone."""
        self._reading = False
        woke, room = self.off, min(room, self.most)
        before, costs, acceptance = self._before, self.costs, self.acceptance
        if room <= 0 or not costs.comparable or (woke and not self.budget.may_try()):
            return TreePlan(0, before, costs, acceptance)
        if woke:
            self.budget.begin_try()
            acceptance.forget(DOUBTED)
            self._trial = TRIAL
        nodes, trial = 1 if self.budget.careful else room, self._trial > 0
        self._trial -= trial
        rate = self.rate.to_beat(1.0, 1.0) / costs.plain()
        least = min(costs.target(n + 1) - costs.target(n) for n in range(1, self.most + 1))
        # in a trial all is grown, or a low chance would never be found wrong
        floor = 0.0 if trial else min(max(DOUBT * rate * least, 0.0), 1.0)
        return TreePlan(nodes, before, costs, acceptance, rate=rate, floor=floor, woke=woke, trial=trial)

    def learn(self, plan: TreePlan, step: Step, path: Sequence[int]) -> None:
        """Take in what a step verified, accepted (`path`, nodes of what `plan.keep` returned) and cost."""
        tokens, (target, drafter, other) = len(step.tokens), step.seconds
        costs, before, size = self.costs, plan.before, step.nodes + 1
        self.budget.say(step.tokens)
        costs.context = self._held + step.position
        chained = max(plan.levels - 1, 0)
        feed, draft = costs.drafter
        run = costs.target(size) + switch(costs, before, size)
        usual = run + feed + draft * chained + costs.other.get(True, 0.0)
        # growing a tree that was not worth verifying is no part of what plain decoding costs
        if plan.nodes and not step.nodes:
            other = costs.other.get(False, 0.0)
        costs.learn(step.nodes, before, target, None if self.off or plan.woke else drafter, other, chained)
        if plan.nodes:
            self._judged(plan.tree, path)
            # a first step builds llama.cpp's graph, as plain decoding would; and one disturbed step is no evidence
            took = min(step.seconds.total, DISTURBED * usual) - (costs.switch if before == 0 else 0.0)
            plain = costs.plain()
            self.budget.speculated(tokens, usual / plain, took / plain)
            self.rate.add(tokens, step.seconds.total / plain)
        elif self.off:
            self.budget.watched(tokens)
        self._before = size

    def _judged(self, tree: Tree, path: Sequence[int]) -> None:
        """Count the children of every node that was accepted: one of them was accepted, or none."""
        accepted, parents = set(path), {ROOT, *path}
        for i, (confidence, parent, depth) in enumerate(_nodes(tree)):
            if parent in parents:
                self.acceptance.see(confidence, depth - 1, i in accepted)


def _nodes(tree: Tree) -> Iterable[tuple[float, int, int]]:
    """Confidence, parent and depth of each node."""
    return zip(tree.confidence.tolist(), tree.parents.tolist(), tree.depths().tolist(), strict=True)


def switch(costs: Costs, before: int, size: int) -> float:
    """Seconds that a change of batch size costs, 0 where it stays or no batch came before."""
    return costs.switch if before not in (0, size) else 0.0
