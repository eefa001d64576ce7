"""What every drafter offers, what it returns, and what it needs from a numerical backend.

Not an implementation. Alignment used everywhere: row P pairs (token x_{P+1}, feature a_P), has RoPE position P and
predicts x_{P+2}; x_0 is never fed to a drafter. Shape legend: see `refspec/config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from refspec.burst import Lent
from refspec.errors import UsageError
from refspec.ops import Array, Ids
from refspec.sampling import Sampler
from refspec.trees.tree import Tree, TreeShape
from refspec.trees.tree_grow import More


class Draft(NamedTuple):
    """Up to k draft tokens in order; fewer when the drafter has no row to start from or no room left."""

    tokens: npt.NDArray[np.int32]  # [k] target ids
    q_draft: npt.NDArray[np.float64] | None  # [k, V] law each token was drawn from; None = drafted deterministically
    confidence: Array  # [k] draft probability of each drafted token, or a score in 0..1; NaN where not computed


# Asked before draft token i is drafted, with the probability of the likeliest token there: True ends the draft before it.
# What it is told depends on the tokens drafted so far only, never on token i or a coin for it: a draft ended so is lossless
# under rejection too, where dropping a token because of its own value would not be.
Stop = Callable[[int, float], bool]


class Drafter(Protocol):
    """A drafter holds true rows (made from target features) followed, after `draft`, by drafted rows."""

    capture_layers: tuple[int, ...]  # boundaries of the target it wants features from

    @property
    def n_rows(self) -> int:
        """True rows committed."""

    @property
    def seconds(self) -> float:
        """Time spent inside the drafter so far."""

    def extend(self, tokens: Ids, features: Array) -> None:
        """Drop drafted rows, then append true rows n_rows..n_rows+T-1 from tokens [T] and features [T, n_states*Ht]."""

    def draft(
        self, k: int, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Draft up to k tokens after the last true row: argmax, or sampled when coins [k] and a sampler are given; `stop` may end it."""

    def rollback(self, n_rows: int) -> None:
        """Keep only the first n_rows true rows and no drafted row."""

    def reset(self) -> None:
        """Forget every row."""

    def close(self) -> None:
        """Release what the drafter holds; calling it twice is harmless."""


class TreeDrafter(Drafter, Protocol):
    """A drafter that can also propose several continuations at once."""

    def draft_tree(
        self, shape: TreeShape, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None, more: More | None = None
    ) -> Tree:
        """Draft a tree after the last true row: the likeliest nodes, grown while `more` says so, or drawn without replacement by coins [shape.nodes]."""


def check_draft_arguments(k: int, coins: npt.NDArray[np.float64] | None, sampler: Sampler | None) -> None:
    """Raise UsageError for a negative length, or a sampler without a coin for each of k tokens."""
    if k < 0 or (sampler is None) != (coins is None) or (coins is not None and len(coins) < k):
        raise UsageError(f"draft: k = {k} must be >= 0, and a sampler needs k coins, one per draft token")


def check_tree_arguments(shape: TreeShape, coins: npt.NDArray[np.float64] | None, sampler: Sampler | None) -> None:
    """Raise UsageError for a shape outside its range, or a sampler without a coin for each node."""
    shape.checked()
    if (sampler is None) != (coins is None) or (coins is not None and len(coins) < shape.nodes):
        raise UsageError(f"draft_tree: a sampler needs a coin for each of {shape.nodes} nodes, and coins a sampler")


@runtime_checkable
class SeesFirst(Protocol):
    """A drafter that wants x_0 too, which no row holds: one that reads the text itself, not the target's states."""

    def begin(self, token: int) -> None:
        """Take x_0 [a token id], right after `reset` and before any row."""


@runtime_checkable
class Surveys(Protocol):
    """A drafter that can tell cheaply how sure it is of a text that is already there."""

    def survey(self, tokens: Ids, features: Array) -> float:
        """Append true rows as `extend` does; the mean log probability of the likeliest token after each of them, nan where it cannot tell."""


@runtime_checkable
class Lends(Protocol):
    """A drafter in C, which a call that runs several steps may use itself (`refspec/burst.py`)."""

    def lend(self) -> Lent | None:
        """What C needs to draft after the last true row and to append more; None where this drafter has to be asked."""

    def given(self, rows: int, seconds: float) -> None:
        """So many true rows were appended by whom it was lent to, drafts included in so many seconds."""


def survey(drafter: Drafter, tokens: Ids, features: Array) -> float:
    """`Surveys.survey` of a drafter that may not offer it: nan then, the rows appended."""
    if isinstance(drafter, Surveys):
        return drafter.survey(tokens, features)
    drafter.extend(tokens, features)
    return math.nan


class RowRecord(NamedTuple):
    """What a probe is told about T rows that ran together, for drift diagnostics; S counts all rows held with them."""

    depth: int  # 0 = true rows; j = the j-th chained row after the last true row
    first_row: int  # index, and RoPE position, of the first of the T rows
    attention: Array  # [nh, T, S] weights, 0 where a row does not see
    residual: Array  # [T, H] what attention's output was added to
    added: Array  # [T, H] that output
    state_in: Array  # [T, H] the state g that entered the block
    state_out: Array  # [T, H] the state handed to the next chained row


Probe = Callable[[RowRecord], None]  # for example records.append


def magnitude(state: Array) -> Array:
    """Root mean square of each row: [T, H] -> [T], in units of one channel (RMSNorm with weights 1 gives 1)."""
    mean_square: Array = np.mean(state * state, axis=-1)  # [T]
    return np.sqrt(mean_square)  # [T]


class Ops(Protocol):
    """The numerical backend: the module `refspec.ops`, or another with its functions and its batch invariance."""

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array: ...
    def rope(self, x: Array, positions: Ids, theta: float, style: str, freqs: Array | None = None) -> Array: ...
    def matvec(self, w: Array, x: Array) -> Array: ...
    def softmax(self, x: Array, axis: int = -1) -> Array: ...
    def swiglu(self, gate: Array, up: Array) -> Array: ...
    def attention(
        self, q: Array, k: Array, v: Array, visible: Ids, return_weights: bool = False
    ) -> tuple[Array, Array | None]: ...
    def gather_rows(self, table: Array, ids: Ids) -> Array: ...
    def argmax(self, x: Array) -> int: ...
