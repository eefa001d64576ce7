"""Whole generations with trees on llama.cpp, in strict mode: the text is that of plain decoding, token for token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec.adaptive.costs import Costs
from refspec.adaptive.tree_policy import TreePolicy
from refspec.errors import UsageError
from refspec.evaluate import compare
from refspec.llama.tree_target import LlamaTreeTarget
from refspec.reference.sampling import Sampler

PROMPT = np.random.default_rng(9).integers(3, tiny.V, 20).tolist()
GREEDY, WARM = Sampler(), Sampler(temperature=0.9, top_p=0.95)
ENDLESS = Sampler(temperature=0.9, logit_bias={2: -np.inf})  # 2 ends a text


@pytest.fixture(
    scope="module",
    params=[("llama", {}), ("qwen3", dict(feature_norm="per_state", feedback="post_norm"))],
    ids=lambda p: p[0],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, (arch, switches) = tmp_path_factory.mktemp("pair"), request.param
    return tiny.target(folder / "target.gguf", arch), tiny.drafter(folder / "drafter.gguf", **switches)


def session(pair: tuple[Path, Path], **options: Any) -> refspec.Session:
    return refspec.load(*pair, n_ctx=128, threads=1, reproducible="f32", **{"adaptive": False} | options)


@pytest.fixture(scope="module")
def plain(pair: tuple[Path, Path]) -> Iterator[refspec.Session]:
    with session(pair) as opened:
        yield opened


def run(opened: refspec.Session, **options: Any) -> Any:
    generation = opened.generate(tokens=PROMPT, **options)
    for _ in generation:
        pass
    return generation


@pytest.mark.parametrize("tree", ["1:1", "5:2:3", "12:4", "20:6:2"])
@pytest.mark.parametrize("sampler", [GREEDY, WARM], ids=["greedy", "warm"])
def test_text_with_trees_is_the_plain_text(
    pair: tuple[Path, Path], plain: refspec.Session, tree: str, sampler: Sampler
) -> None:
    expected = run(plain, speculate=False, sampler=sampler, seed=3, max_tokens=150)  # to the end of the context
    with session(pair, tree=tree) as opened:
        got = run(opened, sampler=sampler, seed=3, max_tokens=150)
        assert got.tokens == expected.tokens and got.statistics.stop == expected.statistics.stop
        again = run(opened, sampler=sampler, seed=3, max_tokens=40)
        assert again.tokens == expected.tokens[:40]
        without = run(opened, sampler=sampler, seed=3, max_tokens=40, speculate=False)
        assert without.tokens == expected.tokens[:40]


def test_trees_and_chains_draft_the_same_when_nothing_branches(pair: tuple[Path, Path], plain: refspec.Session) -> None:
    with session(pair, tree="4:1:4") as opened:
        trees = run(opened, max_tokens=60).statistics
    chains = run(plain, draft_max=4, max_tokens=60).statistics
    assert (trees.verify_steps, trees.accepted_by_position) == (chains.verify_steps, chains.accepted_by_position)


def test_sampled_trees_run_to_the_end_and_repeat(pair: tuple[Path, Path]) -> None:
    with session(pair, tree="10:3:4") as opened:
        texts = [
            run(opened, sampler=ENDLESS, seed=seed, max_tokens=60, draft_sampling=True).tokens for seed in (1, 1, 2)
        ]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 60


class Knowing:
    """Wraps the tree drafter:

    the plain text is a path of every tree, so that paths are accepted, at random depths and branches.
    """

    def __init__(self, inner: Any, text: list[int]) -> None:
        self.inner, self.text, self.rng = inner, text, np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def draft_tree(self, shape: Any, **options: Any) -> Any:
        tree = self.inner.draft_tree(shape, **options)
        done = self.inner.n_rows + 1  # tokens decided so far, the prompt included
        node, tokens = -1, tree.tokens.copy()
        while tree.children(node):
            node = int(self.rng.choice(tree.children(node)))
            if done < len(self.text):
                tokens[node] = self.text[done]
            done += 1
        return tree._replace(tokens=tokens)


@pytest.mark.parametrize("seed", range(3))
def test_accepted_branches_leave_the_plain_text(pair: tuple[Path, Path], plain: refspec.Session, seed: int) -> None:
    expected = run(plain, speculate=False, sampler=WARM, seed=seed, max_tokens=90)
    with session(pair, tree="9:3:4") as opened:
        inner = opened.drafter
        opened.drafter = Knowing(inner, PROMPT + expected.tokens)
        got = run(opened, sampler=WARM, seed=seed, max_tokens=90)
        opened.drafter = inner
    assert got.tokens == expected.tokens and got.statistics.tau > 2


def test_a_chosen_number_of_nodes_gives_the_plain_text(pair: tuple[Path, Path]) -> None:
    with session(pair, tree="6:3:4", lookup=True) as opened:
        opened.policy = TreePolicy(6, Costs({1: 1.0, 2: 1.1, 7: 1.5}))
        plain = run(opened, speculate=False, sampler=WARM, seed=3, max_tokens=60)
        chosen = run(opened, adaptive=True, sampler=WARM, seed=3, max_tokens=60)
        assert chosen.tokens == plain.tokens and chosen.statistics.tree_sizes, "the first steps try trees"


def test_a_tree_needs_a_drafter_and_no_draft_length(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="there is no drafter; trees are grown"):
        refspec.load(pair[0], tree="4")
    with pytest.raises(UsageError, match="excludes draft_max = 3"):
        session(pair, tree="4", draft_max=3)
    with session(pair, tree="4") as opened, pytest.raises(UsageError, match="leave --adaptive or --draft-sampling out"):
        run(opened, adaptive=True, sampler=WARM, draft_sampling=True)
    with pytest.raises(UsageError, match="is not N, N:topk or N:topk:depth"):
        session(pair, tree="4x")


def test_rows_in_trees_are_looked_at_when_a_difference_is_explained(tmp_path: Path) -> None:
    """A tree's other branches lie between the cells that a row attends to: flash attention rounds unlike any chain."""
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    target = LlamaTreeTarget(file, leaves=8, n_ctx=128, n_threads=1, flash_attn="on")
    try:
        ids = np.random.default_rng(3).integers(3, tiny.V, 52).tolist()
        prompt, text = ids[:12], ids[12:]
        rows = dict(compare._tree_rows(target, prompt, text, range(0, 30), 6))
        assert sorted(rows) == list(range(30)) and target.n_past == 12 + 29
        alone = dict(compare._rows(target, prompt, text, range(0, 30), [1]))
        for i in range(30):
            np.testing.assert_allclose(rows[i], alone[i], atol=0.5)
            assert rows[i].argmax() == alone[i].argmax()
        assert compare.explain(target, prompt, text, text, sampler=Sampler(), seed=0, draft_max=6, trees=True) is None
        other = [*text[:20], (text[20] + 1) % tiny.V, *text[21:]]
        found = compare.explain(target, prompt, text, other, sampler=Sampler(), seed=0, draft_max=6, trees=True)
        assert found is not None and found.position == 20 and found.noise > 0
    finally:
        target.close()
