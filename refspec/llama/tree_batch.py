"""Trees in llama.cpp: one batch whose tokens belong to several sequences, one for every path from the prefix to a leaf.

The cache holds one cell per token, however many sequences share it (`kv_unified`), and a token attends to cells of its
own sequences at lower positions: with a sequence per leaf, these are its ancestors. Between two trees everything
belongs to sequence 0 alone.

llama.cpp takes such a batch only if every sequence in it ends at the same position before, if parents come first, and
if a token's sequences include those of its descendants; `share` and `leaf_sequences` see to that. Legend: T tokens
(0 the pending one, i + 1 node i), L leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refspec.llama import api

MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ; above it llama.cpp makes no context


def leaf_sequences(parents: Sequence[int]) -> list[list[int]]:
    """[N+1] the sequences of every token: a leaf has one of its own, numbered in order, any other those below it."""
    rows: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    inner = set(parents)
    leaves = [i for i in range(len(parents)) if i not in inner]
    for sequence, leaf in enumerate(leaves):
        node = leaf
        while node != -1:
            rows[node + 1].append(sequence)
            node = parents[node]
    rows[0] = list(range(max(len(leaves), 1)))
    return rows


class TreeBatch:
    """Arrays of one `llama_batch` for up to `capacity` tokens, each in any number of sequences, all with logits."""

    def __init__(self, capacity: int, *, width: int = 0) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.states = np.zeros((capacity, width), np.float32)
        self._counts = np.zeros(capacity, np.int32)
        self._pointers = np.zeros(capacity, np.uintp)
        self._outputs = np.ones(capacity, np.int8)
        self._ids = np.zeros(0, np.int32)  # kept alive while llama.cpp reads
        self.struct = api.Batch(
            token=self.tokens.ctypes.data, embd=self.states.ctypes.data if width else None,
            pos=self.positions.ctypes.data, n_seq_id=self._counts.ctypes.data, seq_id=self._pointers.ctypes.data,
            logits=self._outputs.ctypes.data,
        )  # fmt: skip

    def prepare(self, positions: Sequence[int], sequences: Sequence[Sequence[int]]) -> Any:
        """The struct for tokens at positions [T] in sequences [T][at least 1]; fill `tokens` and `states` first."""
        n = len(positions)
        counts = [len(ids) for ids in sequences]
        self.positions[:n], self._counts[:n] = positions, counts
        self._ids = np.array([i for ids in sequences for i in ids], np.int32)
        offsets = np.cumsum([0, *counts[:-1]])
        self._pointers[:n] = self._ids.ctypes.data + 4 * offsets
        self.struct.n_tokens = n
        return self.struct


def share(memory: int, sequences: int) -> None:
    """Give sequences 1..sequences-1 all cells of sequence 0."""
    for s in range(1, sequences):
        api.memory_seq_cp(memory, 0, s, -1, -1)


def branch(memory: int, source: int, sequence: int) -> None:
    """Make `sequence` a copy of `source`, whatever it held."""
    api.memory_seq_rm(memory, sequence, -1, -1)
    api.memory_seq_cp(memory, source, sequence, -1, -1)


def settle(memory: int, winner: int, start: int, end: int) -> None:
    """Keep positions below `end` as sequence 0, those from `start` on as `winner` has them; free every other cell."""
    if winner:
        api.memory_seq_rm(memory, 0, start, -1)
        api.memory_seq_cp(memory, winner, 0, start, end)
    else:
        api.memory_seq_rm(memory, 0, end, -1)
    api.memory_seq_keep(memory, 0)
