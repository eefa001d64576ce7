"""The pieces of refspec.reference.sampling one by one: settings, the order of the filters, ties, exp, and coins."""

import math
from typing import Any

import numpy as np
import pytest
from verify_backends import Backend

from refspec.errors import ShapeError, UsageError
from refspec.reference.sampling import DRAFT, Sampler, coin, coins, exp_nonpositive, p_target
from refspec.reference.verify import verify_deterministic, verify_rejection


def log(p: list[float]) -> np.ndarray:
    return np.log(np.array(p)).astype(np.float32)


def kept(backend: Backend, p: list[float], sampler: Sampler) -> list[int]:
    return np.flatnonzero(backend.p_target(log(p), sampler)).tolist()


def test_the_default_is_greedy_with_the_lowest_index_on_ties(backend: Backend) -> None:
    logits = np.array([1, 5, 5, 2], np.float32)
    assert backend.p_target(logits, Sampler()).tolist() == [0, 1, 0, 0]
    assert backend.sample(logits, Sampler(), 0.999) == 1
    assert backend.sample(logits, Sampler(logit_bias={2: 1e-9}), 0.0) == 2  # below float32 resolution, still counts


def test_top_k_breaks_ties_by_the_lowest_index(backend: Backend) -> None:
    law = [0.1, 0.2, 0.2, 0.2, 0.3]
    assert kept(backend, law, Sampler(temperature=1.0, top_k=3)) == [1, 2, 4]
    assert kept(backend, law, Sampler(temperature=1.0, top_k=9)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_its_mass(backend: Backend) -> None:
    law = [0.5, 0.25, 0.15, 0.1]
    assert kept(backend, law, Sampler(temperature=1.0, top_p=0.76)) == [0, 1, 2]
    assert kept(backend, law, Sampler(temperature=1.0, top_p=0.74)) == [0, 1]
    assert kept(backend, law, Sampler(temperature=1.0, top_p=1e-9)) == [0]
    assert kept(backend, [0.25] * 4, Sampler(temperature=1.0, top_p=0.5)) == [0, 1]  # reaching it exactly is enough


def test_top_p_counts_mass_after_top_k(backend: Backend) -> None:
    law = [0.4, 0.3, 0.2, 0.1]  # the best two of the four hold 4/7 and 3/7
    assert kept(backend, law, Sampler(temperature=1.0, top_p=0.56)) == [0, 1]
    assert kept(backend, law, Sampler(temperature=1.0, top_k=2, top_p=0.56)) == [0]


def test_min_p_is_relative_to_the_most_probable_token(backend: Backend) -> None:
    law = [0.5, 0.3, 0.15, 0.05]
    assert kept(backend, law, Sampler(temperature=1.0, min_p=0.29)) == [0, 1, 2]
    assert kept(backend, law, Sampler(temperature=1.0, min_p=0.31)) == [0, 1]
    assert kept(backend, law, Sampler(temperature=1.0, min_p=1.0)) == [0]


def test_filters_look_at_the_untempered_law(backend: Backend) -> None:
    law = [0.6, 0.3, 0.1]
    for temperature in (0.1, 1.0, 10.0):
        assert kept(backend, law, Sampler(temperature=temperature, top_p=0.85)) == [0, 1]
        assert kept(backend, law, Sampler(temperature=temperature, min_p=0.2)) == [0, 1]


def test_bias_comes_first(backend: Backend) -> None:
    law = [0.6, 0.3, 0.1]
    assert kept(backend, law, Sampler(temperature=1.0, top_k=1, logit_bias={2: 5.0})) == [2]
    assert kept(backend, law, Sampler(temperature=1.0, logit_bias={0: -math.inf})) == [1, 2]


def test_p_target_is_softmax_when_all_filters_are_off(backend: Backend) -> None:
    logits = (np.random.default_rng(0).normal(size=4096) * 4).astype(np.float32)
    x = logits.astype(np.longdouble) / np.longdouble(0.7)
    exact = np.exp(x - x.max())
    exact /= exact.sum()
    p = backend.p_target(logits, Sampler(temperature=0.7))
    assert np.max(np.abs(p / exact - 1)) <= 1e-13  # sequential sum of 4096 and the rounded quotient by T


def test_exp_is_within_two_ulp() -> None:
    x = np.concatenate([[0.0, -0.0, -1e-300, -708.0], -np.random.default_rng(0).uniform(0, 708, 20000)])
    exact = np.array([math.exp(v) for v in x])
    assert np.max(np.abs(exp_nonpositive(x) - exact) / np.spacing(exact)) <= 2
    assert exp_nonpositive(np.array([0.0, -708.1, -np.inf, -1e308])).tolist() == [1, 0, 0, 0]


def test_residual_is_the_normalised_positive_part(backend: Backend) -> None:
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.4, 0.1, 0.4])
    assert np.allclose(backend.residual(p, q), [0.8, 0, 0.2, 0], rtol=1e-15, atol=0)
    assert backend.residual(p, p).tolist() == p.tolist()  # nothing left: p


def test_a_token_outside_the_targets_law_is_never_accepted(backend: Backend) -> None:
    logits, sampler = np.tile(log([0.6, 0.3, 0.1]), (2, 1)), Sampler(temperature=1.0, top_k=2)
    q = np.array([[0.2, 0.2, 0.6]])
    assert backend.verify_rejection(logits, [2], q, sampler, [0.0], [0.0, 0.0]) == (0, [0])
    assert backend.verify_rejection(logits, [2], q, sampler, [0.0], [1 - 2**-53, 0.0]) == (0, [1])


def test_coins_keep_their_values(backend: Backend) -> None:
    """A seed must give the same text in every later version."""
    assert backend.coin(0, 0, 0).hex() == "0x1.1c13ade1c7e5cp-3"
    assert backend.coin(1234, 56, 0).hex() == "0x1.e349fb29cac25p-1"
    assert backend.coin(2**64 - 1, 2**32, 3).hex() == "0x1.c2bc02cb80444p-1"
    assert coin(-1, 2**32, 3) == coin(2**64 - 1, 2**32, 3)
    assert coins(7, 3, 4).tolist() == [coin(7, 3 + i) for i in range(4)]


def test_coins_are_spread_and_unrelated_between_seeds_positions_and_streams() -> None:
    n = 20000
    families = [
        coins(1, 0, n),
        coins(2, 0, n),
        coins(1, 0, n, stream=1),
        np.array([coin(1, 0, DRAFT + i) for i in range(n)]),
        np.array([coin(i, 0) for i in range(n)]),
    ]
    for u in families:
        assert u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == n
        counts = np.histogram(u, bins=100, range=(0, 1))[0]
        assert np.sum((counts - n / 100) ** 2 / (n / 100)) < 160  # chi-square, 99 degrees of freedom; values are fixed
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
    assert np.max(np.abs(np.corrcoef(families) - np.eye(len(families)))) < 0.03


@pytest.mark.parametrize(
    "key, value",
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
        ("top_p", 0.0), ("top_p", 1.01), ("top_p", math.nan), ("min_p", -0.01), ("min_p", 1.5), ("min_p", None),
        ("top_k", -1), ("top_k", 2.5), ("top_k", True), ("top_k", 2**31),
        ("logit_bias", {-1: 0.0}), ("logit_bias", {"a": 0.0}), ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: math.nan}), ("logit_bias", {1: "x"}),
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused_in_one_line_that_names_them(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^{key}: [^\n]+$"):
        Sampler(**{key: value})


def test_the_caller_may_change_its_bias_afterwards() -> None:
    bias = {1: 2.0}
    sampler = Sampler(logit_bias=bias)
    bias[1] = -math.inf
    assert sampler.logit_bias == {1: 2.0} and sampler.bias_values.tolist() == [2.0]
    assert sampler == Sampler(logit_bias={1: 2.0})


def test_logits_are_not_written_to(backend: Backend) -> None:
    logits = np.array([1, 2, 3], np.float32)
    logits.setflags(write=False)
    backend.p_target(logits, Sampler(temperature=0.5, top_k=2, logit_bias={0: 1.0}))
    assert logits.tolist() == [1, 2, 3]


def test_shapes_that_do_not_fit_are_refused() -> None:
    flat, half = np.zeros((2, 4), np.float32), np.full((1, 4), 0.25)
    on = Sampler(temperature=1.0)
    calls: list[Any] = [
        lambda: p_target(flat, on),
        lambda: verify_deterministic(flat, [1, 2], on, [0.1, 0.2]),
        lambda: verify_deterministic(flat, [1], on, [0.1]),
        lambda: verify_deterministic(flat, [1.0], on, [0.1, 0.2]),
        lambda: verify_rejection(flat, [1], half[:0], on, [0.1], [0.1, 0.2]),
        lambda: verify_rejection(flat, [1], half[:, :3], on, [0.1], [0.1, 0.2]),
        lambda: verify_rejection(flat, [1], half, on, [], [0.1, 0.2]),
        lambda: verify_rejection(flat, [1], half, on, [0.1], [0.1]),
    ]
    for call in calls:
        with pytest.raises(ShapeError, match=r"^[^\n]+$"):
            call()
