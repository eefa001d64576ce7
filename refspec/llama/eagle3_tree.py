"""LlamaEagle3TreeDrafter: draft trees by llama.cpp, one decode per depth over the nodes that are worth expanding.

Each expanded node is a row in a sequence of its own that holds its path; a node's first expanded child takes that
sequence over, its siblings get copies, so no more sequences live than nodes are expanded together. The state of every
row is kept and handed to its children by the host, normed where the drafter is (`Feedback.POST_NORM`). Growing is
`refspec/reference/tree_grow.py`.

Shape legend: F nodes expanded together, H drafter width, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from refspec import native
from refspec.decoding.drafter import Coins
from refspec.errors import BackendError, ShapeError, UsageError
from refspec.gguf.header import GgufSource
from refspec.llama import api
from refspec.llama.capture import Floats
from refspec.llama.eagle3 import Lender, LlamaEagle3Drafter
from refspec.llama.tree_batch import TreeBatch, branch, settle
from refspec.reference.draft import check_tree_arguments
from refspec.reference.draft_distribution import forbids_all
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Distribution, Tree, TreeShape, empty_tree
from refspec.reference.tree_grow import Found, More, grow, grow_sampled


class LlamaEagle3TreeDrafter(LlamaEagle3Drafter):
    """A LlamaEagle3Drafter as a TreeDrafter, for trees that expand at most `top_k` nodes per level."""

    def __init__(self, path: GgufSource, target: Lender, *, top_k: int, **settings: Any) -> None:
        """As LlamaEagle3Drafter; UsageError for `top_k` outside 1..64."""
        TreeShape(1, top_k).checked()
        super().__init__(path, target, n_seq_max=top_k, **settings)
        self.top_k = top_k
        width = self.config.hidden_size
        self._level = TreeBatch(top_k, width=width)
        self._fed: dict[int, Floats] = {}  # node -> [1, H] state its children start from
        self._sequence: dict[int, int] = {}  # node -> sequence that holds its path
        # node -> [V] logits of the level just run: views, dead after the next decode
        self._outputs: dict[int, Array] = {}

    def draft_tree(
        self, shape: TreeShape, *, coins: Coins | None = None, sampler: Sampler | None = None, more: More | None = None
    ) -> Tree:
        """A tree after the last true row, which `tree_grow.grow` grows, or with coins [nodes] `grow_sampled`.

        Empty without a row to start from, smaller where the context is full; BackendError for non-finite logits.
        """
        check_tree_arguments(shape, coins, sampler)
        if shape.top_k > self.top_k:
            raise UsageError(f"draft_tree: top_k = {shape.top_k}, the drafter was loaded for {self.top_k}")
        self.context.alive()
        if not self.n_rows or (sampler is not None and forbids_all(sampler, self.draft_ids)):
            return empty_tree()
        self._begin()
        try:
            if sampler is None or coins is None:
                return grow(lambda found, nodes: self._likeliest(found, nodes, shape), shape, more)
            given = iter(coins.tolist())
            return grow_sampled(
                lambda found, nodes: self._distributions(found, nodes, sampler),
                shape,
                lambda q: native.invert_cdf(q, next(given)),
            )
        finally:
            self._end()

    def forward_tree(self, tokens: Ids, parents: Ids) -> tuple[Array, Array]:
        """Teacher-forced nodes [N], at most top_k in a level, with parents [N] -> logits [N, V], h [N, H]."""
        depths: list[int] = []
        for parent in parents.tolist():
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        found = [Found(t, p, d, 1.0, 1.0) for t, p, d in zip(tokens.tolist(), parents.tolist(), depths, strict=True)]
        logits = np.empty((len(found), self.config.vocab_size), np.float32)
        h = np.empty((len(found), self.config.hidden_size), np.float32)
        self._begin()
        try:
            for depth in range(1, max(depths, default=0) + 1):
                level = [i for i, d in enumerate(depths) if d == depth]
                states = self._run(found, level)
                if len(states) < len(level):
                    raise ShapeError(f"{self.path}: {len(found)} nodes after {self.n_rows} rows exceed the context")
                h[level] = states
                for node in level:
                    logits[node] = self._outputs[node]
        finally:
            self._end()
        return logits, h

    def _likeliest(self, found: Sequence[Found], nodes: Sequence[int], shape: TreeShape) -> list[tuple[Ids, Array]]:
        self._run(found, nodes)
        nothing: tuple[Ids, Array] = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        try:
            rows = [self._outputs.get(node) for node in nodes]
            return [nothing if x is None else native.top_probs(x, shape.top_k, shape.temperature) for x in rows]
        except BackendError as error:
            raise BackendError(f"{self.path}: {error}") from None

    def _distributions(self, found: Sequence[Found], nodes: Sequence[int], sampler: Sampler) -> list[Distribution]:
        self._run(found, nodes)
        nothing = np.zeros(self.config.vocab_size)
        try:
            rows = [self._outputs.get(node) for node in nodes]
            return [nothing if x is None else native.p_target(x, sampler) for x in rows]
        except BackendError as error:
            raise BackendError(f"{self.path}: the drafter's {str(error).removeprefix('target ')}") from None

    def _begin(self) -> None:
        """The outputs of the last true row, which is the root."""
        self._last_row()
        width = self.config.hidden_size
        self._sequence = {ROOT: 0}
        self._outputs = {ROOT: self._views.at(self._logits, 1, self.config.vocab_size)[0]}
        self._fed = {ROOT: self._handed_on(self._views.at(self._state, 1, width).copy())}

    def _end(self) -> None:
        if len(self._sequence) > 1:
            settle(self.context.memory, 0, self.n_rows, self.n_rows)
            self._held, self._logits, self._state = self.n_rows, 0, 0
        self._sequence, self._outputs, self._fed = {}, {}, {}

    def _run(self, found: Sequence[Found], nodes: Sequence[int]) -> Array:
        """One decode of new nodes of one depth; their h [F, H], F = 0 where the context has no room."""
        if list(nodes) == [ROOT]:
            return np.empty((0, self.config.hidden_size), np.float32)
        self._outputs = {}
        n, room = len(nodes), self.context.n_ctx - self.n_rows - (len(self._sequence) - 1)
        if n > self.top_k:
            raise ShapeError(f"{self.path}: {n} nodes of one depth, loaded for {self.top_k}")
        if n > room:
            return np.empty((0, self.config.hidden_size), np.float32)
        self._branch(found, nodes)
        for i, node in enumerate(nodes):
            self._level.tokens[i] = found[node].token
            self._level.states[i] = self._fed[found[node].parent][0]
        depth = found[nodes[0]].depth
        struct = self._level.prepare([self.n_rows - 1 + depth] * n, [[self._sequence[node]] for node in nodes])
        handle = self.context.handle
        self._logits = self._state = 0
        api.forget_errors()
        began = perf_counter()
        code = api.decode(handle, struct)
        self.seconds += perf_counter() - began
        if code:
            raise self.context.failure(code, f"run {n} nodes of a draft tree at row {self.n_rows}")
        logits = self._views.at(self.context.logits(-n), n, self.config.vocab_size)
        h: Array = self._views.at(api.get_nextn(handle), n, self.config.hidden_size).copy()
        handed_on = self._handed_on(h)
        for i, node in enumerate(nodes):
            self._outputs[node], self._fed[node] = logits[i], handed_on[i : i + 1]
        return h

    def _branch(self, found: Sequence[Found], nodes: Sequence[int]) -> None:
        """A sequence for each node, equal to its parent's: the first child takes it over, the others get copies."""
        parents = {found[node].parent for node in nodes}
        free = [s for s in range(self.top_k) if s not in {self._sequence[parent] for parent in parents}]
        taken: set[int] = set()
        for node in nodes:
            source = self._sequence[found[node].parent]
            if source in taken:
                self._sequence[node] = free.pop()
                branch(self.context.memory, source, self._sequence[node])
            else:
                taken.add(source)
                self._sequence[node] = source
