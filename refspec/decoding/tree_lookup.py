"""TreeLookupDrafter: a trained drafter's tree, and in it what followed the last time the sequence ended like this.

The rule: the trained drafter grows its tree, prompt lookup (`lookup.py`) says its continuation, and of both together
the N nodes worth most are kept. A node of the tree is worth the product of its draft probabilities; the j-th token of
the continuation is worth the chance that tokens 1..j of it are accepted, estimated from how often earlier ones were:

    r(n, first)  =  (hits + 4 n / (n + 2)) / (tries + 4)       n the length of the match
    r(n, later)  likewise, given that those before were accepted

A node that is both is worth the larger of the two. So a sequence that repeats itself is followed down one long branch,
another keeps its tree, and nobody has to say which it is. The tree is a function of the decided tokens and of what was
counted in earlier steps, known before any coin of this step, hence lossless by the deterministic rule
(`verify_tree_deterministic`). Sampled trees cannot take it in.
"""

from __future__ import annotations

import numpy as np

from refspec.decoding.drafter import Coins, TreeDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.with_lookup import WithLookup
from refspec.errors import UsageError
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree, TreeShape
from refspec.reference.tree_grow import More, with_path

WEIGHT = 4.0  # tries that the guess n / (n + 2) counts for
KEEP = 1 - 1 / 200  # of every count, per try of the same kind: sequences change


class TreeLookupDrafter(WithLookup[TreeDrafter]):
    """A TreeDrafter of two."""

    def __init__(self, trained: TreeDrafter, lookup: LookupDrafter | None = None) -> None:
        super().__init__(trained, lookup or LookupDrafter())
        # (length of the match, first token?) -> (tries, hits)
        self._counts: dict[tuple[int, bool], tuple[float, float]] = {}
        # length of the match and the continuation that the next true tokens are held against
        self._said: tuple[int, list[int]] = (0, [])

    def extend(self, tokens: Ids, features: Array) -> None:
        """Append true rows to both, and count how far the last continuation went."""
        matched, said = self._said
        for i, (token, true) in enumerate(zip(said, np.asarray(tokens).tolist(), strict=False)):
            key = (matched, i == 0)
            tries, hits = self._counts.get(key, (0.0, 0.0))
            self._counts[key] = tries * KEEP + 1, hits * KEEP + (token == true)
            if token != true:
                break
        self._said = (0, [])
        super().extend(tokens, features)

    def draft_tree(
        self, shape: TreeShape, *, coins: Coins | None = None, sampler: Sampler | None = None, more: More | None = None
    ) -> Tree:
        """The shape.nodes best nodes of the tree and of lookup's path; UsageError where it is sampled."""
        if coins is not None or sampler is not None:
            raise UsageError("lookup in a tree is for deterministic drafts; leave --lookup or --draft-sampling out")
        tree = self.trained.draft_tree(shape, more=more)
        said = self.lookup.draft(shape.depth).tokens.tolist()
        matched = self.lookup.matched
        self._said = (matched, said)
        return with_path(tree, said, self.chances(matched, len(said)), shape.nodes, shape.floor) if said else tree

    def chances(self, matched: int, n: int) -> list[float]:
        """[n] the chance that tokens 1..j of a continuation found by `matched` tokens are all accepted, j = 1..n."""
        out, value = list[float](), 1.0
        for i in range(n):
            tries, hits = self._counts.get((matched, i == 0), (0.0, 0.0))
            value *= (hits + WEIGHT * matched / (matched + 2)) / (tries + WEIGHT)
            out.append(value)
        return out

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows of both."""
        self._said = (0, [])
        super().rollback(n_rows)

    def reset(self) -> None:
        """Forget every row; what was counted stays."""
        self._said = (0, [])
        super().reset()
