"""Sampled drafts on a user's own pair: do the logits and drafts seen there give exactly the target's distribution?

Two checks of what is recorded while the pair runs with `draft_sampling`: for each judged draft token its draft
distribution q, the token and the target's logits.

  exact      The distribution of the token that `verify_rejection` emits, with every coin integrated out, must be
             p_target: their total variation vanishes to rounding (1e-9). Token t is accepted with probability
             q(t) min(1, p(t) / q(t)), which coins a hair below and above that ratio confirm; the rest follows
             `residual`.
  frequency  The code drafts and verifies DRAWS times with pseudo-random coins: Pearson's chi-square of the tokens it
             emits, as a standard normal deviate (Wilson and Hilferty 1931). Above 6 is an error, not chance (1e-9).

`evaluate/equality.py` compares outputs of one seed instead. Legend: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.decoding.drafter import Drafter
from refspec.decoding.wrapped import WrappedDrafter
from refspec.native import invert_cdf, p_target, residual, verify_rejection
from refspec.reference.draft import Draft, Stop
from refspec.reference.ops import Array
from refspec.reference.sampling import Sampler
from refspec.session import Session

ROWS, COUNTED, DRAWS = 64, 4, 4000
TOLERANCE, DEVIATE = 1e-9, 6.0
HAIR = 1e-12


class Row(NamedTuple):
    """One judged draft token."""

    logits: Array  # [V] the target's, at its position
    q: npt.NDArray[np.float64]  # [V] the distribution it was drawn from
    token: int


@dataclass
class Found:
    """What `check` found: draft tokens looked at, the largest total variation, the largest deviate of those counted."""

    sampler: Sampler
    rows: int
    variation: float
    counted: int
    deviate: float

    @property
    def holds(self) -> bool:
        """Whether the distribution is the target's as far as both checks see."""
        return self.variation <= TOLERANCE and self.deviate <= DEVIATE

    def as_dict(self) -> dict[str, Any]:
        """The record for `--json`."""
        return {
            "temperature": self.sampler.temperature, "rows": self.rows, "total_variation": self.variation,
            "counted_rows": self.counted, "draws": DRAWS, "deviate": self.deviate, "holds": self.holds,
        }  # fmt: skip


class Watching(WrappedDrafter):
    """A Drafter that keeps its last draft with the distributions it was drawn from."""

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self.last: Draft | None = None

    def draft(
        self, k: int, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None,
        stop: Stop | None = None,
    ) -> Draft:  # fmt: skip
        """Draft, and keep it."""
        self.last = self.inner.draft(k, coins=coins, sampler=sampler, stop=stop)
        return self.last

    def close(self) -> None:
        """Nothing: the session closes the drafter."""


def record(session: Session, prompts: Sequence[str], sampler: Sampler, *, max_tokens: int, seed: int) -> list[Row]:
    """Up to ROWS judged draft tokens of generations with sampled drafts, spread over the prompts."""
    assert session.drafter is not None  # the command refuses a session without one
    drafter, target, rows = Watching(session.drafter), session.target, list[Row]()
    watched = Session(target, drafter, draft_max=session.draft_max, name=session.name)
    share = -(-ROWS // max(len(prompts), 1))
    for i, prompt in enumerate(prompts):
        options = {"max_tokens": max_tokens, "sampler": sampler, "seed": seed + i}
        taken, generation = 0, watched.generate(prompt, draft_sampling=True, **options)  # type: ignore[arg-type]
        for event in generation:
            last, drafter.last = drafter.last, None
            if last is not None and last.q_draft is not None:
                for j in range(min(len(event.step.draft), event.step.accepted + 1)):
                    rows.append(Row(generation.target.logits(j).copy(), last.q_draft[j].copy(), int(last.tokens[j])))
                    taken += 1
            if taken >= share or len(rows) >= ROWS:
                generation.stop()
        if len(rows) >= ROWS:
            break
    return rows[:ROWS]


def emitted(row: Row, sampler: Sampler) -> npt.NDArray[np.float64]:
    """The distribution [V] of the token that one verification emits for a draft token drawn from q."""
    p, q = p_target(row.logits, sampler), row.q
    accept = np.zeros(len(p))
    drawn = np.flatnonzero(q > 0)
    accept[drawn] = np.minimum(1.0, p[drawn] / q[drawn])
    out = q * accept
    rest = 1.0 - float(np.cumsum(out)[-1])
    return out + max(rest, 0.0) * residual(p, q) if rest > 0 else out


def agrees(row: Row, sampler: Sampler) -> bool:
    """Whether `verify_rejection` accepts the drafted token exactly for coins below min(1, p / q)."""
    p, q = p_target(row.logits, sampler), row.q
    ratio = float(p[row.token] / q[row.token])
    logits = np.stack([row.logits, row.logits])
    coins = [c for c in (ratio - HAIR, ratio + HAIR) if 0 <= c < 1] or [1 - 2**-53]
    for c in coins:
        verdict = verify_rejection(logits, [row.token], q[None, :], sampler, [c], [0.5, 0.5])
        if (verdict.accepted == 1) != (c < ratio):
            return False
    return True


def deviate(row: Row, sampler: Sampler, seed: int) -> float:
    """Pearson's chi-square of DRAWS tokens emitted by the code against p_target, as a standard normal deviate."""
    p, dice = p_target(row.logits, sampler), np.random.default_rng(seed)
    counts = np.zeros(len(p))
    logits = np.stack([row.logits, row.logits])
    for u in dice.random((DRAWS, 4)):
        drafted = invert_cdf(row.q, u[0])
        verdict = verify_rejection(logits, [drafted], row.q[None, :], sampler, u[1:2], u[2:4])
        counts[verdict.tokens[0]] += 1
    if counts[p == 0].any():
        return math.inf
    order = np.argsort(-p)
    expected, seen = p[order] * DRAWS, counts[order]
    own = int(np.count_nonzero(expected >= 5))  # the rest share one class
    classes = [(e, s) for e, s in zip(expected[:own], seen[:own], strict=True)]
    if own < len(p) and expected[own:].sum() > 0:
        classes.append((float(expected[own:].sum()), float(seen[own:].sum())))
    freedom = len(classes) - 1
    if freedom < 1:
        return 0.0
    chi = sum((s - e) ** 2 / e for e, s in classes)
    spread = 2 / (9 * freedom)
    return float(((chi / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def check(session: Session, prompts: Sequence[str], sampler: Sampler, *, max_tokens: int, seed: int) -> Found:
    """Both checks for a sampler with temperature > 0; 0 rows when the drafter never drew a token (lookup alone)."""
    rows = record(session, prompts, sampler, max_tokens=max_tokens, seed=seed)
    variation = 0.0
    for row in rows:
        p = p_target(row.logits, sampler)
        exact = float(np.abs(emitted(row, sampler) - p).sum() / 2)
        variation = max(variation, exact if agrees(row, sampler) else 1.0)
    counted = rows[:: max(len(rows) // COUNTED, 1)][:COUNTED]
    worst = max((deviate(row, sampler, seed + i) for i, row in enumerate(counted)), default=0.0)
    return Found(sampler, len(rows), variation, len(counted), worst)


def describe(found: Found) -> list[str]:
    """One line per sampler."""
    how = f"temperature {found.sampler.temperature:g}, sampled drafts"
    if not found.rows:
        return [f"{how}: the drafter drew no token, the target's own samples decide"]
    verdict = "the target's distribution" if found.holds else "NOT the target's distribution: please report this"
    return [
        f"{how}: {found.rows} draft tokens, total variation at most {found.variation:.1e} by exact summation; "
        f"{found.counted} drawn {DRAWS} times each, largest deviate {found.deviate:.1f}: {verdict}"
    ]
