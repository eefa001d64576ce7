"""The decode cycle on a toy: speculative output equals plain output, whatever drafts, and the caches stay true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import TEMPERS, Adversarial, Noisy, Perfect, ToyDrafter, ToyTarget

from refspec.decoding.cycle import prefill, speculate
from refspec.errors import BackendError
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import Sampler
from refspec.reference.verify import Verdict

GREEDY = Sampler()
samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3]),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    min_p=st.sampled_from([0.0, 0.1]),
    logit_bias=st.sampled_from([{}, {2: 1.5}, {1: -np.inf}]),
)
targets = st.builds(
    ToyTarget, n_ctx=st.integers(3, 24), salt=st.integers(0, 1000), sharpness=st.sampled_from([0.0, 1.0, 4.0])
)
prompts = st.lists(st.integers(0, 6), min_size=1, max_size=3)


def run(target, drafter, prompt, **options):
    """All steps and the tokens they decide; checks the caches after every step."""
    options = {"sampler": GREEDY, "seed": 0, "max_tokens": 30, "draft_max": 0} | options
    list(prefill(target, drafter, prompt, chunk=2))
    steps, text = [], list(prompt)
    for step in speculate(target, drafter, prompt[-1], **options):
        assert step.position == len(text) - len(prompt)
        text += step.tokens
        steps.append(step)
        kept = target.rows
        assert kept == text[: len(kept)] and len(kept) >= len(text) - 1, "the target's cache is the text"
        if drafter is not None and step.stop is None:
            assert drafter.tokens == text[1:] and drafter.n_rows == target.n_past, "the drafter's rows are the text"
    return steps, text[len(prompt) :]


@settings(max_examples=150, deadline=None)
@given(
    targets,
    prompts,
    samplers,
    st.sampled_from(TEMPERS),
    st.integers(0, 9),
    st.integers(1, 30),
    st.integers(0, 2**40),
    st.sampled_from([None, 1, 2]),
)
def test_speculative_text_and_stop_equal_plain_for_any_drafter(target, prompt, sampler, temper, k, n, seed, at_most):
    options = {"sampler": sampler, "seed": seed, "max_tokens": n}
    plain_steps, plain = run(target, None, prompt, **options)
    steps, text = run(target, temper(target, at_most=at_most), prompt, draft_max=k, **options)
    assert text == plain
    assert steps[-1].stop == plain_steps[-1].stop
    assert all(step.stop is None for step in steps[:-1])
    assert all(len(step.draft) <= k for step in steps)
    assert len(text) <= n and len(prompt) + len(text) <= target.n_ctx + 1


@settings(max_examples=60, deadline=None)
@given(targets, prompts, samplers, st.sampled_from(TEMPERS), st.integers(1, 6), st.integers(0, 99))
def test_sampled_drafts_keep_the_caches_true_and_stop_where_they_must(target, prompt, sampler, temper, k, seed):
    steps, text = run(target, temper(target), prompt, sampler=sampler, seed=seed, draft_max=k, draft_sampling=True)
    ends = [i for i, token in enumerate(text) if token in target.end_tokens]
    assert ends in ([], [len(text) - 1])
    assert steps[-1].stop == ("end" if ends else "length" if len(text) == 30 else "context")


def test_a_perfect_drafter_decides_k_plus_one_tokens_per_step():
    target = ToyTarget(end=(), n_ctx=100)
    steps, _ = run(target, Perfect(target), [1, 2], draft_max=4, max_tokens=50)
    assert [len(step.tokens) for step in steps] == [5] * 10
    assert target.decodes == [5] * 10


def test_an_adversarial_drafter_costs_rows_but_not_text():
    target = ToyTarget(end=(), n_ctx=100)
    steps, _ = run(target, Adversarial(target), [1, 2], draft_max=4, max_tokens=20)
    assert [step.accepted for step in steps] == [0] * 20


def test_a_one_token_prompt_starts_without_a_draft():
    target = ToyTarget(end=(), n_ctx=100)
    steps, _ = run(target, Perfect(target), [3], draft_max=4, max_tokens=6)
    assert [len(step.draft) for step in steps] == [0, 4]


def test_an_end_token_inside_a_draft_ends_the_text_there_without_a_bonus_token():
    target = ToyTarget(n_ctx=200, salt=1)
    _, plain = run(target, None, [1], max_tokens=100)
    assert plain[-1] in target.end_tokens and len(plain) > 2
    steps, text = run(target, Perfect(target), [1], draft_max=50, max_tokens=100)
    assert text == plain
    assert list(steps[-1].draft) == list(steps[-1].tokens), (
        "nothing is drafted past the end and nothing is decided past it"
    )


def test_zero_tokens_run_nothing():
    target = ToyTarget()
    assert run(target, None, [1, 2], max_tokens=0) == ([], [])
    assert target.decodes == []


@pytest.mark.parametrize("sampling", [False, True])
def test_every_coin_of_a_run_decides_at_most_once(monkeypatch, sampling):
    target = ToyTarget(end=(), n_ctx=100, sharpness=1.0)
    used = []
    monkeypatch.setattr(
        "refspec.decoding.verifier.coins", lambda seed, position, n, stream: _labels(position, n, stream)
    )
    monkeypatch.setattr(
        "refspec.decoding.verifier.verify_deterministic",
        lambda rows, draft, sampler, coins: _recording(used)(rows, draft, coins),
    )
    monkeypatch.setattr("refspec.decoding.verifier.MatchRule", lambda sampler: _recording(used))
    monkeypatch.setattr("refspec.decoding.verifier.verify_rejection", _recording_rejection(used))
    drafter = Noisy(target)
    draft = drafter.draft

    def recorded_draft(k, *, coins=None, sampler=None, stop=None):
        if coins is None:
            return draft(k)
        used.extend(coins)
        return draft(k, coins=np.full(k, 0.5), sampler=sampler)

    drafter.draft = recorded_draft
    run(target, drafter, [1, 2], sampler=Sampler(temperature=1.0), draft_max=4, max_tokens=40, draft_sampling=sampling)
    assert len(used) >= 40 and len(used) == len(set(used))


def _labels(position, n, stream):
    return np.array([stream + (position + i) / 1000 for i in range(n)])  # one number per (stream, position)


def _recording(used):
    def verify(logits, draft, coins):
        tokens = [int(np.argmax(logits[0]))]
        used.extend(coins[:1])
        return Verdict(0, tokens)

    return verify


def _recording_rejection(used):
    def verify(logits, draft, q, sampler, accept_coins, residual_coins):
        # accepts one draft token when there are two, judges the next, resamples there
        accepted = min(1, len(draft) - 1)
        used.extend(accept_coins[: accepted + 1])
        used.append(residual_coins[accepted])
        return Verdict(accepted, [*(int(t) for t in draft[:accepted]), 0])

    return verify


def test_logits_that_are_not_finite_are_an_error():
    target = ToyTarget()
    target.law = lambda tokens: np.full(target.n_vocab, np.nan, np.float32)
    with pytest.raises(BackendError):
        run(target, None, [1, 2])


class Wrong(ToyDrafter):
    """Fed by a cycle that is off by one, it must notice; the tests above rely on that."""


def test_the_toy_drafter_notices_a_shifted_row():
    drafter = Wrong()
    drafter.extend([5], [[0.0, 3.0]])
    with pytest.raises(AssertionError, match="another row"):
        drafter.extend([6], [[2.0, 5.0]])
    with pytest.raises(AssertionError, match="state at"):
        drafter.extend([6], [[1.0, 4.0]])


@settings(max_examples=60, deadline=None)
@given(targets, prompts, st.sampled_from(TEMPERS), st.integers(0, 6))
def test_statistics_are_the_counts_of_the_steps(target, prompt, temper, k):
    steps, text = run(target, temper(target), prompt, draft_max=k)
    statistics = Statistics()
    for step in steps:
        statistics.add(step)
    assert statistics.generated_tokens == len(text)
    assert statistics.tau == len(text) / len(steps)
    for i, share in enumerate(statistics.accepted_by_position):
        judged = [step for step in steps if len(step.draft) > i]
        assert share == sum(step.accepted > i for step in judged) / len(judged)
