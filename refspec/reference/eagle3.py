"""The EAGLE-3 drafter: rows of `eagle3_rows.py` chained into draft tokens; draft trees are in `eagle3_tree.py`.

Shape legend: T rows, k draft tokens, the rest in `config.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.reference.draft import Draft, Stop, check_draft_arguments, check_tree_arguments
from refspec.reference.draft_distribution import draft_law, restricted
from refspec.reference.eagle3_forward import feedback, head, output_norm
from refspec.reference.eagle3_rows import Eagle3Rows, Rows
from refspec.reference.eagle3_tree import draft_tree
from refspec.reference.sampling import Sampler, invert_cdf
from refspec.reference.tree import Tree, TreeShape
from refspec.reference.tree_grow import More

__all__ = ["Eagle3Drafter", "Rows"]


class Eagle3Drafter(Eagle3Rows):
    """The reference drafter: what every other implementation of EAGLE-3 is held to."""

    def draft(
        self,
        k: int,
        *,
        coins: npt.NDArray[np.float64] | None = None,
        sampler: Sampler | None = None,
        stop: Stop | None = None,
    ) -> Draft:
        """Up to k draft tokens after the last true row: argmax, or drawn by coins [k]; `stop` may end them earlier."""
        check_draft_arguments(k, coins, sampler)
        self.rollback(self.n_rows)
        if sampler is not None:
            sampler = restricted(sampler, self.d2t)
            forbidden = np.count_nonzero(np.isneginf(sampler.bias_values))
            k = 0 if forbidden == self.config.draft_vocab_size else k  # nothing may be drafted
        tokens: list[int] = []
        laws: list[npt.NDArray[np.float64]] = []
        confidence: list[float] = []
        for i in range(k if self.n_rows else 0):
            h = self.hidden.rows[-1:]  # [1, H]
            n = output_norm(self.config, self.weights, h, self.ops)  # [1, H]
            logits = head(self.config, self.weights, h, n, self.ops)[0]  # [D]
            if self.penalties is not None:
                logits = self.penalties(logits, tokens, self.d2t)
            if sampler is None or coins is None:
                best = self.ops.argmax(logits)
                probability = float(self.ops.softmax(logits)[best])
                if stop is not None and stop(i, probability):
                    break
                tokens.append(int(self.d2t[best]))
                confidence.append(probability)
            else:
                law = draft_law(logits, sampler, self.d2t, self.config.vocab_size)  # [V]
                if stop is not None and stop(i, float(law.max())):  # before the coin: see `Stop`
                    break
                laws.append(law)
                tokens.append(invert_cdf(laws[-1], float(coins[i])))
                confidence.append(float(laws[-1][tokens[-1]]))
            if i + 1 < k:  # the last draft token needs no row of its own
                self._run(np.array(tokens[-1:]), feedback(self.config, h, n), is_target_feature=False)
        q_draft = None if sampler is None else np.array(laws).reshape(-1, self.config.vocab_size)  # [k, V]
        return Draft(np.array(tokens, np.int32), q_draft, np.array(confidence, np.float32))

    def draft_tree(
        self,
        shape: TreeShape,
        *,
        coins: npt.NDArray[np.float64] | None = None,
        sampler: Sampler | None = None,
        more: More | None = None,
    ) -> Tree:
        """A tree of at most shape.nodes tokens after the last true row: `grow`, or by coins [nodes] `grow_sampled`."""
        check_tree_arguments(shape, coins, sampler)
        return draft_tree(self, shape, coins, sampler, more)
