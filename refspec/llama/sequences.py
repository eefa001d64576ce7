"""Batches of many sequences at once, each at its own position, with logits for the tokens that want them.

Needs a context with `streams`: every sequence has cells of its own and attends to nothing else, so neither the memory
nor the work of one sequence grows with the others. llama.cpp puts sequences with consecutive ids into one computation:
add them in order of their ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refspec.llama import api
from refspec.reference.ops import Ids


class SequenceBatch:
    """Arrays of one `llama_batch` for up to `capacity` tokens of `sequences` sequences, `added` of them filled."""

    def __init__(self, capacity: int, sequences: int) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self._ids = np.arange(sequences, dtype=np.int32)  # every token's list of sequences is one element of this
        self._pointers = np.zeros(capacity, np.uintp)
        self._counts = np.ones(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self.added = 0
        self.struct = api.Batch(
            token=self.tokens.ctypes.data, embd=None, pos=self.positions.ctypes.data, n_seq_id=self._counts.ctypes.data,
            seq_id=self._pointers.ctypes.data, logits=self._outputs.ctypes.data,
        )  # fmt: skip
        self._first = int(self._ids.ctypes.data)

    def clear(self) -> None:
        """Forget all tokens."""
        self.added = 0

    def add(self, sequence: int, tokens: Ids, first: int, last_is_output: bool) -> None:
        """Add tokens [n] of a sequence at positions first..first+n-1, the last one perhaps with logits."""
        begin, end = self.added, self.added + len(tokens)
        self.tokens[begin:end] = tokens
        self.positions[begin:end] = np.arange(first, first + len(tokens))
        self._pointers[begin:end] = self._first + 4 * sequence
        self._outputs[begin:end] = 0
        self._outputs[end - 1] = last_is_output
        self.added = end

    def prepare(self) -> Any:
        """The struct for the tokens added."""
        self.struct.n_tokens = self.added
        return self.struct


def drop(memory: int, sequence: int) -> None:
    """Free every cell of a sequence."""
    api.memory_seq_rm(memory, sequence, -1, -1)
