"""The exact law of one verify step on toy models, and its comparison with the target's law."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from verify_enumeration import Distribution, Tokens, law_by_definition, path_law, sequence_law, total_variation
from verify_toys import ToyDrafter, ToyModel

from refspec.reference.sampling import Sampler, p_target
from refspec.reference.verify import Verdict, residual

LOSSLESS = 1e-12  # float64 rounding of p, q and the oracle; the enumeration itself is exact
LOSSY = 0.01  # what a wrong rule must exceed to count as caught


def step_rows(target: ToyModel, history: Tokens, draft: Tokens) -> np.ndarray:
    return np.stack([target.logits(history + draft[:i]) for i in range(len(draft) + 1)])  # [k+1, V]


def checked(verdict: Verdict, draft: Tokens) -> Tokens:
    assert len(verdict.tokens) == verdict.accepted + 1
    assert tuple(verdict.tokens[:-1]) == draft[: verdict.accepted]
    return tuple(verdict.tokens)


def match_step(
    verify: Callable[..., Verdict], target: ToyModel, draft: Tokens, sampler: Sampler, history: Tokens
) -> Distribution:
    """The law of the tokens of one verify_deterministic step."""
    logits = step_rows(target, history, draft)
    hints = [np.cumsum(p_target(row, sampler)) for row in logits]
    law = path_law(lambda coins: checked(verify(logits, draft, sampler, coins), draft), hints)
    return {tokens: float(p) for tokens, p in law.items()}


def rejection_step(
    verify: Callable[..., Verdict],
    target: ToyModel,
    drafter: ToyDrafter,
    k: int,
    sampler: Sampler,
    history: Tokens = (),
    draft_distribution: Callable[[np.ndarray], np.ndarray] = lambda q: q,
) -> Distribution:
    """The law of the tokens of one verify_rejection step; draft_distribution(q) is how drafts are drawn."""
    law: Distribution = {}
    for draft in product(range(target.vocab), repeat=k):
        q = [drafter.q(history + draft[:i]) for i in range(k)]  # k x [V]
        drawn = math.prod(float(draft_distribution(q[i])[token]) for i, token in enumerate(draft))
        if drawn == 0:
            continue
        logits = step_rows(target, history, draft)
        p = [p_target(row, sampler) for row in logits]
        hints: list[Any] = []  # coins in the order accept_0, residual_0, accept_1, residual_1, ..., residual_k
        for i, token in enumerate(draft):
            hints += [[p[i][token] / q[i][token]], np.cumsum(residual(p[i], q[i]))]
        hints.append(np.cumsum(p[k]))

        def run(coins: list[float], draft: Tokens = draft, logits: Any = logits, q: Any = q) -> Tokens:
            return checked(verify(logits, draft, q, sampler, coins[0:-1:2], [*coins[1:-1:2], coins[-1]]), draft)

        for tokens, weight in path_law(run, hints).items():
            law[tokens] = law.get(tokens, 0.0) + drawn * float(weight)
    return law


def targets_law(target: ToyModel, sampler: Sampler, length: int) -> Distribution:
    return sequence_law(lambda history: law_by_definition(target.logits(history), sampler), length, target.vocab)


def completed(step: Distribution, target: ToyModel, sampler: Sampler, length: int) -> Distribution:
    """The law of `length` tokens when whatever the step left open is drawn from the target's law."""
    law: Distribution = {}
    for tokens, weight in step.items():
        for rest in product(range(target.vocab), repeat=length - len(tokens)):
            sequence = tokens + rest
            factors = [
                law_by_definition(target.logits(sequence[:i]), sampler)[sequence[i]] for i in range(len(tokens), length)
            ]
            law[sequence] = law.get(sequence, 0.0) + weight * math.prod(factors)
    return law


def variation(step: Distribution, target: ToyModel, sampler: Sampler, length: int) -> float:
    """Total variation between the target's law of `length` tokens and the step's, completed.

    Also: no coin, not even 0, may lead to a token that the target's law excludes.
    """
    law, exact = completed(step, target, sampler, length), targets_law(target, sampler, length)
    assert all(exact[sequence] > 0 for sequence, weight in law.items() if weight > 0)
    return total_variation(law, exact)
