"""Rows of whole documents: no answer is trained without its question.

Cutting the packed stream at fixed steps (`data.Batches`) cuts most conversations apart when rows are as short as the
conversations: the second half of an answer is then learned without the question.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from refspec.errors import UsageError
from refspec.train.data import Batches


class WholeDocuments:
    """Batches of whole documents, packed into rows of `length` + 1 tokens; a longer document is cut into such rows.

    The same interface as `data.Batches`: any step is reachable directly, and an epoch's packing is a function of the
    seed and the epoch. Rows are filled up with BOS, which is never a label and is not the assistant's.

    With `marks` (bool [T]) these take the mask's place, and pieces none of whose labels is marked are left out.
    """

    def __init__(
        self, folder: Path, split: str, *, length: int, rows: int, seed: int, bos: int, marks: np.ndarray | None = None
    ):
        self.tokens = np.load(folder / f"{split}.tokens.npy", mmap_mode="r")
        self.mask = np.load(folder / f"{split}.mask.npy", mmap_mode="r") if marks is None else marks
        self.length, self.rows, self.seed, self.bos = length, rows, seed, bos
        starts = np.flatnonzero(np.asarray(self.tokens) == bos)
        ends = np.append(starts[1:], self.tokens.size)
        # (first token, one past the last) of every piece; a cut piece begins with the last token of the one before it,
        # so that every token but a document's first is some row's label.
        self.pieces = [
            (at, min(at + length + 1, end))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for at in range(start, max(start + 1, end - 1), length)
        ]
        if marks is not None:
            self.pieces = [(start, end) for start, end in self.pieces if marks[start + 1 : end].any()]
        self._epoch, self._packed = -1, list[list[int]]()
        self._pack(0)
        self.per_epoch = len(self._packed) // rows
        if self.per_epoch < 1:
            raise UsageError(
                f"{folder}: {split} fills {len(self._packed)} rows of {length} tokens, fewer than {rows}; prepare"
                " more data"
            )

    def _pack(self, epoch: int) -> None:
        """Best fit in a seeded order: each piece goes to the fullest row that still has room for it."""
        rng = np.random.default_rng([self.seed, epoch])
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, row), ascending
        for piece in rng.permutation(len(self.pieces)).tolist():
            start, end = self.pieces[piece]
            at = bisect_left(room, (end - start, -1))
            if at == len(room):
                left, row = self.length + 1, len(rows)
                rows.append([])
            else:
                left, row = room.pop(at)
            rows[row].append(piece)
            if left > end - start:
                insort(room, (left - (end - start), row))
        self._packed = [rows[i] for i in rng.permutation(len(rows)).tolist()]
        self._epoch = epoch

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows, length+1] tokens and uint8 [rows, length+1] mask of batch `step`."""
        epoch, index = divmod(step, self.per_epoch)
        # Epochs differ by a row or two in how well they pack; the last batch of one may begin again at its first rows.
        if epoch != self._epoch:
            self._pack(epoch)
        tokens = np.full((self.rows, self.length + 1), self.bos, np.int64)
        mask = np.zeros((self.rows, self.length + 1), np.uint8)
        for row in range(self.rows):
            filled = 0
            for piece in self._packed[(index * self.rows + row) % len(self._packed)]:
                start, end = self.pieces[piece]
                tokens[row, filled : filled + end - start] = self.tokens[start:end]
                mask[row, filled : filled + end - start] = self.mask[start:end]
                filled += end - start
        return tokens, mask


class Ahead:
    """Batches made by a thread while an accelerator works on the previous one: the same batches, step by step."""

    def __init__(self, source: Batches | WholeDocuments | InTurn):
        self.source = source
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[tuple[np.ndarray, np.ndarray]]] | None = None

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of batch `step`; begins to make the one after it."""
        waiting = self._next
        if waiting is None or waiting[0] != step:
            waiting = step, self._pool.submit(self.source.__getitem__, step)
        batch = waiting[1].result()
        self._next = step + 1, self._pool.submit(self.source.__getitem__, step + 1)
        return batch


class InTurn:
    """Batches of several sources in turn: step s is batch s // n of source s % n."""

    def __init__(self, sources: Sequence[Batches | WholeDocuments]):
        self.sources = list(sources)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of batch `step`; rows of different sources may differ in length."""
        turn, source = divmod(step, len(self.sources))
        return self.sources[source][turn]
