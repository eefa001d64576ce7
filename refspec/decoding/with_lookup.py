"""WithLookup: a trained drafter and prompt lookup that read the same rows; a subclass's rule drafts of the two."""

from __future__ import annotations

from typing import Generic, TypeVar

from refspec.decoding.drafter import Drafter, survey
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.wrapped import WrappedDrafter
from refspec.reference.ops import Array, Ids

D = TypeVar("D", bound=Drafter)


class WithLookup(WrappedDrafter, Generic[D]):
    """Rows, time and lifetime of both as one."""

    def __init__(self, trained: D, lookup: LookupDrafter) -> None:
        super().__init__(trained)
        self.trained, self.lookup = trained, lookup

    @property
    def seconds(self) -> float:
        """Time spent inside both."""
        return self.trained.seconds + self.lookup.seconds

    def begin(self, token: int) -> None:
        """Take x_0."""
        self.lookup.begin(token)
        super().begin(token)

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
