"""Future validity: the distribution a user means by a grammar, and estimates of it ("Future Validity is the Missing
Statistic", arXiv 2605.07698).

Let p be the model and L the valid outputs, each with its end token. What is wanted is the model given that its output
is valid, p(y) / p(L) for y in L. Token by token this is a Doob transform of p: with the future validity

    Phi(y)  =  Pr_p[ a valid output follows | y ]  =  sum over allowed v of  p(v | y) Phi(y v),      Phi(output) = 1

the next token has the probability

    p(v | y) Phi(y v) / Phi(y)

Masking what is not allowed, as engines do, is the same with Phi = 1 for every allowed token. Any estimate of Phi gives
a distribution over valid outputs, and speculation keeps it: the rules of `reference/verify.py` are given rows p Phi
instead of p, and know no more about it (FVO-Spec). In logits at temperature T, `log Phi` is added T times.

An estimate is asked for Phi(y v) of all allowed v at once. Its cost is in rows of the model:

    local         1                                                                                          0 rows
    onestep       the chance that the token after v is allowed, under p(. | y) itself                        0 rows
    lookahead:k   the chance that the k tokens after v are allowed                              all that are allowed
    beam:k        at every depth the share of what is allowed among the k likeliest prefixes     k for each v and depth
    rollouts:k    the mean weight of k outputs that a cheap model draws under the mask           k for each v and depth
    exact         Phi, by following every output                                                all that are allowed

`exact` is dynamic programming: prefixes that a law cannot tell apart share one value (`Law.key`).

Legend: V vocabulary, n allowed tokens, y a prefix (the tokens of the output so far).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError, UsageError
from refspec.grammar.constraint import ENDED, Constraint
from refspec.grammar.tokens import Row, Tokens
from refspec.reference.sampling import invert_cdf

Probabilities = npt.NDArray[np.float64]
Prefix = tuple[int, ...]
MOST_PREFIXES = 100_000  # of an exact sum
MOST_FOLLOWED = 64  # of the tokens that may come next; where there are more, a look-ahead goes no further
KINDS = ("local", "onestep", "lookahead:k", "beam:k", "exact")


class Law(Protocol):
    """A model, or a distribution made up for a test."""

    def __call__(self, prefix: Prefix, ids: Tokens | None = None) -> Probabilities:
        """p(. | y) [V], or of these tokens [n], which are those that a constraint allows after y."""

    def key(self, prefix: Prefix) -> Hashable:
        """The same for prefixes after which everything has the same probability; the prefix itself always does."""


class Place(NamedTuple):
    """Where an output is."""

    prefix: Prefix
    state: int
    left: int  # tokens that may still come, an end token included

    def after(self, token: int, state: int) -> Place:
        """One token later."""
        return Place((*self.prefix, token), state, self.left - 1)


class Estimate(Protocol):
    """Phi of everything that may come next."""

    def __call__(self, place: Place, row: Row, p: Probabilities) -> Probabilities:
        """Phi(y v) [n], or a multiple of it, of the tokens `row` [n] allowed after y, where p(. | y) is `p` [V]."""


def local(place: Place, row: Row, p: Probabilities) -> Probabilities:
    """Phi = 1: what masking does."""
    return np.ones(len(row.ids))


class OneStep:
    """The chance that the token after v is allowed, as if what v is did not change the model's row."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint

    def __call__(self, place: Place, row: Row, p: Probabilities) -> Probabilities:
        """See `Estimate`."""
        return self.by_state(place, row, p)[row.groups[1]]

    def by_state(self, place: Place, row: Row, p: npt.NDArray[np.floating]) -> Probabilities:
        """The estimate for each state in `row.groups`: it is the same for all tokens that lead there."""
        known: dict[bytes, float] = {}  # many states allow the same tokens
        values, total = list[float](), float(p.sum())
        for state in row.groups[0]:
            after = self.constraint.allowed(state, place.left - 1)
            if state != ENDED and after.key not in known:
                others = after.others(len(p))
                mass = p[after.ids].sum() if others is None else max(total - p[others].sum(), 0.0)
                known[after.key] = float(mass)
            values.append(1.0 if state == ENDED else known[after.key])
        return np.array(values)


def masked(logits: npt.NDArray[np.floating], row: Row) -> npt.NDArray[np.floating]:
    """Logits [V] with -inf for what is not allowed, as a new array."""
    others = row.others(len(logits))
    if others is None:
        out = np.full(len(logits), -np.inf, logits.dtype)
        out[row.ids] = logits[row.ids]
    else:
        out = logits.copy()
        out[others] = -np.inf
    return out


class Lookahead:
    """The chance that the next k tokens are allowed; k None goes on to the end of every output, which is Phi."""

    def __init__(self, constraint: Constraint, law: Law, k: int | None = None) -> None:
        self.constraint, self.law, self.k = constraint, law, k
        self.known: dict[Hashable, float] = {}

    def __call__(self, place: Place, row: Row, p: Probabilities) -> Probabilities:
        """See `Estimate`; UsageError where an exact sum has more than MOST_PREFIXES terms."""
        after = zip(row.ids.tolist(), row.next.tolist(), strict=True)
        return np.array([self.phi(place.after(token, state), self.k) for token, state in after])

    def phi(self, place: Place, k: int | None) -> float:
        """Phi(y), of as many tokens as are looked at."""
        if place.state == ENDED or k == 0:
            return 1.0
        key = (self.law.key(place.prefix), place.state, place.left, k)
        if key not in self.known:
            if len(self.known) >= MOST_PREFIXES:
                raise UsageError(f"exact: more than {MOST_PREFIXES} prefixes to follow; use beam:4, onestep or local")
            row = self.constraint.allowed(place.state, place.left)
            fewer = None if k is None else k - 1
            p_row = self.law(place.prefix, row.ids)
            after = zip(row.ids.tolist(), row.next.tolist(), p_row.tolist(), strict=True)
            if k is not None and len(row.ids) > MOST_FOLLOWED:
                self.known[key] = float(p_row.sum())
            else:
                self.known[key] = sum(p * self.phi(place.after(t, q), fewer) for t, q, p in after if p > 0)
        return self.known[key]


class Beam:
    """The outputs found among the k likeliest prefixes of each length, as if those left out went on like them."""

    def __init__(self, constraint: Constraint, law: Law, k: int) -> None:
        self.constraint, self.law, self.k = constraint, law, k
        self.known: dict[Place, tuple[float, float, float]] = {}

    def __call__(self, place: Place, row: Row, p: Probabilities) -> Probabilities:
        """See `Estimate`."""
        return self.bounds(place, row)[:, 0]

    def bounds(self, place: Place, row: Row) -> Probabilities:
        """[n, 3] each Phi(y v) estimated, at least, and at most."""
        after = zip(row.ids.tolist(), row.next.tolist(), strict=True)
        return np.array([self.phi(place.after(token, state)) for token, state in after]).reshape(-1, 3)

    def phi(self, place: Place) -> tuple[float, float, float]:
        """Phi(y) estimated, at least, and at most."""
        if place.state == ENDED:
            return 1.0, 1.0, 1.0
        if place not in self.known:
            found = ended = dropped = 0.0
            scale, front = 1.0, [(1.0, place)]  # what a followed prefix stands for, those followed
            while front:
                going = list[tuple[float, Place]]()
                rest = 0.0  # probability of what is allowed and not among the best
                for weight, at in front:
                    row = self.constraint.allowed(at.state, at.left)
                    p, over = self.law(at.prefix, row.ids), row.next == ENDED
                    ended += weight * float(p[over].sum())
                    found += scale * weight * float(p[over].sum())
                    best = np.argsort(-np.where(over, -1.0, p), kind="stable")[: len(p) - int(over.sum())]
                    rest += weight * float(p[best[self.k :]].sum())
                    for i in best[: self.k].tolist():
                        going.append((weight * float(p[i]), at.after(int(row.ids[i]), int(row.next[i]))))
                going.sort(key=lambda one: -one[0])
                front, out = [one for one in going[: self.k] if one[0] > 0], going[self.k :]
                kept, rest = sum(weight for weight, _ in front), rest + sum(weight for weight, _ in out)
                dropped += rest
                scale *= (kept + rest) / kept if kept else 0.0
            self.known[place] = found, ended, ended + dropped
        return self.known[place]


class Rollouts:
    """The mean weight of outputs that a cheap model draws under the mask: p over what they were drawn from."""

    def __init__(
        self, constraint: Constraint, law: Law, proposal: Law, k: int, coins: Callable[[Prefix, int], Probabilities]
    ) -> None:
        """`coins` gives [n] numbers in [0, 1) for the n tokens that may follow a prefix, others at every call."""
        self.constraint, self.law, self.proposal, self.k, self.coins = constraint, law, proposal, k, coins

    def __call__(self, place: Place, row: Row, p: Probabilities) -> Probabilities:
        """See `Estimate`."""
        after = zip(row.ids.tolist(), row.next.tolist(), strict=True)
        places = [place.after(token, state) for token, state in after]
        return np.array([np.mean([self.weight(at) for _ in range(self.k)]) for at in places])

    def weight(self, place: Place) -> float:
        """The weight of one output drawn after y; its mean is Phi(y)."""
        weight, i = 1.0, 0
        coins = self.coins(place.prefix, place.left)
        while place.state != ENDED and weight > 0:
            row = self.constraint.allowed(place.state, place.left)
            q = self.proposal(place.prefix, row.ids)
            q = q / q.sum() if q.sum() > 0 else np.full(len(q), 1 / len(q))
            chosen = invert_cdf(q, float(coins[i]))
            token = int(row.ids[chosen])
            weight *= float(self.law(place.prefix, row.ids)[chosen]) / float(q[chosen])
            place, i = place.after(token, int(row.next[chosen])), i + 1
        return weight


def transformed(
    logits: npt.NDArray[np.floating], row: Row, phi: Probabilities, temperature: float, *, by_state: bool = False
) -> npt.NDArray[np.floating]:
    """Logits [V] of the next token with T log Phi added; -inf where it is not allowed. BackendError for no Phi > 0.

    phi [n] is of the tokens of the row, or `by_state` of the states in `row.groups`. The type is that of `logits`: what
    is sampled is what these numbers say, rounded or not.
    """
    if not phi.max(initial=0.0) > 0:
        raise BackendError(
            "grammar: the model gives every output that matches the probability 0; relax --logit-bias, or the grammar"
        )
    with np.errstate(divide="ignore"):
        added = temperature * np.log(phi / phi.max())
    if by_state:
        out = np.take(np.append(added, -np.inf).astype(logits.dtype), row.leads(len(logits)))
        out += logits
        return out
    out = masked(logits, row)
    out[row.ids] += added.astype(logits.dtype)
    return out


def sequence_law(constraint: Constraint, law: Law, estimate: Estimate) -> dict[Prefix, float]:
    """The probability of every output where each token is drawn from p Phi."""
    return dict(_outputs(constraint, law, estimate, Place((), constraint.start, constraint.limit), 1.0))


def _outputs(
    constraint: Constraint, law: Law, estimate: Estimate, place: Place, weight: float
) -> Iterator[tuple[Prefix, float]]:
    if place.state == ENDED:
        yield place.prefix, weight
        return
    row, p = constraint.allowed(place.state, place.left), law(place.prefix)
    q = p[row.ids] * estimate(place, row, p)
    total = q.sum()
    for token, state, one in zip(row.ids.tolist(), row.next.tolist(), q.tolist(), strict=True):
        if one > 0:
            yield from _outputs(constraint, law, estimate, place.after(token, state), weight * one / total)


def wanted(constraint: Constraint, law: Law) -> dict[Prefix, float]:
    """The model given that its output is valid: the probability of every output, by definition."""
    p = dict(_products(constraint, law, Place((), constraint.start, constraint.limit), 1.0))
    total = sum(p.values())
    return {output: one / total for output, one in p.items()}


def _products(constraint: Constraint, law: Law, place: Place, weight: float) -> Iterator[tuple[Prefix, float]]:
    if place.state == ENDED:
        yield place.prefix, weight
        return
    row, p = constraint.allowed(place.state, place.left), law(place.prefix)
    for token, state in zip(row.ids.tolist(), row.next.tolist(), strict=True):
        if p[token] > 0:
            yield from _products(constraint, law, place.after(token, state), weight * float(p[token]))


def variation(a: dict[Prefix, float], b: dict[Prefix, float]) -> float:
    """The total variation between two distributions, 0 to 1."""
    return 0.5 * sum(abs(a.get(x, 0.0) - b.get(x, 0.0)) for x in a.keys() | b.keys())


def variation_at_most(error: float, tokens: int) -> float:
    """A bound of the total variation where every log Phi of outputs of so many tokens is within `error` of the truth.

    Each token's probability is then off by a factor between exp(-2 error) and exp(2 error), an output's by as many of
    them as it has tokens, and distributions within exp(-d) and exp(d) of each other differ by tanh(d / 2) at most.
    """
    return float(np.tanh(error * tokens))


def fidelity(name: str) -> tuple[str, int]:
    """The kind and the number of `local`, `onestep`, `lookahead:k`, `beam:k` or `exact`; UsageError for another."""
    kind, _, number = name.partition(":")
    counted = kind in ("lookahead", "beam")
    if kind not in ("local", "onestep", "exact", "lookahead", "beam") or counted != number.isdecimal():
        raise UsageError(f"fidelity {name!r} is none of {', '.join(KINDS)} (k at least 1)")
    if (counted and int(number) < 1) or (not counted and number):
        raise UsageError(f"fidelity {name!r} is none of {', '.join(KINDS)} (k at least 1)")
    return kind, int(number or 0)


def estimate_of(name: str, constraint: Constraint, law: Law) -> Estimate:
    """The estimate that `fidelity` names."""
    kind, k = fidelity(name)
    if kind == "local":
        return local
    if kind == "onestep":
        return OneStep(constraint)
    return Beam(constraint, law, k) if kind == "beam" else Lookahead(constraint, law, k or None)
