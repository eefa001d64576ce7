"""Exact distributions of functions of coins, by running the functions themselves; nothing is sampled or re-derived.

A coin is one of the 2^53 lattice points j / 2^53, exactly the values `sampling.coin` can return. The code under test
decides by comparing coins with thresholds, so as a function of one coin its outcome is piecewise constant. `cells`
finds the pieces to the last lattice point by bisection, `path_law` does that coin after coin along every path, and the
weight of a path is the exact product (a Fraction) of its cell sizes. Hints say where a threshold is expected and only
save bisection steps: a wrong hint costs time, never correctness.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
from hypothesis import assume, currently_in_test_context

from refspec.reference.sampling import Sampler

LATTICE = 2**53
LAST = (LATTICE - 1) / LATTICE
Tokens = tuple[int, ...]
Distribution = dict[Tokens, float]


def cells(outcome: Callable[[float], Any], hints: Iterable[float] = ()) -> list[tuple[float, Fraction]]:
    """Partition of the lattice into runs of equal outcome: (a coin of the run, share of the lattice), in order."""
    seen: dict[int, Any] = {}

    def at(j: int) -> Any:
        if j not in seen:
            seen[j] = outcome(j / LATTICE)
        return seen[j]

    edges = {0, LATTICE - 1}
    for hint in hints:
        if math.isfinite(hint):
            edges |= {min(max(int(hint * LATTICE) + d, 0), LATTICE - 1) for d in (-3, 3)}
    starts = [0]
    ordered = sorted(edges)
    stack = list(pairwise(ordered))[::-1]
    while stack:
        low, high = stack.pop()
        if high - low == 1:
            if at(low) != at(high):
                starts.append(high)
            continue
        middle = (low + high) // 2
        if high - low <= 6 and at(low) == at(high):
            continue
        if at(low) == at(middle) == at(high):  # ends and middle agree: constant, as thresholds cut intervals
            continue
        stack += [(middle, high), (low, middle)]
    ends = [*starts[1:], LATTICE]
    return [(((a + b) // 2) / LATTICE, Fraction(b - a, LATTICE)) for a, b in zip(starts, ends, strict=True)]


def path_law(run: Callable[[list[float]], Tokens], hints: Sequence[Iterable[float]]) -> dict[Tokens, Fraction]:
    """Exact law of run(coins) with len(hints) independent coins, by following every path.

    Coins are resolved one after the other. What a coin decides is read off with all later coins at their smallest and
    at their largest value; when these agree, the rest of the path is decided.
    """
    law: dict[Tokens, Fraction] = {}

    def extremes(prefix: list[float]) -> tuple[Tokens, Tokens]:
        n = len(hints) - len(prefix)
        first = run(prefix + [0.0] * n)
        return first, (run(prefix + [LAST] * n) if n else first)

    def follow(prefix: list[float], weight: Fraction) -> None:
        first, last = extremes(prefix)
        if first == last:
            law[first] = law.get(first, Fraction(0)) + weight
            return
        for representative, share in cells(lambda c: extremes([*prefix, c]), hints[len(prefix)]):
            follow([*prefix, representative], weight * share)

    follow([], Fraction(1))
    assert sum(law.values()) == 1  # every coin belongs to exactly one path
    return law


def total_variation(a: Distribution, b: Distribution) -> float:
    return 0.5 * math.fsum(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys())


def law_by_definition(logits: np.ndarray, sampler: Sampler) -> list[float]:
    """The target's law written a second time, in plain Python: bias, top-k, top-p, min-p, temperature, softmax.

    Discards a hypothesis example in which a filter's threshold is hit to within 1e-9, where rounding decides.
    """
    x = [float(value) + sampler.logit_bias.get(i, 0.0) for i, value in enumerate(logits)]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if sampler.temperature == 0:
        return [1.0 if i == order[0] else 0.0 for i in range(len(x))]
    kept = order[: sampler.top_k] if sampler.top_k else order
    weight = {i: math.exp(x[i] - x[order[0]]) for i in kept}
    if sampler.top_p < 1:
        total, mass, nucleus = math.fsum(weight.values()), 0.0, []
        for i in kept:
            nucleus.append(i)
            mass += weight[i] / total
            _require(abs(mass - sampler.top_p) > 1e-9)
            if mass >= sampler.top_p:
                break
        kept = nucleus
    if sampler.min_p > 0:
        _require(all(abs(weight[i] - sampler.min_p) > 1e-9 or weight[i] == 1.0 for i in kept))
        kept = [i for i in kept if weight[i] >= sampler.min_p]
    tempered = {i: math.exp((x[i] - x[order[0]]) / sampler.temperature) for i in kept}
    total = math.fsum(tempered.values())
    return [tempered.get(i, 0.0) / total for i in range(len(x))]


def _require(clear: bool) -> None:
    if currently_in_test_context():
        assume(clear)
    else:
        assert clear, "choose a sampler whose thresholds this law does not hit"


def sequence_law(next_law: Callable[[Tokens], Sequence[float]], length: int, vocab: int) -> Distribution:
    """The autoregressive law of `length` tokens: the product of next_law along every sequence."""
    law: Distribution = {}
    for sequence in product(range(vocab), repeat=length):
        law[sequence] = math.prod(next_law(sequence[:i])[token] for i, token in enumerate(sequence))
    return law


def continued(
    step_law: Callable[[Tokens], dict[Tokens, float]], length: int, history: Tokens = (), weight: float = 1.0
) -> Distribution:
    """The law of the first `length` tokens of verify steps in succession; step_law(history) is the law of one."""
    if len(history) >= length:
        return {history[:length]: weight}
    law: Distribution = {}
    for tokens, p in step_law(history).items():
        for sequence, q in continued(step_law, length, history + tokens, weight * p).items():
            law[sequence] = law.get(sequence, 0.0) + q
    return law
