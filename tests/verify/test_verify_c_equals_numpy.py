"""C returns the bits of refspec.reference's sampling and verify: probabilities (0 ulp) and decisions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_backends import BAD_COIN, BAD_LAW, BAD_TOKEN, EXTENSION, NOT_FINITE, NUMPY, Backend, CError

from refspec.errors import BackendError, RefspecError, UsageError
from refspec.reference import sampling
from refspec.reference.sampling import Sampler

many = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw: Any) -> tuple[np.ndarray, Sampler, np.random.Generator]:
    """Logits [V] with ties, masks and wide ranges, any sampler, and a generator for the rest of the case."""
    vocab = draw(st.sampled_from([1, 2, 3, 5, 40, 333, 4096]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=vocab) * draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0, 1000.0, 1e37]))
    if draw(st.booleans()):
        x = np.round(x)
    if draw(st.booleans()):
        x[1:][rng.random(vocab - 1) < 0.5] = -np.inf
    ids = rng.choice(vocab, size=min(vocab, draw(st.integers(0, 4))), replace=False)
    values = rng.choice([-1.5, 0.0, 2.25, 100.0, -np.inf, -1e308], size=len(ids))
    sampler = Sampler(
        temperature=draw(st.sampled_from([0.0, 1.0, 0.8, 1e-3, 1e-300, 50.0])),
        top_k=draw(st.one_of(st.just(0), st.integers(0, vocab + 2))),
        top_p=draw(st.one_of(st.just(1.0), st.floats(1e-6, 1.0, exclude_max=True))),
        min_p=draw(st.one_of(st.just(0.0), st.floats(0.0, 1.0))),
        logit_bias={int(i): float(v) for i, v in zip(ids, values, strict=True) if i or np.isfinite(v)},
    )
    return x.astype(np.float32), sampler, rng


def bits(x: np.ndarray) -> bytes:
    return np.ascontiguousarray(x, dtype=np.float64).tobytes()


@many
@given(case=cases())
def test_p_target_is_bit_equal(compiled: Backend, case: tuple[np.ndarray, Sampler, np.random.Generator]) -> None:
    logits, sampler, rng = case
    p = NUMPY.p_target(logits, sampler)
    assert bits(compiled.p_target(logits, sampler)) == bits(p)
    for coin in [0.0, 1 - 2**-53, *rng.random(8)]:
        assert compiled.invert_cdf(p, coin) == NUMPY.invert_cdf(p, coin)
        assert compiled.sample(logits, sampler, coin) == NUMPY.sample(logits, sampler, coin)


@many
@given(case=cases())
def test_residual_is_bit_equal(compiled: Backend, case: tuple[np.ndarray, Sampler, np.random.Generator]) -> None:
    logits, sampler, rng = case
    p = NUMPY.p_target(logits, sampler)
    for q in (p, rng.permutation(p), rng.dirichlet(np.ones(len(p)))):
        assert bits(compiled.residual(p, q)) == bits(NUMPY.residual(p, q))


@many
@given(case=cases(), k=st.integers(0, 6))
def test_verdicts_are_equal(compiled: Backend, case: tuple[np.ndarray, Sampler, np.random.Generator], k: int) -> None:
    row, sampler, rng = case
    shift = np.round(rng.normal(size=(k + 1, len(row))) * rng.choice([0.0, 0.3, 3.0]), 1)
    logits = (row + shift).astype(np.float32)  # [k+1, V]
    p = [NUMPY.p_target(r, sampler) for r in logits]
    q = [np.asarray(0.5 * p[i] + 0.5 * rng.dirichlet(np.ones(len(row)))) for i in range(k)]
    q = [r / r.sum() for r in q]
    draft = [NUMPY.invert_cdf(r, rng.random()) for r in q]
    u, v = rng.random(k), rng.random(k + 1)
    args = (logits, draft, sampler, v)
    assert compiled.verify_deterministic(*args) == NUMPY.verify_deterministic(*args)
    sampled = (logits, draft, q, sampler, u, v)
    assert compiled.verify_rejection(*sampled) == NUMPY.verify_rejection(*sampled)


@many
@given(seed=st.integers(-(2**63), 2**64 - 1), position=st.integers(0, 2**40), stream=st.integers(0, 2**40))
def test_coins_are_bit_equal(compiled: Backend, seed: int, position: int, stream: int) -> None:
    assert compiled.coin(seed, position, stream) == sampling.coin(seed, position, stream)


FLAT = np.zeros(4, np.float32)
ON = Sampler(temperature=1.0)
BAD_LOGITS = [
    np.array([0, np.nan, 1, 2], np.float32),
    np.array([np.nan, 0, 1, 2], np.float32),
    np.array([0, np.inf, 1, 2], np.float32),
    np.full(4, -np.inf, np.float32),
]


@pytest.mark.parametrize("logits", BAD_LOGITS)
@pytest.mark.parametrize("sampler", [Sampler(), ON, Sampler(temperature=1.0, top_k=2), Sampler(logit_bias={1: 2.0})])
def test_both_refuse_logits_that_are_not_numbers(c_backend: Backend, logits: np.ndarray, sampler: Sampler) -> None:
    for call in ("p_target", "sample"):
        coin = () if call == "p_target" else (0.5,)
        with pytest.raises(BackendError, match=r"^target logits: [^\n]*$"):
            getattr(NUMPY, call)(logits, sampler, *coin)
        with pytest.raises(CError) as caught:
            getattr(c_backend, call)(logits, sampler, *coin)
        assert caught.value.status == NOT_FINITE


HALF = np.array([0.5, 0.5, 0.0, 0.0])
REFUSED: list[tuple[str, tuple[Any, ...], type[RefspecError], int]] = [
    ("invert_cdf", (HALF, 1.0), UsageError, BAD_COIN),
    ("invert_cdf", (HALF, float("nan")), UsageError, BAD_COIN),
    ("invert_cdf", (np.zeros(4), 0.5), BackendError, BAD_LAW),
    ("invert_cdf", (np.full(4, np.nan), 0.5), BackendError, BAD_LAW),
    ("p_target", (FLAT, Sampler(logit_bias={4: 1.0})), UsageError, BAD_TOKEN),
    ("sample", (FLAT, Sampler(logit_bias={4: 1.0}), 0.5), UsageError, BAD_TOKEN),
    ("verify_deterministic", ([FLAT, FLAT], [4], ON, [0.5, 0.5]), RefspecError, BAD_TOKEN),
    ("verify_deterministic", ([FLAT, FLAT], [-1], ON, [0.5, 0.5]), RefspecError, BAD_TOKEN),
    ("verify_rejection", ([FLAT, FLAT], [4], [HALF], ON, [0.5], [0.5, 0.5]), RefspecError, BAD_TOKEN),
    ("verify_rejection", ([FLAT, FLAT], [2], [HALF], ON, [0.5], [0.5, 0.5]), BackendError, BAD_LAW),
    ("verify_rejection", ([FLAT, FLAT], [0], [HALF * 1.001], ON, [0.5], [0.5, 0.5]), BackendError, BAD_LAW),
    ("verify_rejection", ([FLAT, FLAT], [0], [HALF * np.nan], ON, [0.5], [0.5, 0.5]), BackendError, BAD_LAW),
    ("verify_rejection", ([FLAT, FLAT], [0], [np.array([0.9, 0.3, -0.2, 0.0])], ON, [0.5], [0.5, 0.5]), BackendError,
     BAD_LAW),
]  # fmt: skip


@pytest.mark.parametrize("name, args, error, status", REFUSED)
def test_both_refuse_the_same_input(
    c_backend: Backend, name: str, args: tuple[Any, ...], error: type[RefspecError], status: int
) -> None:
    with pytest.raises(error) as said:
        getattr(NUMPY, name)(*args)
    assert "\n" not in str(said.value)
    with pytest.raises(CError) as caught:
        getattr(c_backend, name)(*args)
    assert caught.value.status == status
    with pytest.raises(error) as repeated:  # the extension answers a status with Python's own message
        getattr(EXTENSION, name)(*args)
    assert str(repeated.value) == str(said.value)
