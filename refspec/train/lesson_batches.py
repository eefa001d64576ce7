"""Batches of lessons: whole documents packed into rows, as the tensors that the chain loss wants.

Every batch is a function of the seed and the step, so a resumed run continues as if it had not stopped. Legend: B rows,
T tokens of a row, R chosen tokens of a row, K kept tokens, S captured boundaries, Ht width of the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refspec.errors import UsageError
from refspec.train.drafter_loss import Lesson, TopTokens, choose_rows
from refspec.train.lessons import Lessons


class LessonBatches:
    """Rows of `length` tokens, `rows` of them a batch; a document longer than a row is cut into rows of its own."""

    def __init__(
        self,
        lessons: Lessons,
        documents: Sequence[int],
        *,
        length: int,
        rows: int,
        depth: int,
        seed: int,
        share: float,
        temperature: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        """`share` of a row's tokens are learned from, the target's own first; UsageError for too few documents."""
        self.lessons, self.length, self.rows, self.depth = lessons, length, rows, depth
        self.seed, self.share, self.temperature = seed, share, temperature
        self.device = device or torch.device("cpu")
        starts = lessons.answered.starts
        self.pieces = [
            (at, min(at + length, int(starts[d + 1])))
            for d in documents
            for at in range(int(starts[d]), int(starts[d + 1]) - 1, length)
        ]
        self.vocab = torch.from_numpy(lessons.draft_ids).to(self.device)
        self._packed: list[list[int]] = []
        self._epoch = -1
        self._pack(0)
        self.per_epoch = len(self._packed) // rows
        if self.per_epoch < 1:
            raise UsageError(f"{len(self._packed)} rows of {length} tokens are fewer than one batch of {rows}")

    def _pack(self, epoch: int) -> None:
        """First fit in a seeded order, over the rows that are still open."""
        if epoch == self._epoch:
            return
        rng = np.random.default_rng([self.seed, epoch])
        rows: list[list[int]] = []
        room: list[int] = []
        first = 0
        for piece in rng.permutation(len(self.pieces)).tolist():
            size = self.pieces[piece][1] - self.pieces[piece][0]
            at = next((i for i in range(first, len(rows)) if room[i] >= size), None)
            if at is None:
                rows.append([])
                room.append(self.length)
                at = len(rows) - 1
            rows[at].append(piece)
            room[at] -= size
            while first < len(rows) and (room[first] < 16 or len(rows) - first > 64):
                first += 1
        self._packed, self._epoch = [rows[i] for i in rng.permutation(len(rows)).tolist()], epoch

    def __getitem__(self, step: int) -> Lesson:
        """Batch `step`."""
        epoch, index = divmod(step, self.per_epoch)
        self._pack(epoch)
        chosen = [self._packed[(index * self.rows + i) % len(self._packed)] for i in range(self.rows)]
        where = np.full((self.rows, self.length), -1, np.int64)  # [B, T] place in the lessons, -1 for padding
        document = np.full((self.rows, self.length), -1, np.int64)
        for row, pieces in enumerate(chosen):
            filled = 0
            for piece in pieces:
                start, end = self.pieces[piece]
                where[row, filled : filled + end - start] = np.arange(start, end)
                document[row, filled : filled + end - start] = piece
                filled += end - start
        return self._lesson(where, document)

    def _lesson(self, where: npt.NDArray[np.int64], document: npt.NDArray[np.int64]) -> Lesson:
        held, depth, device = self.lessons, self.depth, self.device
        at, there = np.maximum(where, 0), where >= 0
        tokens = np.where(there, held.answered.tokens[at], 0).astype(np.int64)
        mine = there & (held.answered.mine[at] == 1)
        gathered = np.asarray(held.arrays["states"][at.reshape(-1)])  # [B T, S, Ht]
        gathered = gathered.reshape(*at.shape, *gathered.shape[1:])
        states = [torch.from_numpy(gathered[:, :, i].astype(np.float32)).to(device) for i in range(gathered.shape[2])]
        doc, own = torch.from_numpy(document), torch.from_numpy(mine)
        seen = (doc[:, :, None] == doc[:, None, :]).tril()
        mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, float("-inf"))[:, None]
        t = self.length

        def valid_at(i: int) -> Tensor:  # token s predicts x_{s+2+i}: the target's own, in the same document
            shift = slice(2 + i, 2 + i + t)
            inside = torch.nn.functional.pad(doc, (0, depth + 2), value=-2)[:, shift] == doc
            return torch.nn.functional.pad(own, (0, depth + 1))[:, shift] & inside & (doc >= 0)

        rows = choose_rows(valid_at(0), max(int(t * self.share), 1))  # [B, R]
        p_target, best, known, valid = [], [], [], []
        for i in range(depth):
            picked = np.take_along_axis(at, (rows + 1 + i).clamp(max=t - 1).numpy(), 1)  # [B, R]
            first = torch.from_numpy(np.asarray(held.arrays["best"][picked])).long()
            p_target.append(self._p_target(picked))
            best.append(first.to(device))
            known.append(torch.isin(first, self.vocab.cpu()).to(device))
            valid.append((valid_at(i).gather(1, rows) & (first >= 0)).to(device))
        padded = torch.nn.functional.pad(torch.from_numpy(tokens), (0, depth + 1)).to(device)
        return Lesson(padded, states, mask.to(device), rows.to(device), p_target, best, known, valid)

    def _p_target(self, picked: npt.NDArray[np.int64]) -> TopTokens:
        """The target's distribution at these places, at the teacher's temperature."""
        ids = torch.from_numpy(np.asarray(self.lessons.arrays["ids"][picked]).astype(np.int64))
        logp = torch.from_numpy(np.asarray(self.lessons.arrays["logp"][picked]).astype(np.float32))
        rest = torch.log1p(-logp.exp().sum(-1).clamp(max=1 - 1e-6))  # [B, R]
        whole = torch.log_softmax(torch.cat([logp, rest[..., None]], -1) / self.temperature, -1)
        return TopTokens(
            ids.to(self.device), whole[..., :-1].exp().to(self.device), whole[..., -1].exp().to(self.device)
        )
