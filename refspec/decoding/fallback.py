"""FallbackDrafter: a trained drafter, and prompt lookup where the trained one is not sure of its first token.

The rule: let c be the trained drafter's probability of its likeliest first token. If c < `sure` and the last `shortest`
or more tokens occurred before, the draft is what lookup says; otherwise it is the trained drafter's. Both c and the
match are functions of the decided tokens alone, known before any coin is drawn, so the choice is deterministic and
lossless with sampled drafts too. Lookup costs microseconds and its trained partner no step: the first probabilities are
there when `extend` returns.
"""

from __future__ import annotations

from refspec.decoding.drafter import Coins, Drafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.with_lookup import WithLookup
from refspec.errors import UsageError
from refspec.reference.draft import Draft, Stop
from refspec.reference.sampling import Sampler

SURE = 0.4  # below it a trained drafter's first token is more often wrong than right
SHORTEST = 2  # one common token before is no reason to believe the next


class FallbackDrafter(WithLookup[Drafter]):
    """Two Drafters as one; `from_lookup` says where the last draft came from, `lookups` counts such drafts."""

    def __init__(self, trained: Drafter, lookup: LookupDrafter | None = None, *, sure: float = SURE) -> None:
        """Raises UsageError unless 0 <= sure <= 1."""
        if not 0 <= sure <= 1:
            raise UsageError(f"sure = {sure} is outside 0..1; 0 never looks up, 1 nearly always")
        super().__init__(trained, lookup or LookupDrafter(shortest=SHORTEST))
        self.sure = sure
        self.from_lookup, self.lookups = False, 0

    def draft(
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """The trained draft, or lookup's by the rule above."""
        self.from_lookup, unsure = False, False

        def rule(i: int, confidence: float) -> bool:
            nonlocal unsure
            unsure = i == 0 and confidence < self.sure
            return unsure or (stop is not None and stop(i, confidence))

        draft = self.trained.draft(k, coins=coins, sampler=sampler, stop=rule)
        if not unsure:
            return draft
        found = self.lookup.draft(k, stop=stop)
        if self.lookup.matched:
            self.from_lookup = True
            self.lookups += 1
            return found
        # nothing was drawn above: no coin is used twice
        return self.trained.draft(k, coins=coins, sampler=sampler, stop=stop)

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows; another output begins."""
        super().rollback(n_rows)
        self.from_lookup, self.lookups = False, 0

    def reset(self) -> None:
        """Forget every row."""
        super().reset()
        self.from_lookup, self.lookups = False, 0
