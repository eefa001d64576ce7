"""A target under penalties is one more target: its logits are a function of the tokens before, and the cycle keeps its
law and its output.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_toys import TEMPERS, ToyTarget
from test_sampled_law import PROMPT, Halves, law_of_texts, sampled

from refspec.decoding.cycle import drafting_under, prefill, speculate
from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.draft_penalties import MindsPenalties
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.penalized_target import PenalizedTarget, under
from refspec.errors import UsageError
from refspec.reference.penalties import Penalties, penalize
from refspec.reference.sampling import Sampler

LAWS = [
    Penalties(repeat=1.7, presence=0.4, frequency=0.3, repeat_last_n=5),
    Penalties(dry_multiplier=2.0, dry_allowed_length=1, dry_breakers=("c",)),
    Penalties(frequency=1.0, repeat_last_n=-1, dry_multiplier=1.0, dry_base=1.2, dry_breakers=(), prompt=True),
]


def expected(target, held, penalties, first):
    """Logits after these tokens, by the reference."""
    history = held[first:]
    breaks = [any(text.encode() in target.pieces[t] for text in penalties.dry_breakers) for t in history]
    return penalize(target.law(held), history, penalties, breaks)


@pytest.mark.parametrize("penalties", LAWS)
@given(st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 4)), max_size=6))
def test_a_row_depends_on_the_rows_up_to_it_only(penalties, batches):
    inner = ToyTarget(n_ctx=60)
    target = under(inner, penalties, [3, 1, 1])
    first = 0 if penalties.prompt else 3
    target.decode([3, 1, 1], logits="none")
    for tokens, back in batches:
        start = target.n_past
        assert target.decode(tokens, logits="all") == len(tokens)
        for i in range(len(tokens)):
            np.testing.assert_array_equal(
                target.logits(i), expected(inner, inner.rows[: start + i + 1], penalties, first)
            )
        target.rollback(max(target.n_past - back, start + 1))


def test_penalties_that_nobody_would_apply_are_refused():
    with pytest.raises(UsageError, match="applies none"):
        next(speculate(ToyTarget(), None, 1, sampler=Sampler(penalties=LAWS[0]), seed=0, max_tokens=3, draft_max=0))


class Trees(ToyTarget):
    """The toy with trees: what a tree holds is kept aside until a path is chosen."""

    def decode_tree(self, tokens, parents):
        self.paths = [[int(tokens[0])]]
        for token, parent in zip(tokens[1:], parents, strict=True):
            self.paths.append([*self.paths[int(parent) + 1], int(token)])
        self._logits = [self.law([*self.rows, *path]) for path in self.paths]
        return len(tokens)

    def keep_path(self, nodes):
        self.rows += self.paths[nodes[-1] + 1 if nodes else 0]


@pytest.mark.parametrize("penalties", LAWS)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=7), st.integers(-1, 6))
def test_a_node_depends_on_its_path_only(penalties, nodes, kept):
    inner = Trees(n_ctx=60)
    target = PenalizedTarget(inner, penalties, 2)
    target.decode([2, 5, 2, 5], logits="all")
    parents = [parent % (i + 1) - 1 for i, (_, parent) in enumerate(nodes)]
    rows = target.decode_tree([2, *(token for token, _ in nodes)], parents)
    for i in range(rows):
        np.testing.assert_array_equal(target.logits(i), expected(inner, [*inner.rows, *inner.paths[i]], penalties, 2))
    path, node = [], kept % len(nodes) if kept >= 0 else -1
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    target.keep_path(path)
    target.decode([4], logits="all")
    np.testing.assert_array_equal(target.logits(0), expected(inner, inner.rows, penalties, 2))


@pytest.mark.parametrize("temper", TEMPERS)
@pytest.mark.parametrize("penalties", LAWS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_of_a_seed_is_the_plain_one(temper, penalties, temperature):
    texts = []
    for draft_max in (0, 1, 4):
        inner = ToyTarget(end=())
        drafter = temper(inner)
        target = under(inner, penalties, [1, 2, 1])
        list(prefill(target, drafter, [1, 2, 1]))
        options = {
            "sampler": Sampler(temperature=temperature, penalties=penalties),
            "seed": 7,
            "max_tokens": 25,
            "draft_max": draft_max,
        }
        texts.append([t for step in speculate(target, drafter, 1, **options) for t in step.tokens])
    assert len(texts[0]) == 25 and texts[0] == texts[1] == texts[2]
    plain = ToyTarget(end=())
    list(prefill(plain, None, [1, 2, 1]))
    steps = speculate(plain, None, 1, sampler=Sampler(temperature=temperature), seed=7, max_tokens=25, draft_max=0)
    assert texts[0] != [t for step in steps for t in step.tokens], "the penalties change this text"


class Even(ToyTarget):
    """Two tokens, equally likely."""

    def law(self, tokens):
        return np.zeros(2, np.float32)


THIRD = float(np.log(3.0))  # a penalty of log 3 on one of two equal tokens makes quarters
CASES = {
    "the newest token": (Penalties(presence=THIRD, repeat_last_n=1), lambda text: {text[-1]} if text else set()),
    "what goes on": (
        Penalties(dry_multiplier=THIRD, dry_base=1.0, dry_allowed_length=1, dry_breakers=()),
        lambda text: {b for a, b in pairwise(text) if a == text[-1]},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n, k", [(3, 1), (3, 2), (4, 2)])
def test_sampled_drafts_emit_exactly_the_penalized_law(monkeypatch, case, n, k):
    penalties, punished = CASES[case]
    inner, sampler = Even(n_vocab=2, end=()), Sampler(temperature=1.0, penalties=penalties)
    law = law_of_texts(
        monkeypatch, lambda: sampled(under(inner, penalties, PROMPT), Halves(inner), sampler=sampler, n=n, k=k)
    )
    assert len(law) == 2**n and sum(law.values()) == 1
    for text, probability in law.items():
        wanted = Fraction(1)
        for i, token in enumerate(text):
            bad = punished(text[:i])
            wanted *= Fraction(1, 2) if len(bad) != 1 else Fraction(1 if token in bad else 3, 4)
        assert probability == wanted, text


class Minding:
    """A drafter that notes what it is told to draft under."""

    capture_layers, penalties, n_rows, seconds = (), None, 0, 0.0


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DeferredDrafter(d, lambda: False), FallbackDrafter])
def test_a_run_tells_half_of_its_penalties_and_the_next_one_without_any_takes_them_back(wrap):
    inner, target = Minding(), ToyTarget()
    drafter = wrap(inner)
    assert isinstance(drafter, MindsPenalties)
    minded = drafting_under(under(target, Penalties(presence=1.0, dry_multiplier=2.0), [1, 2]), drafter)
    assert minded is not None and inner.penalties is minded and minded.first == 2
    assert minded.penalizer.penalties == Penalties(presence=0.5, dry_multiplier=1.0)
    assert drafting_under(target, drafter) is None and inner.penalties is None
