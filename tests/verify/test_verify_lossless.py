"""Losslessness by exact enumeration: every path of the real functions, no statistics, total variation <= 1e-12."""

import math

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_backends import Backend
from verify_enumeration import Distribution, Tokens, cells, continued, path_law, total_variation
from verify_steps import LOSSLESS, match_step, rejection_step, targets_law, variation
from verify_toys import ToyDrafter, ToyModel, drafters, models, samplers

from refspec.reference.sampling import Sampler, invert_cdf, p_target

# (vocabulary, draft length) of the rejection rule: V^k drafts are followed, so the dear pair (4, 3) stands alone below
SIZES = [(3, 2), (2, 1), (2, 2), (2, 3), (3, 1), (4, 1), (4, 2), (3, 3), (2, 0)]

few = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fewer = settings(few, max_examples=30)


# --- the building blocks ---


@few
@given(data=st.data(), vocab=st.integers(1, 6))
def test_invert_cdf_draws_exactly_its_law(backend: Backend, data: st.DataObject, vocab: int) -> None:
    weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1.0, 7.0]), min_size=vocab, max_size=vocab)))
    weights[data.draw(st.integers(0, vocab - 1))] = 1.0
    p = weights / weights.sum()
    law = path_law(lambda coins: (backend.invert_cdf(p, coins[0]),), [np.cumsum(p)])
    assert all(p[token] > 0 for (token,) in law)
    assert total_variation({t: float(w) for t, w in law.items()}, {(i,): float(p[i]) for i in range(vocab)}) <= LOSSLESS


@few
@given(data=st.data(), vocab=st.integers(2, 4))
def test_sample_draws_exactly_the_targets_law(backend: Backend, data: st.DataObject, vocab: int) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    logits = target.logits(())
    law = path_law(lambda coins: (backend.sample(logits, sampler, coins[0]),), [np.cumsum(p_target(logits, sampler))])
    assert total_variation({t: float(w) for t, w in law.items()}, targets_law(target, sampler, 1)) <= LOSSLESS


def test_enumeration_needs_no_hints() -> None:
    p = np.array([0.2, 0.0, 0.5, 0.3])
    with_hints = cells(lambda c: invert_cdf(p, c), np.cumsum(p))
    without = cells(lambda c: invert_cdf(p, c))
    misled = cells(lambda c: invert_cdf(p, c), [0.1, 0.4, 0.77])
    assert with_hints == without == misled
    assert [invert_cdf(p, coin) for coin, _ in without] == [0, 2, 3]


# --- one verify step ---


@few
@given(data=st.data(), vocab=st.integers(2, 4), k=st.integers(0, 3))
def test_match_rule_emits_exactly_p_target(backend: Backend, data: st.DataObject, vocab: int, k: int) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    draft = tuple(data.draw(st.lists(st.integers(0, vocab - 1), min_size=k, max_size=k)))
    step = match_step(backend.verify_deterministic, target, draft, sampler, ())
    assert variation(step, target, sampler, k + 1) <= LOSSLESS


@few
@given(data=st.data(), size=st.sampled_from(SIZES))
def test_rejection_emits_exactly_p_target(backend: Backend, data: st.DataObject, size: tuple[int, int]) -> None:
    vocab, k = size
    target, drafter, sampler = data.draw(models(vocab)), data.draw(drafters(vocab)), data.draw(samplers(vocab))
    step = rejection_step(backend.verify_rejection, target, drafter, k, sampler)
    assert variation(step, target, sampler, k + 1) <= LOSSLESS


def test_rejection_emits_exactly_p_target_for_four_tokens_and_depth_three(backend: Backend) -> None:
    target, drafter = ToyModel(4, 5, 1.5, False, False), ToyDrafter(ToyModel(4, 6, 1.5, False, False), 3)
    sampler = Sampler(temperature=0.8, top_k=3, top_p=0.95, min_p=0.01, logit_bias={2: 0.5})
    step = rejection_step(backend.verify_rejection, target, drafter, 3, sampler)
    assert {len(tokens) for tokens in step} == {1, 2, 3, 4}  # every accepted length occurs
    assert variation(step, target, sampler, 4) <= LOSSLESS


@fewer
@given(data=st.data(), vocab=st.integers(2, 4))
def test_a_perfect_drafter_is_always_accepted(backend: Backend, data: st.DataObject, vocab: int) -> None:
    target, sampler = data.draw(models(vocab)), Sampler(temperature=1.0)
    perfect = ToyDrafter(target, vocab)
    step = rejection_step(backend.verify_rejection, target, perfect, 2, sampler)
    rejected = math.fsum(weight for tokens, weight in step.items() if len(tokens) < 3)
    assert rejected <= LOSSLESS  # p = q up to rounding
    assert variation(step, target, sampler, 3) <= LOSSLESS


@few
@given(data=st.data(), vocab=st.integers(2, 4))
def test_rejection_accepts_sum_min_p_q_and_match_accepts_p(backend: Backend, data: st.DataObject, vocab: int) -> None:
    target, drafter = data.draw(models(vocab)), data.draw(drafters(vocab))
    sampler = data.draw(samplers(vocab, temperatures=(0.7, 1.0)))
    p, q = p_target(target.logits(()), sampler), drafter.q(())
    step = rejection_step(backend.verify_rejection, target, drafter, 1, sampler)
    accepted = math.fsum(weight for tokens, weight in step.items() if len(tokens) == 2)
    assert abs(accepted - np.minimum(p, q).sum()) <= LOSSLESS
    token = drafter.tokens((), 1)[0]
    match = match_step(backend.verify_deterministic, target, (token,), sampler, ())
    assert abs(math.fsum(weight for tokens, weight in match.items() if len(tokens) == 2) - p[token]) <= LOSSLESS


# --- verify steps that follow one another ---


def draft_length(history: Tokens, longest: int) -> int:
    return (7 * len(history) + 3 * sum(history)) % (longest + 1)  # adaptive: depends on what was emitted


@fewer
@given(data=st.data(), vocab=st.integers(2, 3))
def test_generation_by_match_rule_has_the_targets_law(backend: Backend, data: st.DataObject, vocab: int) -> None:
    target, drafter, sampler = data.draw(models(vocab)), data.draw(drafters(vocab)), data.draw(samplers(vocab))

    def step(history: Tokens) -> Distribution:
        draft = tuple(drafter.tokens(history, draft_length(history, 2)))
        return match_step(backend.verify_deterministic, target, draft, sampler, history)

    assert total_variation(continued(step, 4), targets_law(target, sampler, 4)) <= LOSSLESS


@fewer
@given(data=st.data(), vocab=st.integers(2, 3))
def test_generation_by_rejection_has_the_targets_law(backend: Backend, data: st.DataObject, vocab: int) -> None:
    target, drafter, sampler = data.draw(models(vocab)), data.draw(drafters(vocab)), data.draw(samplers(vocab))

    def step(history: Tokens) -> Distribution:
        depth = draft_length(history, 2)
        return rejection_step(backend.verify_rejection, target, drafter, depth, sampler, history)

    assert total_variation(continued(step, 3), targets_law(target, sampler, 3)) <= LOSSLESS
