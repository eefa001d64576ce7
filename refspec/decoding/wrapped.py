"""WrappedDrafter: a Drafter that passes every call on, for what watches, delays or adds to one."""

from __future__ import annotations

from refspec.decoding.draft_penalties import DraftPenalties, MindsPenalties
from refspec.decoding.drafter import Coins, Drafter, SeesFirst, survey
from refspec.decoding.grammar_target import DraftGrammar, MindsGrammar
from refspec.reference.draft import Draft, Stop
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler


class WrappedDrafter:
    """The Drafter `inner` itself, until a subclass says otherwise."""

    def __init__(self, inner: Drafter) -> None:
        self.inner, self.capture_layers = inner, inner.capture_layers

    @property
    def n_rows(self) -> int:
        """True rows committed."""
        return self.inner.n_rows

    @property
    def seconds(self) -> float:
        """Time spent inside the drafter."""
        return self.inner.seconds

    @property
    def penalties(self) -> DraftPenalties | None:
        """What `inner` drafts under, if it minds penalties."""
        return getattr(self.inner, "penalties", None)

    @penalties.setter
    def penalties(self, penalties: DraftPenalties | None) -> None:
        if isinstance(self.inner, MindsPenalties):
            self.inner.penalties = penalties

    @property
    def grammar(self) -> DraftGrammar | None:
        """What `inner` drafts within, if it minds a grammar."""
        return getattr(self.inner, "grammar", None)

    @grammar.setter
    def grammar(self, grammar: DraftGrammar | None) -> None:
        if isinstance(self.inner, MindsGrammar):
            self.inner.grammar = grammar

    def begin(self, token: int) -> None:
        """Take x_0, if the drafter wants it."""
        if isinstance(self.inner, SeesFirst):
            self.inner.begin(token)

    def extend(self, tokens: Ids, features: Array) -> None:
        """Append true rows."""
        self.inner.extend(tokens, features)

    def survey(self, tokens: Ids, features: Array) -> float:
        """Append true rows; how sure `inner` is of them, if it can tell."""
        return survey(self.inner, tokens, features)

    def draft(
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Draft up to k tokens."""
        return self.inner.draft(k, coins=coins, sampler=sampler, stop=stop)

    def rollback(self, n_rows: int) -> None:
        """Keep only the first n_rows true rows."""
        self.inner.rollback(n_rows)

    def reset(self) -> None:
        """Forget every row."""
        self.inner.reset()

    def close(self) -> None:
        """Release the drafter."""
        self.inner.close()
