"""The comparison with plain decoding:

it finds the first difference, and tells the engine's rounding from an error of ours.
"""

import numpy as np
import pytest
from loop_toys import Perfect, ToyTarget

from refspec.evaluate.compare import explain, first_difference
from refspec.reference.sampling import TARGET, Sampler, coin, p_target
from refspec.session import Session

GREEDY = Sampler()


class Rounding(ToyTarget):
    """A target whose two leading candidates differ by less than its rounding between batch shapes."""

    margin, noise = 1e-4, 1e-3

    def law(self, tokens):
        row = super().law(tokens)
        best, second = np.argsort(row)[::-1][:2]
        row[second] = row[best] - np.float32(self.margin)
        return row

    def decode(self, tokens, *, logits="all"):
        rows = super().decode(tokens, logits=logits)
        if rows > 1:
            wave = np.cos(np.arange(self.n_vocab) + len(self.rows)).astype(np.float32)
            self._logits = [row + self.noise * wave for row in self._logits]
        return rows


def texts(target, sampler, seed=3, n=60):
    session = Session(target, Perfect(target), draft_max=3)
    runs = []
    for speculate in (False, True):
        generation = session.generate("hello", raw=True, max_tokens=n, sampler=sampler, seed=seed, speculate=speculate)
        list(generation)
        runs.append(generation)
    return session, runs[0].prompt, runs[0].tokens, runs[1].tokens


def test_equal_texts_have_no_difference():
    target = ToyTarget(n_ctx=200, end=())
    _, prompt, plain, fast = texts(target, GREEDY)
    assert explain(target, prompt, plain, fast, sampler=GREEDY, seed=3, draft_max=3) is None


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(logit_bias={2: 0.5, 1: -np.inf})])
def test_a_difference_by_rounding_is_found_and_lies_within_the_measured_noise(sampler):
    target = Rounding(n_ctx=200, end=())
    _, prompt, plain, fast = texts(target, sampler)
    found = explain(target, prompt, plain, fast, sampler=sampler, seed=3, draft_max=3)
    assert found is not None and found.position == first_difference(plain, fast)
    assert found.unit == "logit" and found.within_noise
    assert found.noise == pytest.approx(Rounding.noise, rel=0.1) and found.limit == 2 * found.noise


def test_a_difference_that_rounding_cannot_explain_is_told_apart():
    target = Rounding(n_ctx=200, end=())
    _, prompt, plain, _ = texts(target, GREEDY)
    wrong = list(plain)
    wrong[5] = int(np.argmin(target.law([*prompt, *plain[:5]])))
    found = explain(target, prompt, plain, wrong, sampler=GREEDY, seed=3, draft_max=3)
    assert found is not None and found.position == 5 and not found.within_noise


def test_at_a_temperature_the_gap_is_the_distance_of_the_coin_from_the_other_token():
    sampler = Sampler(temperature=0.8)
    target = Rounding(n_ctx=200, end=())
    _, prompt, plain, _ = texts(target, sampler)
    cdf = np.cumsum(p_target(target.law([*prompt, *plain[:4]]), sampler))
    u = coin(3, 4, TARGET)
    other = (plain[4] + 1) % target.n_vocab
    wrong = [*plain[:4], other]
    found = explain(target, prompt, plain, wrong, sampler=sampler, seed=3, draft_max=3)
    low = cdf[other - 1] if other else 0.0
    assert found is not None and found.unit == "probability"
    assert found.gap == pytest.approx(max(low - u, u - cdf[other]))
    assert found.within_noise == (found.gap <= found.limit)
    # The bound of the module's head: a logit noise e moves a cumulative probability by at most e / (2 T).
    assert found.limit <= Rounding.noise / (2 * 0.8) * 1.01


def test_texts_of_different_length_agree_as_far_as_both_went():
    assert first_difference([1, 2, 3], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 4]) == 1
