"""LlamaJudge: verify steps of a LlamaTarget in one call of C each (`native/cycle.c`), or several, drafts included, in
one (`native/burst.c`).

Twin: the lines of `speculate.py` that call the target's `decode`, the rule and `rollback`, and
`decoding/penalized_target.py`; raises what they raise. A part of `llama/target.py`, whose books it keeps. Legend: k
draft length, T rows of the last decode, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.decoding.burst import Ahead, Lent
from refspec.decoding.target import Penalized
from refspec.llama import api
from refspec.llama.native_calls import NativeJudge, NativeTarget
from refspec.reference.metrics import Step
from refspec.reference.ops import Array
from refspec.reference.sampling import TARGET, Sampler, coins
from refspec.reference.verify import Verdict, verify_deterministic

if TYPE_CHECKING:
    from refspec.llama.target import LlamaTarget


class LlamaJudge:
    """The Judge of one target for one sampler, seed and, where given, penalties."""

    def __init__(
        self, target: LlamaTarget, fast: NativeTarget, sampler: Sampler, seed: int, penalties: Penalized | None
    ) -> None:
        self.target, self.sampler, self.seed, self.penalties = target, sampler, seed, penalties
        self._fast = fast
        self._native = NativeJudge(
            fast, target.context, sampler, seed, pair_rows=target.pair_rows, ends=target.end_tokens, penalties=penalties
        )  # fmt: skip

    def __call__(self, pending: int, draft: npt.NDArray[np.int32], position: int) -> Verdict:
        """One step: run the pending token and draft [k], decide, take back what does not stand."""
        target, start, n = self.target, self.target.n_past, len(draft) + 1
        if not self._fits(pending, n):
            target.decode([pending, *draft.tolist()], logits="all")  # most of these it refuses, and says why
            return self._settle(self._rows(pending, draft, start, self.penalties), draft, position, start)
        self._prepare(n)
        try:
            accepted = self._native.step(pending, draft, start, position)
            target.seconds += self._fast.take_seconds()
            if accepted < 0 and self._native.c.stage == native.lib.RS_RUNNING:
                raise target._not_run(accepted, self._fast, n, start)
            if accepted < 0:
                target.context.keep(start + n)
            target._ran(self._fast, n, start + (n if accepted < 0 else accepted + 1))
        except BaseException:
            target._back_to(start)
            raise
        if accepted < 0:  # their penalties are in them
            return self._settle(self._rows(pending, draft, start), draft, position, start)
        return Verdict(accepted, self._native.decided(accepted + 1))

    def several(self, pending: int, ahead: Ahead, drafter: Lent | None, position: int, room: int) -> list[Step]:
        """As `base.Judge` says."""
        target, start = self.target, self.target.n_past
        draft, capacity = ahead.draft if drafter else 0, len(target._batch.tokens) - 1
        ahead = ahead._replace(draft=draft, steps=min(ahead.steps, capacity // (draft + 1)))
        if ahead.steps < 1 or not self._fits(pending, 1):
            return []
        rows = draft + 1 if drafter else ahead.steps  # of states
        self._prepare(rows)
        try:
            ran = self._native.several(pending, ahead, drafter, start, position, room, target.n_ctx)
            target.seconds += self._fast.take_seconds()
            held = start + sum(len(step.tokens) for step in ran)
            if self._native.c.stage != native.lib.RS_RESTED:  # one more step was begun and may have left its rows
                target.context.keep(held)
            if ran:
                last = len(ran[-1].draft) + 1
                target._ran(self._fast, last, held)
                if drafter is None:
                    target._n_rows = len(ran)  # of states; the logits are the last row's
                    target._first_logits = len(ran) - 1
            return ran
        except BaseException:
            target._back_to(start)
            raise

    def _fits(self, pending: int, rows: int) -> bool:
        target = self.target
        return 0 <= pending < target.n_vocab and rows <= min(
            target.n_ctx - target.n_past, len(target._batch.tokens) - target.pair_rows
        )

    def _prepare(self, rows: int) -> None:
        """Make the target ready for a run whose states take up to `rows` rows and one more:

        a single row may run beside a copy of itself.
        """
        target = self.target
        target.context.alive()
        if target._capturing and len(target._features) <= rows:
            target._features = np.empty((rows + 1, *target._features.shape[1:]), np.float32)
        target._n_rows = 0  # nothing to read until this call has succeeded
        api.forget_errors()
        self._fast.keep_states(target._features if target._capturing else None)

    def _rows(
        self, pending: int, draft: npt.NDArray[np.int32], start: int, penalties: Penalized | None = None
    ) -> list[Array]:
        """Logits of the pending token and of the draft, the last decode, which began at `start`;

        under penalties, if given.
        """
        rows: list[Array] = [self.target.logits(i) for i in range(len(draft) + 1)]
        if penalties is not None:
            penalizer, tokens, first = penalties
            tokens[start : start + len(rows)] = [pending, *draft.tolist()]
            rows = [penalizer(row, tokens[first : start + i + 1]) for i, row in enumerate(rows)]
        return rows

    def _settle(self, rows: list[Array], draft: npt.NDArray[np.int32], position: int, start: int) -> Verdict:
        """The second half of a step without C, which says in words what is wrong."""
        verdict = verify_deterministic(rows, draft, self.sampler, coins(self.seed, position, len(rows), TARGET))
        self.target.rollback(start + verdict.accepted + 1)
        return verdict
