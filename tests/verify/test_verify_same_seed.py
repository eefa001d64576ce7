"""The promise of the default mode: the same seed gives the same tokens with and without speculation."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_backends import Backend
from verify_toys import ToyModel, models, samplers

from refspec.reference.sampling import Sampler, coins

Tokens = tuple[int, ...]


def plain(backend: Backend, target: ToyModel, sampler: Sampler, seed: int, n: int) -> Tokens:
    text: Tokens = ()
    for position in range(n):
        text += (backend.sample(target.logits(text), sampler, backend.coin(seed, position)),)
    return text


def speculative(
    backend: Backend, target: ToyModel, sampler: Sampler, seed: int, n: int, luck: float, draft_seed: int
) -> tuple[Tokens, int]:
    """Generation with drafts of random length; with probability `luck` a draft token is what plain decoding emits."""
    rng = np.random.default_rng(draft_seed)
    answer = plain(backend, target, sampler, seed, n + 8)
    text: Tokens = ()
    accepted = 0
    while len(text) < n:
        k = int(rng.integers(0, 8))
        truth = answer[len(text) : len(text) + k]
        draft = tuple(t if rng.random() < luck else int(rng.integers(target.vocab)) for t in truth)
        logits = [target.logits(text + draft[:i]) for i in range(k + 1)]
        verdict = backend.verify_deterministic(logits, draft, sampler, coins(seed, len(text), k + 1))
        text += tuple(verdict.tokens)
        accepted += verdict.accepted
    return text[:n], accepted


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    vocab=st.sampled_from([2, 3, 17, 200]),
    seed=st.integers(0, 2**64 - 1),
    luck=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    draft_seed=st.integers(0, 2**32 - 1),
)
def test_same_seed_same_tokens_for_any_draft(
    backend: Backend, data: st.DataObject, vocab: int, seed: int, luck: float, draft_seed: int
) -> None:
    target, sampler = data.draw(models(vocab)), data.draw(samplers(vocab))
    text, accepted = speculative(backend, target, sampler, seed, 24, luck, draft_seed)
    assert text == plain(backend, target, sampler, seed, 24)
    if luck == 1.0:
        assert accepted > 0


def test_another_seed_gives_another_text(backend: Backend) -> None:
    target, sampler = ToyModel(200, 3, 1.0, False, False), Sampler(temperature=1.0)
    texts = {plain(backend, target, sampler, seed, 24) for seed in range(20)}
    assert len(texts) == 20


def test_at_temperature_zero_the_coins_do_not_matter(backend: Backend) -> None:
    target, sampler = ToyModel(17, 3, 1.0, False, False), Sampler()
    assert plain(backend, target, sampler, 1, 24) == plain(backend, target, sampler, 2, 24)
