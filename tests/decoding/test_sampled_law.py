"""Sampled drafts through the whole cycle emit exactly the target's law: every path enumerated, probabilities as
fractions.

Each coin the cycle asks for is a variable named by (stream, position). The distributions are made of quarters and
halves, so a few values of each coin stand for all, and the probability of a text is a sum of exact fractions. A coin
that decided twice would show as a wrong law.
"""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from loop_toys import Perfect, ToyTarget

from refspec.decoding import verifier as module
from refspec.decoding.cycle import prefill, speculate
from refspec.reference.sampling import RESIDUAL, Sampler

PROMPT = [1, 0]


class Quarters(ToyTarget):
    """Two tokens with probabilities 1/4 and 3/4; which is which depends on all tokens before."""

    def likely(self, tokens):
        return int(super().law(tokens)[0] > 0)

    def law(self, tokens):
        p = np.full(2, 0.25)
        p[self.likely(tokens)] = 0.75
        return np.log(p).astype(np.float32)


class Halves(Perfect):
    """Draws either token with probability 1/2."""

    def guess(self, text):
        return np.zeros(2, np.float32)


class Tape:
    """Coins by name: known ones again, new ones from the branch being explored."""

    def __init__(self, branch):
        self.branch, self.sizes, self.index = branch, [], {}

    def coins(self, seed, position, n, stream=0):
        return np.array([self.coin((stream, position + i)) for i in range(n)])

    def coin(self, name):
        if name not in self.index:
            self.index[name] = len(self.sizes)
            self.sizes.append(4 if name[0] == RESIDUAL else 2)
            self.branch += [0] * (len(self.sizes) - len(self.branch))
        i = self.index[name]
        return (self.branch[i] + 0.5) / self.sizes[i]


def law_of_texts(monkeypatch, text_of, tape_of=Tape):
    """Text -> exact probability, over every value of every coin that `text_of()` asks the cycle for."""
    law, branch = Counter(), []
    while True:
        tape = tape_of(branch)
        monkeypatch.setattr(module, "coins", tape.coins)
        law[tuple(text_of())] += Fraction(1, int(np.prod(tape.sizes)))
        branch = tape.branch
        while branch and branch[-1] + 1 == tape.sizes[len(branch) - 1]:
            branch.pop()
        if not branch:
            return law
        branch[-1] += 1


def sampled(target, drafter, *, sampler, n, k, policy=None):
    """A text of n tokens by sampled drafts of at most k."""
    list(prefill(target, drafter, PROMPT))
    options = {"sampler": sampler, "seed": 0, "max_tokens": n, "draft_max": k, "draft_sampling": True, "policy": policy}
    return [t for step in speculate(target, drafter, PROMPT[-1], **options) for t in step.tokens]


@pytest.mark.parametrize("salt", [0, 1, 2])
@pytest.mark.parametrize("n, k", [(2, 1), (3, 1), (3, 2)])
def test_sampled_drafts_emit_exactly_the_law_of_the_target(monkeypatch, salt, n, k):
    target = Quarters(n_vocab=2, end=(), salt=salt)
    got = law_of_texts(monkeypatch, lambda: sampled(target, Halves(target), sampler=Sampler(temperature=1.0), n=n, k=k))
    assert len(got) == 2**n and sum(got.values()) == 1
    for text, probability in got.items():
        expected = Fraction(1)
        for i, token in enumerate(text):
            expected *= Fraction(3 if token == target.likely([*PROMPT, *text[:i]]) else 1, 4)
        assert probability == expected
