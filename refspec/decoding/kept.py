"""What a target and its drafter keep for the next prompt: the beginning it has in common with what they hold.

Of a prompt of N tokens whose first `common` are those of the positions held, with x_0.. and rows as in `cycle.py`:

  a target alone   keeps min(common, N - 1) positions; the last token is pending and never read
  with a drafter   min(common - 1, N - 2) positions and as many rows: row P is made of x_{P+1} and of a_P, which only a
                   run of position P gives, and drafting begins after a row just made

What is kept was computed from the same tokens at the same positions, so the output is that of a prompt read from the
beginning, up to the rounding of batches of other sizes. Where not even that may differ (`whole`), only what was read in
whole chunks is kept: the same batches read it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refspec.adaptive.prompt_prior import SURVEYED
from refspec.decoding.cycle import CHUNK, start_drafter
from refspec.decoding.drafter import Drafter
from refspec.decoding.target import Target
from refspec.errors import BackendError


class Kept:
    """What may be kept of the run before, on one target and at most one drafter at a time."""

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.forget()

    def forget(self) -> None:
        """Keep nothing for the next prompt: a run has failed, or all is to be read again."""
        self._any = False
        self._drafter: Drafter | None = None  # that of the run before, which has rows for what the target holds
        self._read = 0  # positions read in whole chunks

    def take(self, target: Target, drafter: Drafter | None, prompt: Sequence[int], *, surveyed: bool = False) -> int:
        """Leave in both what they share with prompt [N]; the positions held then, 0 after a reset.

        `surveyed`: the last SURVEYED rows of the prompt will be asked for (`cycle.feed`), so they are made again.
        """
        # A drafter that let rows go by (`deferred.py`) cannot have them back: it goes on with a gap, as it does anyway.
        gap = drafter is not None and drafter.n_rows != target.n_past
        n = self._shared(target, drafter, prompt, surveyed) if self._any else 0
        if n < target.n_past and n < target.restores:
            n = 0  # a recurrent state that is gone is made again
        if n:
            try:
                target.rollback(n)
            except BackendError:  # one that keeps no past states at all
                n = 0
        if not n:
            target.reset()
        if drafter is not None and (gap or not n):
            start_drafter(drafter, int(prompt[0]))
        elif drafter is not None:
            drafter.rollback(n)
        self._any, self._drafter, self._read = True, drafter, (len(prompt) - 1) // CHUNK * CHUNK
        return n

    def _shared(self, target: Target, drafter: Drafter | None, prompt: Sequence[int], surveyed: bool) -> int:
        if drafter is not None and drafter is not self._drafter:
            return 0  # its rows are of another sequence, and states to make them of are gone
        m = min(len(prompt), target.n_past)
        differing = np.flatnonzero(np.asarray(prompt[:m]) != np.asarray(target.tokens[:m]))
        common = int(differing[0]) if len(differing) else m
        n = min(common, len(prompt) - 1) if drafter is None else min(common - 1, len(prompt) - 2)
        if surveyed:
            n = min(n, len(prompt) - 1 - SURVEYED)
        if self.whole:
            n = min(n, self._read) // CHUNK * CHUNK
        return max(n, 0)
