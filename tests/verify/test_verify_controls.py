"""Negative controls: the enumeration that proves the rules right catches rules that are nearly right."""

from collections.abc import Callable
from typing import Any

import numpy as np
from verify_backends import Backend
from verify_enumeration import Distribution, Tokens, path_law, total_variation
from verify_steps import LOSSLESS, LOSSY, checked, rejection_step, step_rows, variation
from verify_toys import ToyDrafter, ToyModel

from refspec.reference.sampling import Sampler, invert_cdf, p_target
from refspec.reference.verify import Verdict, residual, verify_rejection

TARGET = ToyModel(3, 1, 1.0, False, False)
DRAFTER = ToyDrafter(ToyModel(3, 2, 1.0, False, False), 3)
PLAIN = Sampler(temperature=1.0)


def variation_of(step: Distribution, k: int) -> float:
    return variation(step, TARGET, PLAIN, k + 1)


def test_control_the_right_rule_passes_where_the_wrong_ones_fail() -> None:
    assert variation_of(rejection_step(verify_rejection, TARGET, DRAFTER, 2, PLAIN), 2) <= LOSSLESS


def test_control_rejection_with_argmax_drafts_is_caught(backend: Backend) -> None:
    def argmax_law(q: np.ndarray) -> np.ndarray:
        return np.eye(len(q))[np.argmax(q)]

    step = rejection_step(backend.verify_rejection, TARGET, DRAFTER, 2, PLAIN, draft_distribution=argmax_law)
    assert variation_of(step, 2) > LOSSY


def wrong_rejection(correction: Callable[[np.ndarray, np.ndarray, float], int]) -> Callable[..., Verdict]:
    """verify_rejection with another answer to a rejection."""

    def verify(logits: Any, draft: Any, q: Any, sampler: Sampler, accept: Any, v: Any) -> Verdict:
        for i, token in enumerate(draft):
            p = p_target(logits[i], sampler)
            if accept[i] >= p[token] / q[i][token]:
                return Verdict(i, [*draft[:i], correction(p, q[i], v[i])])
        return Verdict(len(draft), [*draft, invert_cdf(p_target(logits[len(draft)], sampler), v[len(draft)])])

    return verify


def test_control_residual_without_renormalising_is_caught() -> None:
    def unnormalised(p: np.ndarray, q: np.ndarray, coin: float) -> int:
        return min(int(np.searchsorted(np.cumsum(np.maximum(p - q, 0)), coin, side="right")), len(p) - 1)

    right = wrong_rejection(lambda p, q, coin: invert_cdf(residual(p, q), coin))
    assert variation_of(rejection_step(right, TARGET, DRAFTER, 2, PLAIN), 2) <= LOSSLESS
    assert variation_of(rejection_step(wrong_rejection(unnormalised), TARGET, DRAFTER, 2, PLAIN), 2) > LOSSY


def test_control_correction_from_the_full_law_is_caught() -> None:
    full = wrong_rejection(lambda p, q, coin: invert_cdf(p, coin))
    assert variation_of(rejection_step(full, TARGET, DRAFTER, 2, PLAIN), 2) > LOSSY


def test_control_match_rule_with_a_second_draw_is_caught() -> None:
    def redraw(logits: Any, draft: Any, sampler: Sampler, coins: Any) -> Verdict:
        for i, token in enumerate(draft):
            p = p_target(logits[i], sampler)
            if invert_cdf(p, coins[2 * i]) != token:
                return Verdict(i, [*draft[:i], invert_cdf(p, coins[2 * i + 1])])  # a fresh draw may repeat the draft
        return Verdict(len(draft), [*draft, invert_cdf(p_target(logits[len(draft)], sampler), coins[-1])])

    draft = (int(np.argmax(p_target(TARGET.logits(()), PLAIN))),)
    logits = step_rows(TARGET, (), draft)
    law = path_law(lambda coins: checked(redraw(logits, draft, PLAIN, coins), draft), [()] * 3)
    assert variation_of({tokens: float(p) for tokens, p in law.items()}, 1) > LOSSY


def test_control_reusing_the_coin_of_a_discarded_draft_is_caught() -> None:
    """Why drafts take a new stream per verify step: here a discarded draft token decides whether to draft again."""
    p, q = p_target(np.zeros(2, np.float32), PLAIN), np.array([0.8, 0.2])
    logits = np.zeros((2, 2), np.float32)

    def second_token(coins: list[float], reuse: bool) -> Tokens:
        discarded = invert_cdf(q, coins[0])
        if discarded == 1:
            return (invert_cdf(p, coins[3]),)
        draft = [invert_cdf(q, coins[0 if reuse else 1])]
        return (verify_rejection(logits, draft, [q], PLAIN, [coins[2]], [coins[3], 0.5]).tokens[0],)

    hints: list[Any] = [np.cumsum(q), np.cumsum(q), [p[0] / q[0]], np.cumsum(p)]
    fresh = path_law(lambda coins: second_token(coins, reuse=False), hints)
    reused = path_law(lambda coins: second_token(coins, reuse=True), hints)
    even: Distribution = {(0,): 0.5, (1,): 0.5}
    assert total_variation({t: float(w) for t, w in fresh.items()}, even) <= LOSSLESS
    assert total_variation({t: float(w) for t, w in reused.items()}, even) > LOSSY
