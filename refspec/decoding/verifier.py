"""Verify steps of a chain in Python, and which of them a run takes: chosen once, before its first step.

`MatchVerifier` is for drafts fixed in advance, `RejectionVerifier` for drafts sampled with `DraftCoins`. A target may
do the first one's work in one call of C (`target.Verifies`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.decoding.target import Target, Verifier, Verifies
from refspec.native import MatchRule, verify_deterministic, verify_rejection
from refspec.reference.draft import Draft
from refspec.reference.ops import Array
from refspec.reference.sampling import ACCEPT, DRAFT, RESIDUAL, TARGET, Sampler, coins
from refspec.reference.verify import Verdict


def verifier_for(target: Target, sampler: Sampler, seed: int, *, sampled: bool) -> Verifier:
    """The verifier of a run: by rejection where drafts are sampled, else by match, in C where the target can."""
    if sampled:
        return RejectionVerifier(target, sampler, seed)
    in_c = target.verifier(sampler, seed) if isinstance(target, Verifies) else None
    return in_c or MatchVerifier(target, sampler, seed)


def run(target: Target, pending: int, draft: Draft) -> list[Array]:
    """One run of the target over the pending token and the draft [k]: k + 1 rows of logits [V]."""
    rows = target.decode([pending, *draft.tokens.tolist()], logits="all")
    return [target.logits(i) for i in range(rows)]


class MatchVerifier:
    """Deterministic drafts: an output position is decided by its one coin, drafted or not; same seed, same output."""

    def __init__(self, target: Target, sampler: Sampler, seed: int) -> None:
        self.target, self.sampler, self.seed, self.rule = target, sampler, seed, MatchRule(sampler)

    def step(self, pending: int, draft: Draft, position: int) -> Verdict:
        """See `target.Verifier`."""
        start, logits = self.target.n_past, run(self.target, pending, draft)
        n = len(logits)
        needed = np.zeros(n) if self.sampler.greedy else coins(self.seed, position, n, TARGET)
        verdict = self.rule(logits, draft.tokens, needed)
        self.target.rollback(start + verdict.accepted + 1)
        return verdict


class RejectionVerifier:
    """Drafts sampled from q, verified by rejection, which keeps the target's distribution.

    Alg. 1 assumes independent uniforms: a position is verified and resampled in one step only, so its coins are fresh.
    """

    def __init__(self, target: Target, sampler: Sampler, seed: int) -> None:
        self.target, self.sampler, self.seed = target, sampler, seed

    def step(self, pending: int, draft: Draft, position: int) -> Verdict:
        """See `target.Verifier`."""
        start, logits = self.target.n_past, run(self.target, pending, draft)
        k = len(draft.tokens)
        residual = coins(self.seed, position, k + 1, RESIDUAL)
        if draft.q_draft is None:  # nothing was drafted, or by no coin (lookup): the target's own sample decides
            verdict = verify_deterministic(logits, draft.tokens, self.sampler, residual)
        else:
            accept = coins(self.seed, position, k, ACCEPT)
            verdict = verify_rejection(logits, draft.tokens, draft.q_draft, self.sampler, accept, residual)
        self.target.rollback(start + verdict.accepted + 1)
        return verdict


class DraftCoins:
    """Coins to sample drafts with, a stream for each step: a position may be drafted in several."""

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0

    def __call__(self, k: int, position: int) -> npt.NDArray[np.float64]:
        self.step += 1
        return coins(self.seed, position, k, DRAFT + self.step)
