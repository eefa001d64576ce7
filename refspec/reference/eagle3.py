"""The EAGLE-3 drafter: rows of `eagle3_rows.py` chained into draft tokens; draft trees are in `eagle3_tree.py`.

Shape legend: T rows, k draft tokens, the rest in `config.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.reference import ops as numpy_ops
from refspec.reference.chain import ChainDrafter, NumpyChooser
from refspec.reference.config import DrafterConfig, Weights
from refspec.reference.draft import Ops, check_tree_arguments
from refspec.reference.eagle3_forward import feedback, head, output_norm
from refspec.reference.eagle3_rows import Eagle3Rows
from refspec.reference.eagle3_tree import draft_tree
from refspec.reference.ops import Array
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree, TreeShape
from refspec.reference.tree_grow import More


class Eagle3Drafter(Eagle3Rows, ChainDrafter):
    """The reference drafter: what every other implementation of EAGLE-3 is held to."""

    def __init__(
        self, config: DrafterConfig, weights: Weights, ops: Ops = numpy_ops, anchor: float = 0.0, grow: float = 0.0
    ) -> None:
        """As `Eagle3Rows`."""
        super().__init__(config, weights, ops, anchor, grow)
        self.vocab_size, self.width = config.vocab_size, config.draft_vocab_size
        self.logit_ids = self.draft_ids = self.d2t
        self.choose = NumpyChooser(ops)

    def begin_chain(self, k: int) -> int:
        """Drop drafted rows; a chain is drafted after a true row only."""
        self.rollback(self.n_rows)
        return k if self.n_rows else 0

    def logits(self) -> Array:
        """Logits [D] of the token after the newest row."""
        h = self.hidden.rows[-1:]  # [1, H]
        n = output_norm(self.config, self.weights, h, self.ops)  # [1, H]
        self._state = feedback(self.config, h, n)  # [1, H] what the next row starts from
        return head(self.config, self.weights, h, n, self.ops)[0]

    def advance(self, token: int) -> None:
        """One more chained row."""
        self._run(np.array([token]), self._state, is_target_feature=False)

    def draft_tree(
        self, shape: TreeShape, *, coins: npt.NDArray[np.float64] | None = None, sampler: Sampler | None = None,
        more: More | None = None,
    ) -> Tree:  # fmt: skip
        """A tree of at most shape.nodes tokens after the last true row: `grow`, or by coins [nodes] `grow_sampled`."""
        check_tree_arguments(shape, coins, sampler)
        return draft_tree(self, shape, coins, sampler, more)
