"""LlamaTreeTarget: a LlamaTarget that runs a whole draft tree in one decode and keeps the path that was accepted.

Shape legend: N nodes, T = N + 1 rows (row 0 the pending token, row i + 1 node i), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refspec.decoding.target import Penalized, Verifier
from refspec.errors import BackendError, ShapeError, UsageError
from refspec.gguf.header import GgufSource
from refspec.llama import api
from refspec.llama.target import LlamaTarget
from refspec.llama.tree_batch import MAX_SEQUENCES, TreeBatch, leaf_sequences, settle, share
from refspec.reference.ops import Ids
from refspec.reference.sampling import Sampler

# Caches whose cells know more than a position: llama.cpp attends differently, or refuses, when sequences share them.
UNSHARED_ARCHS = frozenset({"deepseek4", "minimax-m3"})


class LlamaTreeTarget(LlamaTarget):
    """One GGUF in llama.cpp as a TreeTarget, for trees of at most `leaves` leaves; attention-only architectures."""

    def __init__(self, path: GgufSource, *, leaves: int, **settings: Any) -> None:
        """As LlamaTarget; UsageError for `leaves` outside 1..256, BackendError (architecture)."""
        if not 1 <= leaves <= MAX_SEQUENCES:
            raise UsageError(f"leaves = {leaves} is outside 1..{MAX_SEQUENCES}")
        super().__init__(path, n_seq_max=leaves, **settings)
        self.leaves = leaves
        self._tree_batch = TreeBatch(min(self.context.n_batch, MAX_SEQUENCES))
        self._sequences: list[list[int]] | None = None  # of the nodes of a tree not settled yet, as `leaf_sequences`

    @property
    def max_nodes(self) -> int:
        """The most nodes a tree may have here."""
        return len(self._tree_batch.tokens) - 1

    def decode_tree(self, tokens: Sequence[int] | Ids, parents: Sequence[int] | Ids) -> int:
        """Run the pending token and N nodes, tokens [N+1], parents [N] (-1: pending), with logits and states of all; T.

        `keep_path` must follow; any other call forgets the tree. ShapeError, BackendError; the positions held stay
        held.
        """
        self.context.alive()
        self._forget_tree()
        rows, n, start = self._rows, len(tokens), self.n_past
        above = [int(p) for p in parents]
        if n != len(above) + 1 or any(not -1 <= p < i for i, p in enumerate(above)):
            raise ShapeError(f"{self.path}: {n} tokens and parents {above} are not a tree; parents come first")
        if n > min(len(self._tree_batch.tokens), self.n_ctx - start):
            room = min(self.max_nodes, self.n_ctx - start - 1)
            raise ShapeError(f"{self.path}: {n - 1} nodes after {start} tokens do not fit; give at most {room}")
        sequences = leaf_sequences(above)
        if len(sequences[0]) > self.leaves:
            raise ShapeError(f"{self.path}: a tree of {len(sequences[0])} leaves, loaded for {self.leaves}")
        ids = np.asarray(tokens)
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= self.n_vocab:
            raise ShapeError(f"{self.path}: tokens must be ids in 0..{self.n_vocab - 1}")
        depths = [0]
        for parent in above:
            depths.append(depths[parent + 1] + 1)
        rows.begin(n)
        self._tree_batch.tokens[:n] = ids
        struct = self._tree_batch.prepare([start + d for d in depths], sequences)
        self._sequences = sequences
        try:
            share(self.context.memory, len(sequences[0]))
            if code := rows.run(struct, n):
                raise self.context.failure(code, f"run a tree of {n - 1} nodes at position {start}")
            rows.end(n, start, outputs=n)
            rows.check_finite(0, start)
        except BaseException:
            rows.n = 0
            self._forget_tree()
            raise
        return n

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Keep the pending token and `nodes`, a path from the root; logits and features stay readable."""
        if self._sequences is None:
            raise UsageError(f"{self.path}: keep_path follows decode_tree")
        sequences, self._sequences = self._sequences, None
        winner = sequences[nodes[-1] + 1][0] if len(nodes) else 0
        held = self.n_past + 1 + len(nodes)
        settle(self.context.memory, winner, self.n_past, held)
        self._rows.text[self.n_past : held] = self._tree_batch.tokens[[0, *(node + 1 for node in nodes)]]
        self._rows.n_past = held

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """As LlamaTarget; a tree not settled is forgotten first."""
        self._forget_tree()
        return super().decode(tokens, logits=logits)

    def verifier(self, sampler: Sampler, seed: int, penalties: Penalized | None = None) -> Verifier | None:
        """As LlamaTarget; a tree not settled is forgotten first."""
        self._forget_tree()
        return super().verifier(sampler, seed, penalties)

    def rollback(self, n: int) -> None:
        """As LlamaTarget; a tree not settled is forgotten first."""
        self._forget_tree()
        super().rollback(n)

    def reset(self) -> None:
        """Forget every position and the time spent."""
        self._sequences = None
        super().reset()

    def _forget_tree(self) -> None:
        if self._sequences is not None:
            self._sequences = None
            settle(self.context.memory, 0, self.n_past, self.n_past)

    def _check_kind(self) -> None:
        super()._check_kind()
        check_shares(self)


def check_shares(target: LlamaTarget) -> None:
    """BackendError for an architecture whose cache cannot hold the paths of a tree at once."""
    recurrent = api.model_is_recurrent(target.model.handle) or api.model_is_hybrid(target.model.handle)
    if recurrent or target.arch in UNSHARED_ARCHS:
        raise BackendError(f"{target.path}: architecture {target.arch!r} cannot run trees; draft chains, not trees")
