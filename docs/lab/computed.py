"""Verify steps in computed time: recorded drafts, a policy that chooses how many to verify, and a model of the costs.

A policy is asked step by step as the decode cycle asks it. A recorded tree has as many nodes as trees may have; what a
policy would have grown is a part of it: a drafter that is asked for fewer nodes, or for fewer levels, finds the best of
the same ones (`reference/tree_grow.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.recorded import Recorded
from refspec.adaptive.costs import Costs
from refspec.reference.metrics import Seconds, Step
from refspec.reference.tree import ROOT, Tree, empty_tree

WAITED = 0.1  # of what feeding back takes, a position that waited costs: many run together
# of a plain token, what refspec itself takes for a step that drafts and for one that does not
OWN, OWN_PLAIN = 0.03, 0.005


@dataclass(frozen=True)
class Machine:
    """What steps cost, in tokens of plain decoding: `rows` [R] a run of the target over 1, 2, ... tokens.

    The other terms are those of `adaptive/costs.py`.
    """

    rows: tuple[float, ...]
    switch: float = 0.0
    feed: float = 0.0
    draft: float = 0.0
    own: float = OWN
    own_plain: float = OWN_PLAIN

    @classmethod
    def of(cls, measured: dict[str, Any]) -> Machine:
        """From a record of `tuning.step_costs.measure`."""
        rows = [float(measured["target"][r]) for r in sorted(measured["target"], key=int)]
        return cls(
            tuple(t / rows[0] for t in rows), *(float(measured[name]) / rows[0] for name in ("switch", "feed", "draft"))
        )

    def costs(self) -> Costs:
        """What a policy would know of it."""
        rows = {r + 1: t for r, t in enumerate(self.rows)}
        return Costs(rows, switch=self.switch, draft=self.draft, feed=self.feed)

    def seconds(self, rows: int, before: int, asked: int, fed: bool, waited: int, noise: float) -> Seconds:
        """Of a step that verified `rows` tokens after one of `before`: the drafter was asked about `asked` tokens, and
        where it was `fed` its positions also got `waited` older ones.
        """
        target = self.rows[rows - 1] * noise + (self.switch if before not in (0, rows) else 0.0)
        drafter = self.draft * max(asked - 1, 0) + (self.feed * (1 + WAITED * waited) if fed else 0.0)
        return Seconds(target, drafter, self.own if asked else self.own_plain)


class Fixed:
    """A policy, and its own plan: always `most` tokens, or nodes of a tree, as far as there is room."""

    floor = 0.0

    def __init__(self, most: int) -> None:
        self.most = self.draft = self.nodes = most

    def begin(self, held: int = 0) -> None:
        pass

    def expect(self, mean_log_probability: float) -> None:
        pass

    def waiting(self) -> bool:
        return not self.most

    def plan(self, room: int) -> Fixed:
        self.draft = self.nodes = min(self.most, room)
        return self

    def stop(self, i: int, confidence: float) -> bool:
        return False

    def more(self, tree: Tree) -> bool:
        return True

    def keep(self, drafted: Any) -> Any:
        return drafted

    def learn(self, plan: Fixed, step: Step, path: Sequence[int] = ()) -> None:
        pass


def replay(
    output: Recorded, policy: Any, machine: Machine, dice: random.Random, noise: float = 0.0
) -> tuple[float, int]:
    """(time in plain tokens, verify steps) that an output takes where a policy like `ChainPolicy` chooses."""
    policy.begin(output.held)
    policy.expect(output.mean_log_probability)
    spent, steps, position, before, waited = 0.0, 0, 0, 0, 0
    while position < len(output.tokens):
        confidences = output.confidences[position]
        plan = policy.plan(min(len(confidences), len(output.tokens) - position - 1))
        asked = drafted = 0
        while drafted < plan.draft:
            asked += 1
            if plan.stop(drafted, confidences[drafted]):
                break
            drafted += 1
        drafted = plan.keep(drafted) if asked else 0
        accepted = min(output.right[position], drafted)
        tokens = output.tokens[position : position + accepted + 1]
        fed = bool(asked) or not policy.waiting()
        seconds = machine.seconds(drafted + 1, before, asked, fed, waited, math.exp(noise * dice.gauss(0, 1)))
        waited = 0 if fed else waited + len(tokens)
        policy.learn(plan, Step(position, [0] * drafted, accepted, tokens, seconds))
        spent, steps, before, position = spent + seconds.total, steps + 1, drafted + 1, position + len(tokens)
    return spent, steps


def grown(whole: Tree, plan: Any) -> tuple[Tree, int]:
    """What a plan would have grown of a tree, and the levels that the drafter would have been asked for.

    As `tree_grow.grow` does.
    """
    values: list[float] = []
    for p, parent in zip(whole.confidence.tolist(), whole.parents.tolist(), strict=True):
        values.append((1.0 if parent == ROOT else values[parent]) * min(p, 1.0))
    depths = whole.depths().tolist()
    order = [i for i in sorted(range(len(values)), key=lambda i: (-values[i], depths[i], i)) if values[i] >= plan.floor]
    level, tree = 1, empty_tree()
    while True:
        best = [i for i in order if depths[i] <= level][: plan.nodes]
        tree = whole.keep(sorted(best))
        beaten = values[best[-1]] if len(best) == plan.nodes else -1.0
        frontier = any(depths[i] == level and values[i] > beaten for i in best)
        if not frontier or level >= max(depths) or not plan.more(tree):
            return tree, level
        level += 1


def accepted_path(tree: Tree, tokens: Sequence[int]) -> list[int]:
    """The nodes of a tree along the tokens that the output goes on with."""
    path: list[int] = []
    for token in tokens:
        node = next((i for i in tree.children(path[-1] if path else ROOT) if tree.tokens[i] == token), None)
        if node is None:
            break
        path.append(node)
    return path


def replay_tree(
    output: Recorded, policy: Any, machine: Machine, dice: random.Random, noise: float = 0.0
) -> tuple[float, int]:
    """(time in plain tokens, verify steps) that an output takes where a policy like `TreePolicy` chooses."""
    policy.begin(output.held)
    policy.expect(output.mean_log_probability)
    spent, steps, position, before, waited = 0.0, 0, 0, 0, 0
    while position < len(output.tokens):
        whole = output.trees[position] if position < len(output.trees) else empty_tree()
        plan = policy.plan(len(whole.tokens))
        tree, levels = grown(whole, plan) if plan.nodes else (empty_tree(), 0)
        tree = plan.keep(tree)
        path = accepted_path(tree, output.tokens[position:])
        tokens = output.tokens[position : position + len(path) + 1]
        fed, nodes = bool(levels) or not policy.waiting(), len(tree.tokens)
        seconds = machine.seconds(nodes + 1, before, levels, fed, waited, math.exp(noise * dice.gauss(0, 1)))
        waited = 0 if fed else waited + len(tokens)
        step = Step(position, [0] * len(path), len(path), tokens, seconds, nodes=nodes, depth=tree.height)
        policy.learn(plan, step, path)
        spent, steps, before, position = spent + seconds.total, steps + 1, nodes + 1, position + len(tokens)
    return spent, steps
