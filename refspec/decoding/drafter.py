"""What every drafter offers to the decode cycle.

Not an implementation. Alignment used everywhere: row P pairs (token x_{P+1}, feature a_P), has RoPE position P and
predicts x_{P+2}; x_0 is never fed to a drafter. Shape legend: see `refspec/reference/config.py`;
what a draft is: `refspec/reference/draft.py`.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from refspec.reference.draft import Draft, Stop
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree, TreeShape
from refspec.reference.tree_grow import More

Coins = npt.NDArray[np.float64]  # numbers in [0, 1)


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
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Draft up to k tokens after the last true row: argmax, or by coins [k]; `stop` may end it."""

    def rollback(self, n_rows: int) -> None:
        """Keep only the first n_rows true rows and no drafted row."""

    def reset(self) -> None:
        """Forget every row."""

    def close(self) -> None:
        """Release what the drafter holds; calling it twice is harmless."""


class TreeDrafter(Drafter, Protocol):
    """A drafter that can also propose several continuations at once."""

    def draft_tree(
        self, shape: TreeShape, *, coins: Coins | None = None, sampler: Sampler | None = None, more: More | None = None
    ) -> Tree:
        """Draft a tree after the last true row: the likeliest nodes, or drawn by coins [shape.nodes]."""


@runtime_checkable
class SeesFirst(Protocol):
    """A drafter that wants x_0 too, which no row holds: one that reads the tokens, not the target's states."""

    def begin(self, token: int) -> None:
        """Take x_0 [a token id], right after `reset` and before any row."""


@runtime_checkable
class Surveys(Protocol):
    """A drafter that can tell cheaply how sure it is of tokens that are already decided."""

    def survey(self, tokens: Ids, features: Array) -> float:
        """`extend`, and the mean log probability of the likeliest token after each row; nan: cannot tell."""


def survey(drafter: Drafter, tokens: Ids, features: Array) -> float:
    """`Surveys.survey` of a drafter that may not offer it: nan then, the rows appended."""
    if isinstance(drafter, Surveys):
        return drafter.survey(tokens, features)
    drafter.extend(tokens, features)
    return math.nan
