"""Recorded trees in computed time: what a tree of fixed shape, and the policy that chooses its nodes, would do.

The part of `window_replay.py` for trees, and like it no measurement. A tree is recorded once at every position of a
text, with as many nodes as trees may have. What a policy would have grown is a part of it, for a drafter that is asked
for fewer nodes, or for fewer levels, finds the best of the same ones (`reference/tree_grow.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refspec.reference.metrics import Step
from refspec.reference.tree import ROOT, Tree, empty_tree

if TYPE_CHECKING:
    from lab.replay import Machine, Recorded


class AlwaysTree:
    """The policy of trees as large as they may be."""

    def __init__(self, nodes: int) -> None:
        self.most, self.floor = nodes, 0.0

    def begin(self, held: int = 0) -> None:
        pass

    def expect(self, sureness: float) -> None:
        pass

    def waiting(self) -> bool:
        return False

    def plan(self, room: int) -> AlwaysTree:
        self.nodes = min(self.most, room)
        return self

    def more(self, tree: Tree) -> bool:
        return True

    def keep(self, tree: Tree) -> Tree:
        return tree

    def learn(self, plan: AlwaysTree, step: Step, path: Sequence[int]) -> None:
        pass


def grown(whole: Tree, nodes: int, floor: float, plan: Any) -> tuple[Tree, int]:
    """What a policy would have grown of a tree, and the levels that the drafter would have been asked for;

    see `tree_grow.grow`.
    """
    values: list[float] = []
    for p, parent in zip(whole.confidence.tolist(), whole.parents.tolist(), strict=True):
        values.append((1.0 if parent == ROOT else values[parent]) * min(p, 1.0))
    depths = whole.depths().tolist()
    order = [i for i in sorted(range(len(values)), key=lambda i: (-values[i], depths[i], i)) if values[i] >= floor]
    level, tree = 1, empty_tree()
    while True:
        best = [i for i in order if depths[i] <= level][:nodes]
        tree = whole.keep(sorted(best))
        beaten = values[best[-1]] if len(best) == nodes else -1.0
        frontier = any(depths[i] == level and values[i] > beaten for i in best)
        if not frontier or level >= max(depths) or not plan.more(tree):
            return tree, level
        level += 1


def stood(tree: Tree, tokens: Sequence[int]) -> list[int]:
    """The nodes of a tree along the tokens that the text goes on with."""
    path: list[int] = []
    for token in tokens:
        node = next((i for i in tree.children(path[-1] if path else ROOT) if tree.tokens[i] == token), None)
        if node is None:
            break
        path.append(node)
    return path


def replay(text: Recorded, policy: Any, machine: Machine, dice: random.Random, noise: float = 0.0) -> tuple[float, int]:
    """(time in plain tokens, verify steps) that a text takes where a policy like `TreePolicy` chooses."""
    policy.begin(text.held)
    policy.expect(text.sureness)
    spent, steps, position, before, waited = 0.0, 0, 0, 0, 0
    while position < len(text.tokens):
        whole = text.trees[position] if position < len(text.trees) else empty_tree()
        plan = policy.plan(len(whole.tokens))
        tree, levels = grown(whole, plan.nodes, plan.floor, plan) if plan.nodes else (empty_tree(), 0)
        tree = plan.keep(tree)
        path = stood(tree, text.tokens[position:])
        tokens = text.tokens[position : position + len(path) + 1]
        fed = bool(levels) or not policy.waiting()
        rows = len(tree.tokens) + 1
        seconds = machine.seconds(rows, before, levels, fed, waited, math.exp(noise * dice.gauss(0, 1)))
        waited = 0 if fed else waited + len(tokens)
        nodes, depth = len(tree.tokens), tree.height
        step = Step(position, [0] * len(path), len(path), tokens, seconds, nodes=nodes, depth=depth)
        policy.learn(plan, step, path)
        spent, steps, before, position = spent + seconds.total, steps + 1, rows, position + len(tokens)
    return spent, steps
