"""How a chain is drafted: one token after the other, each from the logits of the newest row.

The rules are here, once for every drafter in Python: the likeliest token or one drawn by a coin, under which penalties,
when `stop` ends the chain, what is reported of each token. A drafter says how far it can draft (`begin_chain`), what
its newest row gives (`logits`), and runs the next row (`advance`). Legend: k draft tokens, V target vocabulary, D draft
vocabulary (the logits' width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError
from refspec.reference import sampling
from refspec.reference.draft import Draft, LogitsChange, LogitsMask, Ops, Stop, check_draft_arguments
from refspec.reference.draft_distribution import draft_distribution, forbids_all, restricted
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler


class Chooser(Protocol):
    """How a token is chosen from logits: `NumpyChooser`, or the module `refspec.native`, which gives the same bits."""

    def argmax_prob(self, x: Array) -> tuple[int, float]:
        """The likeliest of x [D], lowest index on ties, and its probability; NaN for logits that are not finite."""

    def p_target(self, logits: Array, sampler: Sampler) -> npt.NDArray[np.float64]: ...
    def invert_cdf(self, p: npt.NDArray[np.float64], coin: float) -> int: ...


class NumpyChooser:
    """The Chooser of a numerical backend."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.p_target, self.invert_cdf = sampling.p_target, sampling.invert_cdf

    def argmax_prob(self, x: Array) -> tuple[int, float]:
        """See `Chooser`."""
        best = self.ops.argmax(x)
        return best, float(self.ops.softmax(x)[best])


class ChainDrafter:
    """A drafter as far as chains go; a subclass gives the rows.

    vocab_size   V
    width        D
    logit_ids    [D] target id of each logit; None where they are 0..D-1
    draft_ids    [..] target ids that may be drafted
    penalties    what chains are drafted under, if anything
    grammar      what chains are drafted within, if anything; a chain ends where it allows nothing
    """

    vocab_size: int
    width: int
    logit_ids: Ids | None
    draft_ids: Ids
    penalties: LogitsChange | None = None
    grammar: LogitsMask | None = None
    choose: Chooser

    def begin_chain(self, k: int) -> int:
        """Make the last true row the newest one, if k > 0; how many of k tokens can be drafted after it."""
        raise NotImplementedError

    def logits(self) -> Array:
        """Logits [D] of the token after the newest row, without penalties; valid until `advance`."""
        raise NotImplementedError

    def advance(self, token: int) -> None:
        """Run one more row, of the token just drafted."""
        raise NotImplementedError

    def whole_chain(self, k: int) -> Draft | None:
        """The k likeliest tokens at once, where the drafter has a faster way to them; `begin_chain` came before."""
        return None

    def likeliest(self, drafted: Sequence[int]) -> tuple[int, float]:
        """The token to draft after these and its probability; no grammar is minded."""
        return self._best(self._penalized(drafted))

    def _best(self, logits: Array) -> tuple[int, float]:
        best, probability = self.choose.argmax_prob(logits)
        if math.isnan(probability):
            raise self.damaged()
        return (best if self.logit_ids is None else int(self.logit_ids[best])), probability

    def distribution(self, logits: Array, sampler: Sampler) -> npt.NDArray[np.float64]:
        """Probabilities [V] of the next token by its logits [D]; `sampler` is restricted to the draft vocabulary."""
        if not math.isfinite(logits.max()):
            raise self.damaged()
        return draft_distribution(self.choose.p_target(logits, sampler), self.logit_ids, self.vocab_size)

    def damaged(self) -> BackendError:
        """The error for logits that are not finite."""
        return BackendError("the drafter's logits are not finite; its weights are damaged")

    def draft(
        self, k: int, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None,
        stop: Stop | None = None,
    ) -> Draft:  # fmt: skip
        """Chain up to k draft tokens after the last true row: argmax, or by coins [k] from the sampler's distribution.

        Fewer where `stop` ends it, or without a row or room. BackendError when the logits are not finite.
        """
        check_draft_arguments(k, coins, sampler)
        if sampler is not None and forbids_all(sampler, self.draft_ids):
            k = 0
        k = self.begin_chain(k)
        if coins is None and stop is None and self.grammar is None and (whole := self.whole_chain(k)) is not None:
            return whole
        narrow = None if sampler is None else restricted(sampler, self.logit_ids, self.width)
        tokens: list[int] = []
        confidence: list[float] = []
        distributions: list[npt.NDArray[np.float64]] = []  # [k] of [V]
        for i in range(k):
            masked = None if self.grammar is None else self.grammar(self._penalized(tokens), tokens, self.logit_ids)
            if self.grammar is not None and masked is None:
                break
            if narrow is None or coins is None:
                token, probability = self.likeliest(tokens) if masked is None else self._best(masked)
                if stop is not None and stop(i, probability):
                    break
            else:
                q = self.distribution(self._penalized(tokens) if masked is None else masked, narrow)
                if stop is not None and stop(i, float(q.max())):  # before the coin: see `Stop`
                    break
                distributions.append(q)
                token = self.choose.invert_cdf(q, float(coins[i]))
                probability = float(q[token])
            tokens.append(token)
            confidence.append(probability)
            if i + 1 < k:  # the last draft token needs no row of its own
                self.advance(token)
        q_draft = None if narrow is None else np.array(distributions).reshape(-1, self.vocab_size)  # [k, V]
        return Draft(np.array(tokens, np.int32), q_draft, np.array(confidence, np.float32))

    def _penalized(self, drafted: Sequence[int]) -> Array:
        logits = self.logits()
        return logits if self.penalties is None else self.penalties(logits, drafted, self.logit_ids)
