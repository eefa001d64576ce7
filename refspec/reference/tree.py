"""A tree of draft tokens: several continuations of the output that one run of the target judges together.

A data structure and nothing else: judging is `tree_verify.py`, growing `tree_grow.py`. Nodes are draft tokens; the
root is not a node but the pending token, so a chain of k draft tokens is a tree of k nodes. In the batch that the
target runs, and in the logits it returns, row 0 is the pending token and row i + 1 is node i.

Legend: N nodes, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.errors import ShapeError, UsageError
from refspec.reference.ops import Array

ROOT = -1  # the parent of the nodes that follow the pending token
NODES_LIMIT = 64  # more than pays anywhere; llama.cpp allows 256 sequences, and each leaf takes one

Distribution = npt.NDArray[np.float64]


class Tree(NamedTuple):
    """N draft tokens and what each one follows; a parent precedes its children, siblings are in order of judging."""

    tokens: npt.NDArray[np.int32]  # [N] target ids
    parents: npt.NDArray[np.int32]  # [N] index of the node it follows, ROOT (-1) where that is the pending token
    confidence: Array  # [N] draft probability after its parent, at the shape's temperature; NaN where not computed
    distributions: Sequence[Distribution | None] | None = None  # [N+1] of [V], by parent's row; None = deterministic

    def children(self, node: int) -> list[int]:
        """The nodes that follow `node`, or the pending token for ROOT, in order."""
        return np.flatnonzero(self.parents == node).tolist()

    def depths(self) -> npt.NDArray[np.int32]:
        """[N] number of tokens from the pending token to each node, 1 for its children."""
        depth = np.zeros(len(self.parents) + 1, np.int32)  # one more, for the root at index -1
        for i, parent in enumerate(self.parents.tolist()):
            depth[i] = depth[parent] + 1
        return depth[:-1]

    @property
    def height(self) -> int:
        """Tokens on the longest path, 0 for an empty tree."""
        return int(self.depths().max(initial=0))

    @property
    def width(self) -> int:
        """The largest number of siblings, 0 for an empty tree."""
        return int(np.bincount(self.parents + 1).max()) if len(self.parents) else 0

    def path(self, node: int) -> list[int]:
        """The nodes from the first after the pending token to `node`; empty for ROOT."""
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = int(self.parents[node])
        return nodes[::-1]

    def leaves(self) -> list[int]:
        """The nodes that nothing follows."""
        inner = set(self.parents.tolist())
        return [i for i in range(len(self.parents)) if i not in inner]

    def keep(self, wanted: Sequence[int]) -> Tree:
        """The subtree of the nodes `wanted`, ascending; ShapeError when a parent would be missing."""
        index = {ROOT: ROOT} | {node: i for i, node in enumerate(wanted)}
        if list(wanted) != sorted(index.keys() - {ROOT}) or any(int(self.parents[i]) not in index for i in wanted):
            raise ShapeError(f"tree: nodes {list(wanted)} are not a subtree in ascending order")
        parents = np.array([index[int(self.parents[i])] for i in wanted], np.int32)
        q = self.distributions
        distributions = None if q is None else [q[0], *(q[i + 1] for i in wanted)]
        return Tree(self.tokens[list(wanted)], parents, self.confidence[list(wanted)], distributions)


def empty_tree() -> Tree:
    """No draft at all."""
    return Tree(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def chain(
    tokens: Sequence[int] | npt.NDArray[np.integer],
    q_draft: Sequence[Distribution] | npt.NDArray[np.float64] | None = None,
) -> Tree:
    """The tree of one path: tokens [k] and, for sampled ones, their distributions q_draft [k, V]."""
    k = len(tokens)
    distributions = None if q_draft is None else [*(np.asarray(q) for q in q_draft), None]
    parents = np.arange(-1, k - 1, dtype=np.int32)
    return Tree(np.asarray(tokens, np.int32), parents, np.full(k, np.nan, np.float32), distributions)


def check_tree(tree: Tree, vocabulary: int) -> None:
    """Raise ShapeError unless parents precede their children and every token is an id of the vocabulary."""
    tokens, parents = np.asarray(tree.tokens), np.asarray(tree.parents)
    whole = not tokens.size or not {tokens.dtype.kind, parents.dtype.kind} - set("iu")
    if tokens.ndim != 1 or parents.shape != tokens.shape or not whole:
        raise ShapeError(f"tree: tokens {tokens.shape}, parents {parents.shape} are not integers, one for each node")
    for i, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
        if not ROOT <= parent < i:
            raise ShapeError(f"tree: node {i} has parent {parent}; a parent is {ROOT} or a node before its children")
        if not 0 <= token < vocabulary:
            raise ShapeError(f"tree: token {token} of node {i} is outside the vocabulary of {vocabulary}")
    if tree.distributions is not None and len(tree.distributions) != len(tokens) + 1:
        found = f"{len(tree.distributions)} distributions for {len(tokens)} nodes"
        raise ShapeError(f"tree: {found}; need one per row, None for a row without children")


class TreeShape(NamedTuple):
    """How large a tree may grow."""

    nodes: int  # N, draft tokens judged by one run of the target
    top_k: int = 4  # children per node, and nodes expanded per level
    depth: int = 8  # tokens on the longest path
    temperature: float = 1.0  # > 0, of the draft probabilities that value nodes; EAGLE-2 has 1; a sampler has its own
    floor: float = 0.0  # nodes of a smaller value are not kept, nor expanded

    def __str__(self) -> str:
        return f"{self.nodes}:{self.top_k}:{self.depth}"

    @classmethod
    def parse(cls, text: str) -> TreeShape:
        """From "N", "N:topk" or "N:topk:depth"; raises UsageError."""
        parts = text.split(":")
        if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(f"tree: {text!r} is not N, N:topk or N:topk:depth, three counts; for example 12:4")
        return cls(*(int(part[:9]) for part in parts)).checked()

    def checked(self) -> TreeShape:
        """Itself; UsageError for a count outside its range."""
        for name, high in (("nodes", NODES_LIMIT), ("top_k", 64), ("depth", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= high:
                raise UsageError(f"tree: {name} = {value!r} is outside 1..{high}")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"tree: temperature = {self.temperature} is not a positive number")
        return self
