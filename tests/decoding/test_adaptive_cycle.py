"""Adaptive drafts in the decode cycle: what a policy chooses changes neither the output nor its distribution."""

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import TEMPERS, Noisy, Perfect, ToyTarget
from test_decode_cycle import prompts, samplers
from test_sampled_law import PROMPT, Halves, Quarters, Tape, law_of_texts, sampled
from test_tree_cycle import GROWERS, ToyTreeTarget, plain_run, run, shapes, targets, with_trees

from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.tree_policy import TreePolicy
from refspec.decoding.cycle import prefill
from refspec.decoding.deferred import BACKLOG, DeferredDrafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.tree_cycle import speculate_tree
from refspec.errors import UsageError
from refspec.reference.sampling import ACCEPT, Sampler
from refspec.reference.tree import ROOT, Tree, TreeShape
from refspec.session import Session


class Whim:
    """Chooses at random, plans included: no choice of a policy may show in the output."""

    def __init__(self, seed: int, most: int) -> None:
        self.dice, self.most, self.off, self.planned = random.Random(seed), most, False, False

    def begin(self, held: int = 0) -> None:
        self.planned = False

    def expect(self, mean_log_probability: float) -> None:
        pass

    def waiting(self) -> bool:
        return self.off and self.planned

    def plan(self, room: int) -> Any:
        self.off, self.planned = self.dice.random() < 0.3, True
        self.draft = self.nodes = self.dice.randint(0, min(room, self.most))
        return self


class WhimOfChains(Whim):
    def stop(self, i: int, confidence: float) -> bool:
        return self.dice.random() < 0.25

    def keep(self, drafted: int) -> int:
        return self.dice.randint(0, drafted)

    def learn(self, plan: Any, step: Any) -> None:
        pass


class WhimOfTrees(Whim):
    @property
    def floor(self) -> float:
        return self.dice.choice([0.0, 0.2, 0.9])

    def more(self, tree: Tree) -> bool:
        return self.dice.random() < 0.6

    def keep(self, tree: Tree) -> Tree:
        kept: list[int] = []
        for i, parent in enumerate(tree.parents.tolist()):
            if (parent == ROOT or parent in kept) and self.dice.random() < 0.7:
                kept.append(i)
        return tree.keep(kept)

    def learn(self, plan: Any, step: Any, path: Any) -> None:
        pass


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 999), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from(TEMPERS), st.integers(0, 99),
    st.integers(3, 60), st.sampled_from([(), (6,)]),
)  # fmt: skip
def test_whatever_length_is_chosen_the_output_of_a_seed_is_the_plain_one(whim, temperature, temper, seed, n_ctx, end):
    target = ToyTarget(n_ctx=n_ctx, end=end, sharpness=2.0)
    session = Session(target, temper(target), draft_max=6)
    options = {"tokens": [1, 2, 3], "sampler": Sampler(temperature=temperature), "seed": seed, "max_tokens": 50}
    outputs = []
    for how in ({"policy": WhimOfChains(whim, 6)}, {"adaptive": True}, {"speculate": False}):
        generation = session.generate(**options, **how)
        list(generation)
        outputs.append((generation.tokens, generation.statistics.stop))
    assert outputs[0] == outputs[1] == outputs[2]


class Shrinking(WhimOfChains):
    """Ends a draft by confidence and by what was accepted before: all a policy may look at."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.last = 0

    def plan(self, room: int) -> Any:
        self.planned, self.draft = True, min(room, 2 if self.last else 1)
        return self

    def stop(self, i: int, confidence: float) -> bool:
        return confidence > 0.6

    def keep(self, drafted: int) -> int:
        return drafted

    def learn(self, plan: Any, step: Any) -> None:
        self.last = step.accepted


class Moody(Halves):
    """Sometimes sure (probability 3/4), sometimes not, by the text so far."""

    def guess(self, text):
        return np.log([0.75, 0.25] if sum(text) % 2 else [0.5, 0.5]).astype(np.float32)


class FineTape(Tape):
    """Quarters for the residual and draft coins; acceptance ratios are 1, 1/3, 1/2 and 3/2: sixths."""

    def coin(self, name):
        if name not in self.index:
            self.index[name] = len(self.sizes)
            self.sizes.append(6 if name[0] == ACCEPT else 4)
            self.branch += [0] * (len(self.sizes) - len(self.branch))
        i = self.index[name]
        return (self.branch[i] + 0.5) / self.sizes[i]


@pytest.mark.parametrize("salt", [1])
def test_a_policy_that_looks_at_confidence_and_at_the_past_keeps_the_distribution_of_sampled_drafts(monkeypatch, salt):
    target = Quarters(n_vocab=2, end=(), salt=salt)
    n, sampler = 3, Sampler(temperature=1.0)
    law = law_of_texts(
        monkeypatch, lambda: sampled(target, Moody(target), sampler=sampler, n=n, k=2, policy=Shrinking()), FineTape
    )
    assert len(law) == 2**n and sum(law.values()) == 1
    for text, probability in law.items():
        expected = Fraction(1)
        for i, token in enumerate(text):
            expected *= Fraction(3 if token == target.likely([*PROMPT, *text[:i]]) else 1, 4)
        assert probability == expected


def test_positions_wait_while_speculation_is_off_and_the_newest_are_kept():
    target = ToyTarget(end=(), n_ctx=2000)
    waiting = [False]
    inner = Noisy(target)
    drafter = DeferredDrafter(inner, lambda: waiting[0])
    row = lambda i: (np.array([i % 5], np.int32), np.array([[i, (i - 1) % 5]], np.float32))  # noqa: E731
    drafter.extend(*row(0))
    waiting[0] = True
    for i in range(1, 10):
        drafter.extend(*row(i))
    assert inner.n_rows == 1 and drafter.n_rows == 10
    drafter.draft(1)
    assert inner.n_rows == 10 and inner.tokens == [i % 5 for i in range(10)]
    for i in range(10, 10 + BACKLOG + 50):
        drafter.extend(*row(i))
    assert drafter.n_rows == 10 + BACKLOG and inner.n_rows == 10
    drafter.reset()
    assert drafter.n_rows == inner.n_rows == 0


def test_the_distribution_of_draft_lengths_is_in_the_statistics():
    target = ToyTarget(end=(), n_ctx=300)
    session = Session(target, Perfect(target), draft_max=4, adaptive=True)
    run = session.generate(tokens=[1, 2, 3], max_tokens=120)
    steps = [event.step for event in run]
    counts = Counter(len(step.draft) for step in steps)
    by_drafted = run.statistics.steps_by_drafted
    assert by_drafted == [counts.get(k, 0) for k in range(len(by_drafted))]
    assert sum(by_drafted) == run.statistics.verify_steps == run.statistics.as_dict()["verify_steps"]
    assert session.policy is not None and session.policy.most == 4


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
def test_no_choice_of_nodes_shows_in_the_output(
    target: Any, prompt: list[int], sampler: Sampler, temper: Any, shape: TreeShape, n: int, seed: int, whim: bool
) -> None:
    options = {"sampler": sampler, "seed": seed, "max_tokens": n}
    plain_steps, plain = plain_run(target, prompt, **options)
    policy = WhimOfTrees(seed, 12) if whim else TreePolicy(12, Costs({1: 1.0, 2: 1.3, 9: 3.0}))
    steps, text = run(target, temper(target), prompt, shape=shape, policy=policy, **options)
    assert text == plain and steps[-1].stop == plain_steps[-1].stop
    assert all(step.nodes <= shape.nodes for step in steps)


def test_positions_that_wait_while_it_is_off_are_run_before_a_tree_is_grown() -> None:
    target = ToyTreeTarget(end=(), n_ctx=200)
    policy = WhimOfTrees(3, 12)
    drafter = DeferredDrafter(with_trees(Perfect)(target), policy.waiting)
    list(prefill(target, drafter, [1, 2]))
    options: Any = {"sampler": Sampler(), "seed": 0, "max_tokens": 60, "shape": TreeShape(6, 2, 4), "policy": policy}
    steps = list(speculate_tree(target, drafter, 2, **options))
    text = [1, 2, *(t for step in steps for t in step.tokens)]
    assert any(step.nodes for step in steps) and any(not step.nodes for step in steps)
    drafter.rollback(drafter.n_rows)  # runs what still waits
    assert drafter.inner.tokens == text[1:]


def test_a_session_chooses_nodes_where_it_is_adaptive_and_keeps_what_it_learned() -> None:
    target = ToyTreeTarget(end=(), n_ctx=400)
    session = Session(target, with_trees(Perfect)(target), draft_max=6, adaptive=True, tree=TreeShape(6, 2, 4))
    session.policy = TreePolicy(6, Costs({1: 1.0, 2: 1.05, 7: 1.3}))
    first, policy = session.generate(tokens=[1, 2], max_tokens=60), session.policy
    for _ in first:
        pass
    second = session.generate(tokens=[1, 2], max_tokens=60)
    for _ in second:
        pass
    assert session.policy is policy and first.tokens == second.tokens
    with pytest.raises(UsageError, match="--adaptive or --draft-sampling"):
        list(session.generate(tokens=[1, 2], max_tokens=9, sampler=Sampler(temperature=1.0), draft_sampling=True))


class Surveyed(Perfect):
    """A drafter that says how sure it is: of so many rows, as a number to be found again."""

    def survey(self, tokens, features):
        self.extend(tokens, features)
        return -float(len(tokens))


class Listening(ChainPolicy):
    """Remembers what it is told to expect, if anything."""

    def __init__(self, most):
        self.heard = []
        super().__init__(most)

    def expect(self, mean_log_probability):
        if not math.isnan(mean_log_probability):
            self.heard.append(mean_log_probability)
        super().expect(mean_log_probability)


@pytest.mark.parametrize("wrap", [lambda d: d, FallbackDrafter], ids=["bare", "lookup"])
@pytest.mark.parametrize(
    ("rows", "told"), [(2, None), (7, None), (8, -8.0), (15, -15.0), (30, -16.0), (600, -16.0), (512 + 5, None)]
)
def test_a_policy_is_told_how_sure_the_drafter_is_of_the_end_of_a_prompt(rows, told, wrap):
    target = ToyTarget(n_ctx=700, end=())
    policy = Listening(4)
    session = Session(target, wrap(Surveyed(target)), draft_max=4)
    generation = session.generate(tokens=[i % 7 for i in range(rows + 1)], max_tokens=5, policy=policy)
    list(generation)  # the toys check that each row comes once
    assert policy.heard == ([] if told is None else [told])


def test_a_drafter_that_cannot_tell_is_asked_for_nothing():
    target = ToyTarget(n_ctx=60, end=())
    outputs = []
    for drafter in (Perfect(target), Surveyed(target)):
        policy = Listening(4)
        run = Session(target, drafter, draft_max=4).generate(tokens=[1] * 30, max_tokens=12, policy=policy)
        list(run)
        outputs.append(run.tokens)
        assert bool(policy.heard) == (type(drafter) is Surveyed)
    assert outputs[0] == outputs[1]
