"""Adaptive trees: they change neither text nor law, and they pay. Times are simulated; nothing here measures."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import Perfect
from test_decode_cycle import prompts, samplers
from test_tree_cycle import GROWERS, ToyTreeTarget, plain_run, run, shapes, targets, with_trees

from refspec.adaptive.budget import RESERVE, WATCH
from refspec.adaptive.costs import Costs
from refspec.adaptive.tree_policy import TreeWindow
from refspec.decoding.cycle import prefill
from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.tree_cycle import speculate_tree
from refspec.errors import UsageError
from refspec.reference.metrics import Seconds, Step
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree, TreeShape
from refspec.session import Session

MOST = 12
DEARER = 9  # plain tokens that one step may overdraw the account


class Whim(TreeWindow):
    """Chooses at random: no choice of a window may show in the text."""

    def __init__(self, seed: int, most: int = 12) -> None:
        super().__init__(most)
        self.dice = random.Random(seed)

    def plan(self, room: int) -> int:
        self.off = self.dice.random() < 0.3
        self._running = True
        return self.dice.randint(0, room)

    def floor(self) -> float:
        return self.dice.choice([0.0, 0.2, 0.9])

    def more(self, tree: Tree) -> bool:
        return self.dice.random() < 0.6

    def keep(self, tree: Tree) -> Tree:
        kept: list[int] = []
        for i, parent in enumerate(tree.parents.tolist()):
            if (parent == -1 or parent in kept) and self.dice.random() < 0.7:
                kept.append(i)
        return tree.keep(kept)

    def learn(self, step: Step, path: Any) -> None:
        pass


@settings(max_examples=120, deadline=None)
@given(
    targets,
    prompts,
    samplers,
    st.sampled_from(GROWERS),
    shapes,
    st.integers(1, 30),
    st.integers(0, 2**40),
    st.booleans(),
)
def test_no_choice_of_nodes_shows_in_the_text(
    target: Any, prompt: list[int], sampler: Sampler, temper: Any, shape: TreeShape, n: int, seed: int, whim: bool
) -> None:
    options = {"sampler": sampler, "seed": seed, "max_tokens": n}
    plain_steps, plain = plain_run(target, prompt, **options)
    window = Whim(seed) if whim else TreeWindow(12, Costs({1: 1.0, 2: 1.3, 9: 3.0}))
    steps, text = run(target, temper(target), prompt, shape=shape, window=window, **options)
    assert text == plain and steps[-1].stop == plain_steps[-1].stop
    assert all(step.nodes <= shape.nodes for step in steps)


def test_rows_that_wait_while_it_is_off_are_run_before_a_tree_is_grown() -> None:
    target = ToyTreeTarget(end=(), n_ctx=200)
    window = Whim(3)
    drafter = DeferredDrafter(with_trees(Perfect)(target), window.waiting)
    list(prefill(target, drafter, [1, 2]))
    options: Any = {"sampler": Sampler(), "seed": 0, "max_tokens": 60, "shape": TreeShape(6, 2, 4), "window": window}
    steps = list(speculate_tree(target, drafter, 2, **options))
    text = [1, 2, *(t for step in steps for t in step.tokens)]
    assert any(step.nodes for step in steps) and any(not step.nodes for step in steps)
    drafter._flush()
    assert drafter.inner.tokens == text[1:]


def test_a_session_chooses_nodes_where_it_is_adaptive_and_keeps_what_it_learned() -> None:
    target = ToyTreeTarget(end=(), n_ctx=400)
    session = Session(target, with_trees(Perfect)(target), draft_max=6, adaptive=True, tree=TreeShape(6, 2, 4))
    session.policy = TreeWindow(6, Costs({1: 1.0, 2: 1.05, 7: 1.3}))
    first, window = session.generate(tokens=[1, 2], max_tokens=60), session.policy
    for _ in first:
        pass
    second = session.generate(tokens=[1, 2], max_tokens=60)
    for _ in second:
        pass
    assert session.policy is window and first.tokens == second.tokens
    with pytest.raises(UsageError, match="--adaptive or --draft-sampling"):
        list(session.generate(tokens=[1, 2], max_tokens=9, sampler=Sampler(temperature=1.0), draft_sampling=True))


# A cycle made of numbers: a tree's confidences and how likely its nodes really stand are given, time is simulated.
# a grown tree, and the chance of each node given that its parent stands
Bush = Callable[[random.Random], tuple[Tree, list[float]]]


def bush(confidence: list[float], true: list[float], depth: int) -> Bush:
    """A chain of `depth` first children, each with siblings:

    `confidence` and `true` chances of the children, likeliest first.
    """

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
    window: Any,
    rows: Callable[[int], float],
    grown: Bush,
    tokens: int,
    *,
    level: float,
    switch: float = 0.0,
    seed: int = 1,
) -> tuple[float, list[int]]:
    """Plain tokens that deciding `tokens` tokens took, and the nodes of every step."""
    dice = random.Random(seed)
    window.begin()
    seconds, decided, before, sizes = 0.0, 0, 0, []
    while decided < tokens:
        room, levels = window.plan(MOST), 0
        tree, really = grown(dice)
        order = sorted(range(len(tree.tokens)), key=lambda i: -float(np.prod(tree.confidence[tree.path(i)])))
        kept = sorted(order[:room])
        tree, really = tree.keep(kept), [really[i] for i in kept]
        if room:
            whole, really, levels = level_by_level(window, tree, really)
            tree = window.keep(whole)
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
        drafter = 0.05 + level * max(levels - 1, 0) if room else 0.0
        seconds += target + drafter + 0.02
        window.learn(
            Step(decided, [0] * len(path), len(path), [0] * (len(path) + 1), Seconds(target, drafter, 0.02), nodes=n),
            path,
        )
        decided, before = decided + len(path) + 1, n + 1
        sizes.append(n)
    return seconds / (rows(1) + 0.02) * tokens / decided, sizes


def level_by_level(window: Any, tree: Tree, really: list[float]) -> tuple[Tree, list[float], int]:
    """What is grown of a tree, as `tree_grow.grow` asks, its nodes' chances, and the levels."""
    depths = tree.depths()
    for levels in range(1, tree.height + 1):
        kept = np.flatnonzero(depths <= levels).tolist()
        part = tree.keep(kept)
        if levels == tree.height or not window.more(part):
            return part, [really[i] for i in kept], levels
    return tree, really, 0


def same(whole: Tree, i: int, part: Tree, j: int) -> bool:
    return whole.tokens[whole.path(i)].tolist() == part.tokens[part.path(j)].tolist()


def known(rows: Callable[[int], float], **terms: float) -> TreeWindow:
    return TreeWindow(MOST, Costs({r: rows(r) for r in range(1, MOST + 2)}, **terms))


GOOD = bush([0.7, 0.15, 0.05], [0.7, 0.15, 0.05], 4)


def test_cheap_rows_are_filled_and_dear_ones_are_not() -> None:
    cheap, dear = (lambda r: 1 + 0.02 * (r - 1)), (lambda r: 1 + 0.45 * (r - 1))
    spent, sizes = simulate(known(cheap, draft=0.05, feed=0.05), cheap, GOOD, 4000, level=0.05)
    assert spent < 4000 / 2 and np.mean(sizes) > 6
    spent, sizes = simulate(known(dear, draft=0.05, feed=0.05), dear, GOOD, 4000, level=0.05)
    assert spent < 4000 * 1.02 and np.mean(sizes) < 3


@pytest.mark.parametrize("claims", [[0.9, 0.05], [0.5, 0.3], [0.1, 0.1]])
def test_a_drafter_that_is_always_wrong_costs_the_reserve_once_and_the_watch_of_the_rest(claims: list[float]) -> None:
    rows = lambda r: 1 + 0.3 * (r - 1)  # noqa: E731
    window = known(rows, draft=0.1, feed=0.05)
    spent, sizes = simulate(window, rows, bush(claims, [0.0, 0.0], 4), 5000, level=0.1)
    assert spent - 5000 <= RESERVE + 2 * WATCH * 5000 + DEARER
    assert np.mean(np.array(sizes) > 0) < 0.1


def test_a_boastful_drafter_is_believed_as_far_as_it_was_right() -> None:
    rows = lambda r: 1 + 0.25 * (r - 1)  # noqa: E731
    window = known(rows, draft=0.05, feed=0.05)
    spent, _ = simulate(window, rows, bush([0.89, 0.08], [0.45, 0.04], 4), 4000, level=0.05)
    assert window.belief.chance(0.89, 0) == pytest.approx(0.45, abs=0.08)
    assert spent < 4000 * 1.03


@pytest.mark.parametrize("seed", range(4))
def test_it_turns_itself_on_again_where_the_text_becomes_easy(seed: int) -> None:
    rows = lambda r: 1 + 0.1 * (r - 1)  # noqa: E731
    window = known(rows, draft=0.05, feed=0.05)
    simulate(window, rows, bush([0.65, 0.2], [0.0, 0.0], 4), 2000, level=0.05, seed=seed)
    assert window.off
    spent, sizes = simulate(window, rows, bush([0.65, 0.2], [0.7, 0.15], 4), 4000, level=0.05, seed=9 + seed)
    assert spent < 4000 / 1.4 and np.mean(sizes[-200:]) > 2


def test_where_a_change_of_size_is_dear_sizes_stay() -> None:
    rows = lambda r: 1 + 0.15 * (r - 1)  # noqa: E731
    wide = bush([0.7, 0.15, 0.05], [0.7, 0.15, 0.05], 4)
    changes = []
    for switch in (0.0, 1.0):
        _, sizes = simulate(
            known(rows, draft=0.05, feed=0.05, switch=switch), rows, wide, 4000, level=0.05, switch=switch
        )
        changes.append(np.mean(np.diff(sizes) != 0))
    assert changes[1] <= changes[0] + 0.01 and changes[1] < 0.1


def test_no_level_is_grown_after_one_of_which_nothing_would_be_verified() -> None:
    window = known(lambda r: 1 + 0.4 * (r - 1), draft=0.05, feed=0.05)
    window.begin()

    def chain_of(*confidence: float) -> Tree:
        n = len(confidence)
        return Tree(np.zeros(n, np.int32), np.arange(-1, n - 1, dtype=np.int32), np.array(confidence, np.float32))

    assert window.more(chain_of(0.01)), "a trial is for evidence"
    window._trial = 0
    assert window.more(chain_of(0.95)) and not window.more(chain_of(0.1))
    assert window.more(chain_of(0.95, 0.95)) and not window.more(chain_of(0.95, 0.1))


@pytest.mark.parametrize("level", [0.02, 0.1])
def test_levels_are_grown_for_what_is_verified(level: float) -> None:
    """Where several rows are dear and the drafter is sure of itself, trees stay low, though the drafter's claims would
    pay for deep ones.
    """
    rows = lambda r: 1 + 0.4 * (r - 1)  # noqa: E731
    spent = {}
    for asked in (True, False):
        window = known(rows, draft=level, feed=0.05)
        if not asked:
            window.more = lambda tree: True  # type: ignore[method-assign]
        spent[asked], _ = simulate(window, rows, bush([0.9, 0.05], [0.6, 0.05], 8), 4000, level=level)
    assert spent[True] < 0.98 * spent[False]


def test_a_size_that_was_disturbed_once_is_looked_at_again() -> None:
    costs = Costs({1: 1.0, 2: 1.1, 4: 1.2})
    costs.learn(7, 8, 9.0, None, None)  # 8 rows, which take 1.3
    assert costs.target(8) == pytest.approx(9.0) and costs.hoped(8) < 1.6
    assert costs.rows[8] == pytest.approx(9.0), "what is known is not changed by asking"
    window = TreeWindow(7, costs)
    window._trial, window._before, window._planned, window.reserve = 0, 8, True, 40.0
    sure = np.full(7, 0.99, np.float32)
    assert len(window.keep(Tree(np.arange(7, dtype=np.int32), np.arange(-1, 6, dtype=np.int32), sure)).tokens) == 7
    for _ in range(2):
        costs.learn(7, 8, 9.0, None, None)  # it does take so long
    assert costs.hoped(8) == costs.target(8) and costs.hoped(3) == costs.target(3) and costs.hoped(1) == costs.target(1)
    assert len(window.keep(Tree(np.arange(7, dtype=np.int32), np.arange(-1, 6, dtype=np.int32), sure)).tokens) < 7
