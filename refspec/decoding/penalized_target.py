"""PenalizedTarget: a Target whose logits are those of `inner` under penalties of what its rows say
(`refspec/reference/penalties.py`).

The penalties are a function of the rows held, as logits are, so this is one more target: the decode cycle, its rules
and its proofs do not know about it. The tokens of all positions are kept; a row of the last decode looks at those up to
its own, a node of a tree at its path. Legend: T rows of the last decode, V vocabulary, N nodes of a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from refspec.decoding.burst import Ahead, Lent
from refspec.decoding.target import Judge, Judges, Target, TreeTarget
from refspec.errors import UsageError
from refspec.native.penalties import Penalizer
from refspec.reference.metrics import Step
from refspec.reference.ops import Array, Ids
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.verify import Verdict

UNKNOWN, BREAKS, GOES_ON = -1, 1, 0  # of a token, as a sequence breaker


class PenalizedTarget:
    """`inner` under penalties; what it does not change is `inner`'s. Tokens count from position `first` on."""

    def __init__(self, inner: Target, penalties: Penalties, first: int) -> None:
        self.inner, self.penalties, self.first = inner, penalties, first
        room = inner.n_ctx + 2  # a judge may run a row beside the last position
        # [V], looked at when a token comes up
        self._breaks = np.full(inner.n_vocab, UNKNOWN, np.int8) if penalties.breaking else None
        self._penalizer = Penalizer(penalties, inner.n_vocab, room, self._breaks)
        self._tokens = np.zeros(room, np.int32)  # of every position held, and of the rows of the last decode
        self._start = 0  # position of the first row of the last decode
        self._judged = False  # the last decode was a judge's, which has penalized its rows
        # tokens from the pending one to each node's, if the last decode was a tree
        self._paths: list[list[int]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def capturing(self) -> bool:
        """As of `inner`."""
        return self.inner.capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self.inner.capturing = wanted

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """As of `inner`; the logits that follow are penalized."""
        start = self.inner.n_past
        rows = self.inner.decode(tokens, logits=logits)
        self._start, self._paths, self._judged = start, None, False
        self._tokens[start : start + rows] = tokens
        self._look_at(tokens)
        return rows

    def decode_tree(self, tokens: Sequence[int] | Ids, parents: Sequence[int] | Ids) -> int:
        """As of `inner`, a TreeTarget."""
        rows = cast(TreeTarget, self.inner).decode_tree(tokens, parents)
        ids = [int(t) for t in tokens]
        self._start, self._paths, self._judged = self.inner.n_past, [ids[:1]], False
        for token, parent in zip(ids[1:], parents, strict=True):
            self._paths.append([*self._paths[int(parent) + 1], token])
        self._look_at(ids)
        return rows

    def keep_path(self, nodes: Sequence[int]) -> None:
        """As of `inner`, a TreeTarget."""
        assert self._paths is not None
        cast(TreeTarget, self.inner).keep_path(nodes)
        path = self._paths[nodes[-1] + 1 if len(nodes) else 0]
        self._tokens[self._start : self._start + len(path)] = path

    def logits(self, i: int) -> Array:
        """Penalized logits [V] of row i of the last decode: a new array, or what a judge has penalized where it lay."""
        row = self.inner.logits(i)
        if self._judged:
            return row
        if self._paths is None:
            history = self._tokens[self.first : self._start + i + 1]
        else:
            history = np.concatenate([self._tokens[self.first : self._start], np.array(self._paths[i], np.int32)])
        out: Array = self._penalizer(row, history)
        return out

    @property
    def text(self) -> npt.NDArray[np.int32]:
        """Tokens by position [n_ctx + 2]: those of the rows held, and of the rows of the last decode;

        a drafter may write behind them.
        """
        return self._tokens

    @property
    def breaks(self) -> npt.NDArray[np.int8] | None:
        """[V] above 0 where a token is known to be a sequence breaker; None where nothing breaks."""
        return self._breaks

    def judge(self, sampler: Sampler, seed: int) -> Judge | None:
        """As of `inner`, the penalties between its run and its rule; None where it has none."""
        if not isinstance(self.inner, Judges) or self._penalizer.c is None:
            return None
        step = self.inner.judge(sampler, seed, (self._penalizer, self._tokens, self.first))
        return None if step is None else _PenalizedJudge(self, step)

    def _judging(self, tokens: Sequence[int]) -> None:
        """A judge is about to run these tokens."""
        self._judged = True
        if self._breaks is not None:
            self._look_at(tokens)

    def _look_at(self, tokens: Sequence[int] | Ids) -> None:
        """Settle which of these tokens are sequence breakers."""
        breaks = self._breaks
        if breaks is None:
            return
        for token in tokens:
            if 0 <= token < len(breaks) and breaks[token] == UNKNOWN:
                said = self.inner.token_to_bytes(int(token))
                breaks[token] = BREAKS if self.penalties.breaks(said) else GOES_ON


class _PenalizedJudge:
    """The judge of `target.inner`, which penalizes its rows where they lie."""

    def __init__(self, target: PenalizedTarget, inner: Judge) -> None:
        self.target, self.inner = target, inner

    def __call__(self, pending: int, draft: npt.NDArray[np.int32], position: int) -> Verdict:
        self.target._judging((pending, *draft.tolist()))
        return self.inner(pending, draft, position)

    def several(self, pending: int, ahead: Ahead, drafter: Lent | None, position: int, room: int) -> list[Step]:
        self.target._judging((pending,))  # before a token that is not known to be a breaker or none, C ends
        return self.inner.several(pending, ahead, drafter, position, room)


def under(target: Target, penalties: Penalties, prompt: Sequence[int]) -> Target:
    """`target` under penalties, for one text that begins with `prompt` [N]; itself where they are off."""
    if not penalties.on:
        return target
    return PenalizedTarget(target, penalties, 0 if penalties.prompt else len(prompt))


def check_under(target: Target, sampler: Sampler) -> None:
    """UsageError for a sampler whose penalties nobody would apply."""
    if sampler.penalties.on and not isinstance(target, PenalizedTarget):
        raise UsageError(
            "the sampler has penalties and the target applies none; give targets.penalized.under(target, penalties, prompt)"
        )
