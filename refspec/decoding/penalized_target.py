"""PenalizedTarget: a Target whose logits are under penalties of the tokens before each (`reference/penalties.py`).

A row of the last decode looks at the tokens up to its own, a node of a tree at its path. Legend: T rows of the last
decode, V vocabulary, N nodes of a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from refspec.decoding.target import Target, Verifier, Verifies
from refspec.decoding.wrapped_target import WrappedTarget
from refspec.errors import UsageError
from refspec.native.penalties import Penalizer
from refspec.reference.draft import Draft
from refspec.reference.ops import Array, Ids
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.verify import Verdict

UNKNOWN, BREAKS, GOES_ON = -1, 1, 0  # of a token, as a sequence breaker


class PenalizedTarget(WrappedTarget):
    """`inner` under penalties; what it does not change is `inner`'s. Tokens count from position `first` on."""

    def __init__(self, inner: Target, penalties: Penalties, first: int) -> None:
        super().__init__(inner, first)
        self.penalties = penalties
        # [V], settled when a token comes up
        self.breaks = np.full(inner.n_vocab, UNKNOWN, np.int8) if penalties.breaking else None
        self._known: set[int] = set()  # tokens that have come up
        self._penalizer = Penalizer(penalties, inner.n_vocab, len(self.text), self.breaks)
        self._verified = False  # the last decode was a verifier's, which has penalized its rows

    def holding(self, tokens: Sequence[int] | Ids) -> None:
        """Take over the tokens of the positions that `inner` holds already, from the first on."""
        super().holding(tokens)
        self._look_at(map(int, tokens))

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """As of `inner`; the logits that follow are penalized."""
        rows = super().decode(tokens, logits=logits)
        self._verified = False
        self._look_at(map(int, tokens))
        return rows

    def decode_tree(self, tokens: Sequence[int] | Ids, parents: Sequence[int] | Ids) -> int:
        """As of `inner`, a TreeTarget."""
        rows = super().decode_tree(tokens, parents)
        self._verified = False
        self._look_at(map(int, tokens))
        return rows

    def logits(self, i: int) -> Array:
        """Penalized logits [V] of token i of the last decode: a new array, or what a verifier penalized in place."""
        row = self.inner.logits(i)
        if self._verified:
            return row
        if self._paths is None:
            history = self.text[self.first : self._start + i + 1]
        else:
            history = np.concatenate([self.text[self.first : self._start], np.array(self._paths[i], np.int32)])
        out: Array = self._penalizer(row, history)
        return out

    def verifier(self, sampler: Sampler, seed: int) -> Verifier | None:
        """As of `inner`, the penalties between its run and its rule; None where it has none."""
        if not isinstance(self.inner, Verifies) or self._penalizer.c is None:
            return None
        inner = self.inner.verifier(sampler, seed, (self._penalizer, self.text, self.first))
        return None if inner is None else _PenalizedVerifier(self, inner)

    def will_verify(self, pending: int, draft: npt.NDArray[np.int32]) -> None:
        """A verifier is about to run these tokens, and penalizes their logits where they lie."""
        self._verified = True
        if self.breaks is not None:
            self._look_at([pending, *draft.tolist()])

    def _look_at(self, tokens: Iterable[int]) -> None:
        """Settle which of these tokens are sequence breakers."""
        if self.breaks is None:
            return
        for token in tokens:
            if token not in self._known and 0 <= token < len(self.breaks):
                said = self.inner.token_to_bytes(int(token))
                self.breaks[token] = BREAKS if self.penalties.breaks(said) else GOES_ON
                self._known.add(int(token))


class _PenalizedVerifier:
    """The verifier of `target.inner`."""

    def __init__(self, target: PenalizedTarget, inner: Verifier) -> None:
        self.target, self.inner = target, inner

    def step(self, pending: int, draft: Draft, position: int) -> Verdict:
        """See `target.Verifier`."""
        self.target.will_verify(pending, draft.tokens)
        return self.inner.step(pending, draft, position)


def under(target: Target, penalties: Penalties, prompt: Sequence[int]) -> Target:
    """`target` under penalties, for one output after `prompt` [N]; itself where they are off."""
    if not penalties.on:
        return target
    return PenalizedTarget(target, penalties, 0 if penalties.prompt else len(prompt))


def check_under(target: Target, sampler: Sampler) -> None:
    """UsageError for a sampler whose penalties nobody would apply."""
    if sampler.penalties.on and not isinstance(target, PenalizedTarget):
        raise UsageError("the sampler has penalties, the target applies none; wrap it in penalized_target.under")
