"""What a drafter returns, what it reports about its rows for diagnostics, and what it needs from a numerical backend.

Not a drafter: `eagle3.py` is one. Shape legend: k draft tokens, T rows, S rows held, the rest in `config.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refspec.errors import UsageError
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape


class Draft(NamedTuple):
    """Up to k draft tokens in order; fewer when the drafter has no row to start from or no room left."""

    tokens: npt.NDArray[np.int32]  # [k] target ids
    q_draft: npt.NDArray[np.float64] | None  # [k, V] what each token was drawn from; None = drafted deterministically
    confidence: Array  # [k] draft probability of each drafted token, or a score in 0..1; NaN where not computed


# Asked before draft token i is drafted, with the probability of the likeliest token there: True ends the draft before
# it. What it is told depends on the tokens drafted so far only, never on token i or a coin for it: a draft ended so is
# lossless under rejection too, where dropping a token because of its own value would not be.
Stop = Callable[[int, float], bool]

# Changes the logits [D] of the token after the output and these drafted tokens, as penalties do; ids [D] are target
# ids, None where draft ids are.
LogitsChange = Callable[[Array, Sequence[int], Ids | None], Array]

# The same for a grammar: the logits [D] with -inf for what may not follow, None where nothing may.
LogitsMask = Callable[[Array, Sequence[int], Ids | None], Array | None]


def check_draft_arguments(k: int, coins: npt.NDArray[np.float64] | None, sampler: Sampler | None) -> None:
    """Raise UsageError for a negative length, or a sampler without a coin for each of k tokens."""
    if k < 0 or (sampler is None) != (coins is None) or (coins is not None and len(coins) < k):
        raise UsageError(f"draft: k = {k} must be >= 0, and a sampler needs k coins, one per draft token")


def check_tree_arguments(shape: TreeShape, coins: npt.NDArray[np.float64] | None, sampler: Sampler | None) -> None:
    """Raise UsageError for a shape outside its range, or a sampler without a coin for each node."""
    shape.checked()
    if (sampler is None) != (coins is None) or (coins is not None and len(coins) < shape.nodes):
        raise UsageError(f"draft_tree: a sampler needs a coin for each of {shape.nodes} nodes, and coins a sampler")


class RowRecord(NamedTuple):
    """What a `Probe` is told about T rows that ran together; S counts all rows held with them."""

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
    """The numerical backend: the module `ops.py`, or another with its functions and its batch invariance."""

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
