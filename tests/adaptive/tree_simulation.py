"""A decode cycle made of numbers: a tree's confidences and how likely its nodes really are accepted are given.

Time is simulated, nothing is measured.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from refspec.adaptive.costs import Costs
from refspec.adaptive.tree_policy import TreePolicy
from refspec.reference.metrics import Seconds, Step
from refspec.reference.tree import Tree

MOST = 12
# a grown tree, and the chance of each node given that its parent is accepted
Bush = Callable[[random.Random], tuple[Tree, list[float]]]


def bush(confidence: list[float], true: list[float], depth: int) -> Bush:
    """A chain of `depth` first children, each with siblings; `confidence` and `true` chances, likeliest first."""

    def grown(dice: random.Random) -> tuple[Tree, list[float]]:
        tokens, parents, said, really, above = [], [], [], [], -1
        for _ in range(depth):
            first = len(tokens)
            for j, (c, t) in enumerate(zip(confidence, true, strict=True)):
                tokens.append(j)
                parents.append(above)
                said.append(c)
                really.append(t)
            above = first
        return Tree(np.array(tokens, np.int32), np.array(parents, np.int32), np.array(said, np.float32)), really

    return grown


def simulate(
    policy: Any,
    rows: Callable[[int], float],
    grown: Bush,
    tokens: int,
    *,
    level: float,
    switch: float = 0.0,
    seed: int = 1,
    ask: bool = True,
) -> tuple[float, list[int]]:
    """Plain tokens that deciding `tokens` took, and the nodes of every step; `ask` whether levels are asked for."""
    dice = random.Random(seed)
    policy.begin()
    seconds, decided, before, sizes = 0.0, 0, 0, []
    while decided < tokens:
        plan, levels = policy.plan(MOST), 0
        tree, really = grown(dice)
        order = sorted(range(len(tree.tokens)), key=lambda i: -float(np.prod(tree.confidence[tree.path(i)])))
        kept = sorted(order[: plan.nodes])
        tree, really = tree.keep(kept), [really[i] for i in kept]
        if plan.nodes:
            whole, really, levels = level_by_level(plan if ask else None, tree, really)
            tree = plan.keep(whole)
            at = [
                next(i for i in range(len(whole.tokens)) if whole.path(i) and same(whole, i, tree, j))
                for j in range(len(tree.tokens))
            ]
            really = [really[i] for i in at]
        path: list[int] = []
        node = -1
        while True:
            u, following = dice.random(), tree.children(node)
            for child in following:
                u -= really[child]
                if u < 0:
                    break
            if not following or u >= 0:
                break
            path.append(child)
            node = child
        n = len(tree.tokens)
        target = rows(n + 1) + (switch if before not in (0, n + 1) else 0.0)
        drafter = 0.05 + level * max(levels - 1, 0) if plan.nodes else 0.0
        seconds += target + drafter + 0.02
        policy.learn(
            plan,
            Step(decided, [0] * len(path), len(path), [0] * (len(path) + 1), Seconds(target, drafter, 0.02), nodes=n),
            path,
        )
        decided, before = decided + len(path) + 1, n + 1
        sizes.append(n)
    return seconds / (rows(1) + 0.02) * tokens / decided, sizes


def level_by_level(plan: Any, tree: Tree, really: list[float]) -> tuple[Tree, list[float], int]:
    """What is grown of a tree, as `tree_grow.grow` asks a plan, its nodes' chances, and the levels."""
    depths = tree.depths()
    for levels in range(1, tree.height + 1):
        kept = np.flatnonzero(depths <= levels).tolist()
        part = tree.keep(kept)
        if levels == tree.height or (plan and not plan.more(part)):
            return part, [really[i] for i in kept], levels
    return tree, really, 0


def same(whole: Tree, i: int, part: Tree, j: int) -> bool:
    return whole.tokens[whole.path(i)].tolist() == part.tokens[part.path(j)].tolist()


def known(rows: Callable[[int], float], **terms: float) -> TreePolicy:
    return TreePolicy(MOST, Costs({r: rows(r) for r in range(1, MOST + 2)}, **terms))


GOOD = bush([0.7, 0.15, 0.05], [0.7, 0.15, 0.05], 4)
