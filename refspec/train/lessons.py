"""Lessons: what the target shows of its own text, computed once by llama.cpp and kept on disk.

Of every token of a document: the hidden states at the captured boundaries, the target's likeliest next token, and its
distribution over the draft vocabulary as the K likeliest tokens and the mass of the rest. The target is never loaded
into torch: these are the numbers of the very file, quantization and all, that the drafter will meet. Lessons that are
there stay when there are more answers.

Legend: N tokens of all documents, S captured boundaries, Ht width of the target, V vocabulary, D draft vocabulary,
K kept tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refspec.decoding.target import Target
from refspec.errors import CheckpointError
from refspec.train.answers import Answered

KEPT = 32  # K
LARGEST = 65504.0  # of float16; a sink's state may be larger, and would be infinite
BATCH = 128  # tokens with logits in one run
EVERY = 64  # documents between two notes of how far it got


def draft_vocabulary(answered: Answered, size: int, vocab: int) -> npt.NDArray[np.int64]:
    """The `size` tokens most frequent in the answers, ascending."""
    counts = np.bincount(answered.tokens[answered.mine == 1], minlength=vocab)
    return np.sort(np.argsort(-counts, kind="stable")[:size]).astype(np.int64)


def bytes_per_token(n_states: int, width: int, kept: int = KEPT) -> int:
    """What a lesson takes on disk."""
    return 2 * n_states * width + 4 * kept + 4


class Lessons:
    """Memory-mapped arrays in a folder, one row a token.

    tokens [N] int32, what a row is of: a token of the target's, or ~token of a prompt's; states [N, S, Ht] float16;
    ids [N, K] uint16, indexes into the draft vocabulary; logp [N, K] float16, their
    log-probabilities over it; best [N] int32, the likeliest token of all, -1 where nothing was asked.
    """

    def __init__(
        self, folder: Path, answered: Answered, layers: Sequence[int], width: int, draft_ids: npt.NDArray[np.int64]
    ):
        """Open what an earlier run left, or make room.

        CheckpointError where the folder holds lessons of something else.
        """
        self.answered, self.draft_ids, self.folder = answered, draft_ids, folder
        self._ids = torch.from_numpy(draft_ids)
        n, self.kept = len(answered.tokens), min(KEPT, len(draft_ids))
        folder.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"layers": list(layers), "width": width, "kept": self.kept}
        about["draft"] = hashlib.sha256(draft_ids.tobytes()).hexdigest()[:16]
        self._note, done = folder / "lessons.json", 0
        other = CheckpointError(f"{folder}: holds lessons of another run; name another -o, or delete the folder")
        if self._note.exists():
            before = json.loads(self._note.read_text("utf-8"))
            if {k: before.get(k) for k in about} != about:
                raise other
            done = int(before["documents"])
        self._about = about
        self.done = min(done, len(answered.starts) - 1)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "tokens": ((n,), np.int32),
            "states": ((n, len(layers), width), np.float16),
            "ids": ((n, self.kept), np.uint16),
            "logp": ((n, self.kept), np.float16),
            "best": ((n,), np.int32),
        }
        self.arrays = {name: self._open(name, shape, kind) for name, (shape, kind) in shapes.items()}
        of = np.where(answered.mine == 1, answered.tokens, ~answered.tokens)
        made = int(answered.starts[self.done])
        if not np.array_equal(self.arrays["tokens"][:made], of[:made]):
            raise other
        self.arrays["tokens"][made:] = of[made:]

    def _open(self, name: str, shape: tuple[int, ...], kind: Any) -> np.memmap[Any, Any]:
        path = self.folder / f"{name}.bin"
        with path.open("ab") as file:
            file.truncate(max(file.tell(), int(np.prod(shape)) * np.dtype(kind).itemsize))
        return np.memmap(path, kind, "r+", shape=shape)

    def make(self, target: Target, progress: Callable[[int], None] = lambda tokens: None) -> None:
        """Run every document that is still to be run; `progress` is told the tokens of each."""
        starts = self.answered.starts
        for i in range(self.done, len(starts) - 1):
            self._document(target, int(starts[i]), int(starts[i + 1]))
            progress(int(starts[i + 1] - starts[i]))
            if (i + 1) % EVERY == 0 or i + 2 == len(starts):
                self._write_down(i + 1)

    def _write_down(self, documents: int) -> None:
        for array in self.arrays.values():
            array.flush()
        temporary = self._note.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._about | {"documents": documents}), "utf-8")
        os.replace(temporary, self._note)
        self.done = documents

    def _document(self, target: Target, start: int, end: int) -> None:
        tokens, mine = self.answered.tokens[start:end], self.answered.mine[start:end]
        target.reset()
        first = (
            max(int(np.argmax(mine)) - 1, 0) if mine.any() else len(tokens)
        )  # the row that says the first answered token
        self._rows(target, start, tokens[:first], "none")
        for at in range(first, len(tokens), BATCH):
            self._rows(target, start + at, tokens[at : at + BATCH], "all")

    def _rows(self, target: Target, at: int, tokens: Sequence[int] | npt.NDArray[np.int32], logits: str) -> None:
        n = len(tokens)
        if not n:
            return
        target.decode(tokens, logits=logits)
        width = self.arrays["states"].shape[1:]
        self.arrays["states"][at : at + n] = np.clip(target.features()[:n], -LARGEST, LARGEST).reshape(n, *width)
        if logits == "none":
            self.arrays["best"][at : at + n] = -1
            return
        rows = torch.from_numpy(np.stack([target.logits(i) for i in range(n)]))  # [T, V]
        drafted = rows[:, self._ids]  # [T, D]
        top = drafted.topk(self.kept)
        self.arrays["ids"][at : at + n] = top.indices.numpy()
        self.arrays["logp"][at : at + n] = (top.values - drafted.logsumexp(1, keepdim=True)).numpy()
        self.arrays["best"][at : at + n] = rows.argmax(1).numpy()
