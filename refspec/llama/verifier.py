"""LlamaVerifier: a verify step of a LlamaTarget in one call of C (`native/cycle.c`).

Its twin is `decoding/verifier.py: MatchVerifier`, over `decoding/penalized_target.py` where there are penalties; it
raises what they raise.
"""

from __future__ import annotations

from refspec.decoding.target import Penalized, Target
from refspec.llama.decoded_rows import DecodedRows
from refspec.llama.native_calls import NativeVerifier
from refspec.reference.draft import Draft
from refspec.reference.ops import Array
from refspec.reference.sampling import TARGET, Sampler, coins
from refspec.reference.verify import Verdict, verify_deterministic


class LlamaVerifier:
    """The Verifier of one target for one sampler, seed and, where given, penalties."""

    def __init__(
        self, target: Target, rows: DecodedRows, sampler: Sampler, seed: int, penalties: Penalized | None, *,
        pair_rows: bool,
    ) -> None:  # fmt: skip
        """`rows` are the target's, which can run in C; `pair_rows` as there."""
        assert rows.native is not None
        self.target, self.rows, self.sampler, self.seed = target, rows, sampler, seed
        self.n_ctx, self.pair = target.n_ctx, int(pair_rows)
        self.in_c = NativeVerifier(rows.native, rows.context, sampler, seed, pair_rows=pair_rows, penalties=penalties)

    def step(self, pending: int, draft: Draft, position: int) -> Verdict:
        """See `target.Verifier`."""
        rows, start, n = self.rows, self.rows.n_past, len(draft.tokens) + 1
        if not 0 <= pending < rows.n_vocab or n > min(self.n_ctx - start, len(rows.batch.tokens)):
            self.target.decode([pending, *draft.tokens.tolist()], logits="all")  # refuses it, and says why
        rows.begin(n + self.pair)
        rows.text[start] = pending
        rows.text[start + 1 : start + n] = draft.tokens
        try:
            accepted = self.in_c.step(pending, draft.tokens, start, position)
            rows.check_native(accepted if accepted < 0 and not self.in_c.ran else 0, n)
            if accepted >= 0:
                rows.end_native(n, start + accepted + 1)
                rows.restores = start + 1 if accepted + 1 == n else rows.n_past
                return Verdict(accepted, self.in_c.decided(accepted + 1))
            rows.context.keep(start + n)
            rows.end_native(n, start + n)
        except BaseException:
            rows.back_to(start)
            raise
        return self._explain(draft, position, start)

    def _explain(self, draft: Draft, position: int, start: int) -> Verdict:
        """Do in Python what failed in C after the run, which says in words what is wrong; the logits are penalized."""
        logits: list[Array] = [self.rows.logits(i) for i in range(self.rows.n)]
        needed = coins(self.seed, position, len(logits), TARGET)
        verdict = verify_deterministic(logits, draft.tokens, self.sampler, needed)
        self.target.rollback(start + verdict.accepted + 1)
        return verdict
