"""DraftPenalties: a share of the target's penalties, which the drafter drafts under.

A target under penalties (`decoding/penalized_target.py`) refuses tokens that a drafter, which knows nothing of them,
would draft all the same. So chains are chosen, or sampled, from the drafter's logits under penalties too, each position
seeing the drafted tokens before it. That changes what is drafted and nothing else: a draft is a function of the tokens
decided and of coins of its own as before, and the rule that verifies it is told the distribution it was drawn from. Not
for trees, nor for lookup, which has no logits. Legend: V target vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from refspec.decoding.penalized_target import PenalizedTarget
from refspec.native.penalties import Penalizer
from refspec.reference.ops import Array, Ids

# A drafter is less sure than its target: its logits lie closer together, and the whole of a penalty would turn its
# choice where it does not yet turn the target's. Of 0, 1/4, 1/2, 3/4 and all, half drafts best, or nearly, on two pairs
# under four penalties.
DRAFT_SHARE = 0.5


class DraftPenalties:
    """A Penalizer, and the target's own tokens of all positions [n_ctx + 2], of which those from `first` on count."""

    def __init__(self, penalizer: Penalizer, tokens: npt.NDArray[np.int32], first: int, vocab: int) -> None:
        self.penalizer, self.tokens, self.first = penalizer, tokens, first
        self.decided = 0  # tokens decided before the draft, the pending one included
        # [V] scratch: only entries of the draft vocabulary are written or read
        self.row: Array = np.zeros(vocab, np.float32)

    def begin(self, pending: int, position: int) -> None:
        """A draft is about to follow the pending token, whose position this is."""
        self.tokens[position] = pending
        self.decided = position + 1

    def __call__(self, logits: Array, drafted: Sequence[int], d2t: Ids | None = None) -> Array:
        """Logits [D] after the output and `drafted`, penalized, as a new array; d2t [D] are target ids."""
        end = self.decided + len(drafted)
        self.tokens[self.decided : end] = drafted
        if end <= self.first:
            return np.array(logits)
        ids = slice(len(logits)) if d2t is None else d2t
        self.row[ids] = logits
        penalized: Array = self.penalizer(self.row, self.tokens[self.first : end])[ids]
        return penalized


def draft_penalties(target: PenalizedTarget) -> DraftPenalties:
    """DRAFT_SHARE of a target's penalties, to `begin` before every draft."""
    penalizer = Penalizer(target.penalties.times(DRAFT_SHARE), target.n_vocab, len(target.text), target.breaks)
    return DraftPenalties(penalizer, target.text, target.first, target.n_vocab)


@runtime_checkable
class MindsPenalties(Protocol):
    """A drafter whose chains are drafted under `penalties`, while they are not None."""

    penalties: DraftPenalties | None
