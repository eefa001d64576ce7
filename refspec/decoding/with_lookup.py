"""WithLookup: a trained drafter and prompt lookup that read the same rows; what is drafted of the two is a subclass's
rule.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from refspec.decoding.draft_penalties import DraftPenalties, MindsPenalties
from refspec.decoding.drafter import Drafter, SeesFirst, survey
from refspec.decoding.lookup import LookupDrafter
from refspec.reference.ops import Array, Ids

D = TypeVar("D", bound=Drafter)


class WithLookup(Generic[D]):
    """Rows, time and lifetime of both as one."""

    def __init__(self, trained: D, lookup: LookupDrafter) -> None:
        self.trained, self.lookup = trained, lookup
        self.capture_layers = trained.capture_layers

    @property
    def n_rows(self) -> int:
        """True rows committed."""
        return self.trained.n_rows

    @property
    def seconds(self) -> float:
        """Time spent inside both."""
        return self.trained.seconds + self.lookup.seconds

    @property
    def penalties(self) -> DraftPenalties | None:
        """What `trained` drafts under, if it minds penalties."""
        return getattr(self.trained, "penalties", None)

    @penalties.setter
    def penalties(self, penalties: DraftPenalties | None) -> None:
        if isinstance(self.trained, MindsPenalties):
            self.trained.penalties = penalties

    def begin(self, token: int) -> None:
        """Take x_0."""
        self.lookup.begin(token)
        if isinstance(self.trained, SeesFirst):
            self.trained.begin(token)

    def extend(self, tokens: Ids, features: Array) -> None:
        """Append true rows to both."""
        self.trained.extend(tokens, features)
        self.lookup.extend(tokens, features)

    def survey(self, tokens: Ids, features: Array) -> float:
        """The same; how sure `trained` is of them, if it can tell."""
        self.lookup.extend(tokens, features)
        return survey(self.trained, tokens, features)

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows of both."""
        self.trained.rollback(n_rows)
        self.lookup.rollback(n_rows)

    def reset(self) -> None:
        """Forget every row."""
        self.trained.reset()
        self.lookup.reset()

    def close(self) -> None:
        """Release both."""
        self.trained.close()
        self.lookup.close()
