"""The decode cycle with trees on a toy: the text is the plain text, whatever is drafted, and the caches stay true."""

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import TEMPERS, Adversarial, Perfect, ToyTarget, feature
from test_decode_cycle import prompts, samplers
from test_sampled_law import PROMPT, Halves, Quarters, Tape

from refspec.decoding import tree_cycle as module
from refspec.decoding.cycle import prefill, speculate
from refspec.decoding.tree_cycle import SIBLING, cut_after_end, speculate_tree
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import ACCEPT, RESIDUAL, Sampler, invert_cdf, p_target
from refspec.reference.tree import ROOT, Tree, TreeShape
from refspec.reference.tree_grow import grow, grow_sampled, top_probs


class ToyTreeTarget(ToyTarget):
    """Runs trees: the logits and features of a row are those of its path."""

    max_nodes = 63

    def decode_tree(self, tokens: Any, parents: Any) -> int:
        tokens, parents = [int(t) for t in tokens], [int(p) for p in parents]
        assert len(tokens) == len(parents) + 1 and len(self.rows) + len(tokens) <= self.n_ctx, "a tree past the context"
        assert all(-1 <= p < i for i, p in enumerate(parents))
        self.paths = [[*self.rows, tokens[0]]]
        for token, parent in zip(tokens[1:], parents, strict=True):
            self.paths.append([*self.paths[parent + 1], token])
        self.tree, self._logits = parents, [self.law(path) for path in self.paths]
        self._features = np.array([feature(path) for path in self.paths], np.float32)
        self.decodes.append(len(tokens))
        return len(tokens)

    def keep_path(self, nodes: Any) -> None:
        assert [self.tree[node] for node in nodes] == [ROOT, *nodes][: len(nodes)], "not a path from the root"
        self.rows = list(self.paths[nodes[-1] + 1 if nodes else 0])


def with_trees(temper: type) -> type:
    """A drafter of loop_toys that grows trees from the same guesses."""

    class Grower(temper):  # type: ignore[misc]
        def draft_tree(self, shape: TreeShape, *, coins: Any = None, sampler: Any = None, more: Any = None) -> Tree:
            assert self.n_rows > 0
            text = [self.first, *self.tokens]

            def path(found: Any, node: int) -> list[int]:
                return [] if node == ROOT else [*path(found, found[node].parent), found[node].token]

            def guesses(found: Any, nodes: Any) -> list[np.ndarray]:
                return [self.guess(text + path(found, node)) for node in nodes]

            if coins is None:
                return grow(
                    lambda found, nodes: [top_probs(x, shape.top_k) for x in guesses(found, nodes)], shape, more
                )
            given = iter(coins)
            distributions: Any = lambda found, nodes: [p_target(x, sampler) for x in guesses(found, nodes)]  # noqa: E731
            return grow_sampled(distributions, shape, lambda q: invert_cdf(q, float(next(given))))

    return Grower


GROWERS = [with_trees(temper) for temper in TEMPERS]
targets = st.builds(
    ToyTreeTarget, n_ctx=st.integers(3, 24), salt=st.integers(0, 1000), sharpness=st.sampled_from([0.0, 1.0, 4.0])
)
shapes = st.builds(TreeShape, st.integers(1, 12), st.integers(1, 4), st.integers(1, 5))


def run(target: Any, drafter: Any, prompt: list[int], **options: Any) -> tuple[list[Any], list[int]]:
    """All steps and the tokens they decide; checks the caches after every step."""
    options = {"sampler": Sampler(), "seed": 0, "max_tokens": 30, "shape": TreeShape(6, 3, 3)} | options
    list(prefill(target, drafter, prompt, chunk=2))
    steps, text = [], list(prompt)
    for step in speculate_tree(target, drafter, prompt[-1], **options):
        assert step.position == len(text) - len(prompt)
        text += step.tokens
        steps.append(step)
        kept = target.rows
        assert kept == text[: len(kept)] and len(kept) >= len(text) - 1, "the target's cache is the text"
        assert list(step.draft[: step.accepted]) == list(step.tokens[: step.accepted])
        if step.stop is None:
            assert drafter.tokens == text[1:] and drafter.n_rows == target.n_past, "the drafter's rows are the text"
    return steps, text[len(prompt) :]


def plain_run(target: Any, prompt: list[int], **options: Any) -> tuple[list[Any], list[int]]:
    list(prefill(target, None, prompt))
    steps = list(speculate(target, None, prompt[-1], draft_max=0, **options))
    return steps, [token for step in steps for token in step.tokens]


@settings(max_examples=120, deadline=None)
@given(targets, prompts, samplers, st.sampled_from(GROWERS), shapes, st.integers(1, 30), st.integers(0, 2**40))
def test_text_and_stop_equal_plain_decoding_for_any_drafter_and_shape(
    target: Any, prompt: list[int], sampler: Sampler, temper: Any, shape: TreeShape, n: int, seed: int
) -> None:
    options = {"sampler": sampler, "seed": seed, "max_tokens": n}
    plain_steps, plain = plain_run(target, prompt, **options)
    steps, text = run(target, temper(target), prompt, shape=shape, **options)
    assert text == plain and steps[-1].stop == plain_steps[-1].stop
    assert all(step.nodes <= shape.nodes and len(step.draft) <= shape.depth for step in steps)
    assert len(text) <= n and len(prompt) + len(text) <= target.n_ctx + 1


@settings(max_examples=60, deadline=None)
@given(targets, prompts, samplers, st.sampled_from(GROWERS), shapes, st.integers(0, 99))
def test_sampled_trees_keep_the_caches_true_and_stop_where_they_must(
    target: Any, prompt: list[int], sampler: Sampler, temper: Any, shape: TreeShape, seed: int
) -> None:
    steps, text = run(target, temper(target), prompt, sampler=sampler, seed=seed, shape=shape, draft_sampling=True)
    ends = [i for i, token in enumerate(text) if token in target.end_tokens]
    assert ends in ([], [len(text) - 1])
    assert steps[-1].stop == ("end" if ends else "length" if len(text) == 30 else "context")


@settings(max_examples=60, deadline=None)
@given(
    targets,
    prompts,
    samplers,
    st.sampled_from(list(zip(TEMPERS, GROWERS, strict=True))),
    st.integers(1, 5),
    st.booleans(),
)
def test_a_tree_of_one_child_per_node_is_the_cycle_of_chains(
    target: Any, prompt: list[int], sampler: Sampler, tempers: tuple[Any, Any], k: int, sampling: bool
) -> None:
    options = {"sampler": sampler, "seed": 5, "max_tokens": 20, "draft_sampling": sampling}
    tree_steps, _ = run(target, tempers[1](target), prompt, shape=TreeShape(k, 1, k), **options)
    drafter = tempers[0](target)
    list(prefill(target, drafter, prompt))
    steps = list(speculate(target, drafter, prompt[-1], draft_max=k, **options))
    assert [(list(s.draft), s.accepted, list(s.tokens), s.stop) for s in tree_steps] == [
        (list(s.draft), s.accepted, list(s.tokens), s.stop) for s in steps
    ]


def test_the_second_likeliest_child_is_followed_where_a_chain_would_stop() -> None:
    class SecondBest(Perfect):
        def guess(self, text: Any) -> np.ndarray:
            logits = super().guess(text).copy()
            logits[np.argmax(logits)] = np.sort(logits)[-2] - 1e-3  # the target's token becomes the second guess
            return logits

    target = ToyTreeTarget(end=(), n_ctx=200, sharpness=6.0)
    steps, _ = run(target, with_trees(SecondBest)(target), [1, 2], shape=TreeShape(14, 2, 3), max_tokens=40)
    chains, _ = run(target, with_trees(SecondBest)(target), [1, 2], shape=TreeShape(3, 1, 3), max_tokens=40)
    assert all(step.accepted == 0 for step in chains)
    statistics = Statistics()
    for step in steps:
        statistics.add(step)
    assert statistics.tau > 3 and statistics.generated_tokens == 40


def test_a_perfect_drafter_decides_depth_plus_one_tokens_per_step() -> None:
    target = ToyTreeTarget(end=(), n_ctx=100)
    steps, _ = run(target, with_trees(Perfect)(target), [1, 2], shape=TreeShape(30, 2, 4), max_tokens=50)
    assert [len(step.tokens) for step in steps] == [5] * 10


def test_an_adversarial_drafter_costs_rows_but_not_text() -> None:
    target = ToyTreeTarget(end=(), n_ctx=100)
    steps, _ = run(target, with_trees(Adversarial)(target), [1, 2], shape=TreeShape(4, 2, 3), max_tokens=20)
    assert [step.accepted for step in steps] == [0] * 20


def test_a_one_token_prompt_starts_without_a_tree() -> None:
    target = ToyTreeTarget(end=(), n_ctx=100)
    steps, _ = run(target, with_trees(Perfect)(target), [3], max_tokens=6)
    assert steps[0].nodes == 0 < steps[1].nodes


def test_nothing_is_drafted_after_an_end_token() -> None:
    tokens, parents = np.array([1, 6, 2, 3, 6, 4], np.int32), np.array([-1, -1, 0, 1, 2, 3], np.int32)
    tree = cut_after_end(Tree(tokens, parents, np.zeros(6, np.float32)), {6})
    assert tree.tokens.tolist() == [1, 6, 2, 6] and tree.parents.tolist() == [-1, -1, 0, 2]


@pytest.mark.parametrize("sampling", [False, True])
def test_every_coin_of_a_run_decides_at_most_once(monkeypatch: pytest.MonkeyPatch, sampling: bool) -> None:
    target = ToyTreeTarget(end=(), n_ctx=200, sharpness=1.0)
    asked: list[tuple[int, int]] = []

    def coins(seed: int, position: int, n: int, stream: int = 0) -> np.ndarray:
        asked.extend((stream, position + i) for i in range(n))
        return np.random.default_rng([seed, position, stream % 2**31]).random(n)

    monkeypatch.setattr(module, "coins", coins)
    drafter = with_trees(Perfect)(target)
    steps, _ = run(target, drafter, [1, 2], sampler=Sampler(temperature=1.0), max_tokens=60, draft_sampling=sampling)
    # asked for: one per level of each tree, though what lies beyond the path decides nothing and may be asked for again
    positions = {stream: [p for s, p in asked if s == stream] for stream in {s for s, _ in asked}}
    drafts = {stream: p for stream, p in positions.items() if RESIDUAL < stream < SIBLING}
    assert all(len(p) == len(set(p)) for p in drafts.values()), "a draft stream serves one cycle"
    assert len(drafts) == (len([s for s in steps if s.nodes]) if sampling else 0)
    decided = [step.position + i for step in steps for i in range(len(step.tokens))]
    assert decided == list(range(60)), "each position is judged to its end in one cycle, so its coins decide once"
    assert {s for s in positions if s not in drafts} <= (
        {ACCEPT, RESIDUAL, SIBLING + 1, SIBLING + 2} if sampling else {0}
    )


class TreeQuarters(ToyTreeTarget, Quarters):
    """Two tokens with probabilities 1/4 and 3/4."""


def law_of_texts(monkeypatch: pytest.MonkeyPatch, target: Any, n: int, shape: TreeShape) -> Any:
    """Text -> exact probability, over every value of every coin."""
    law: Any = Counter()
    branch: list[int] = []
    while True:
        tape = Tape(branch)
        monkeypatch.setattr(module, "coins", tape.coins)
        drafter = with_trees(Halves)(target)
        list(prefill(target, drafter, PROMPT))
        options: Any = {
            "sampler": Sampler(temperature=1.0),
            "seed": 0,
            "max_tokens": n,
            "shape": shape,
            "draft_sampling": True,
        }
        text = [t for step in speculate_tree(target, drafter, PROMPT[-1], **options) for t in step.tokens]
        law[tuple(text)] += Fraction(1, int(np.prod(tape.sizes, dtype=object)))
        branch = tape.branch
        while branch and branch[-1] + 1 == tape.sizes[len(branch) - 1]:
            branch.pop()
        if not branch:
            return law
        branch[-1] += 1


@pytest.mark.parametrize("n, shape, salt", [
    (2, (1, 1, 1), 0), (2, (2, 2, 1), 0), (2, (2, 2, 1), 1), (3, (2, 2, 1), 2), (3, (2, 1, 2), 1), (3, (3, 2, 2), 2),
])  # fmt: skip
def test_sampled_trees_emit_exactly_the_law_of_the_target(
    monkeypatch: pytest.MonkeyPatch, salt: int, n: int, shape: tuple[int, int, int]
) -> None:
    target = TreeQuarters(n_vocab=2, end=(), salt=salt)
    got = law_of_texts(monkeypatch, target, n, TreeShape(*shape))
    assert len(got) == 2**n and sum(got.values()) == 1
    for text, probability in got.items():
        expected = Fraction(1)
        for i, token in enumerate(text):
            expected *= Fraction(3 if token == target.likely([*PROMPT, *text[:i]]) else 1, 4)
        assert probability == expected


@pytest.mark.parametrize("temperature, asked_at", [(0.0, 0.4), (0.2, 0.4), (0.8, 0.8), (2.0, 2.0)])
def test_a_drafter_is_asked_at_the_temperature_of_the_target(temperature: float, asked_at: float) -> None:
    target, seen = ToyTreeTarget(end=(), n_ctx=60), []

    class Listening(with_trees(Perfect)):  # type: ignore[misc]
        def draft_tree(self, shape: TreeShape, **options: Any) -> Tree:
            seen.append(shape.temperature)
            tree: Tree = super().draft_tree(shape, **options)
            return tree

    run(target, Listening(target), [1, 2], sampler=Sampler(temperature=temperature), max_tokens=8)
    assert set(seen) == {asked_at}
