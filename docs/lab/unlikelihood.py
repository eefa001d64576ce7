"""Unlikelihood of repeats in the model's own text (Welleck et al. 2019, sequence level), from a folder made beforehand.

The paper generates during training; here the texts are read from a folder in the format of `data.prepare` whose answers
the model wrote itself. They are what the model did before this run began, so a run should be short, or follow a new
folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lab.repetition import SPAN, read_packed, repeats
from torch import Tensor

from refspec.errors import UsageError
from refspec.train.packing import WholeDocuments
from refspec.train.tokenizer import BOS, load_tokenizer


def unlikelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log(1 - p(token)) per row: logits float32 [N, V], tokens int64 [N] -> [N].

    As a difference of two log-sum-exps, with and without the token: finite and with the exact gradient p at its logit
    even where p rounds to 1, so nothing needs to be clamped.
    """
    others = logits.scatter(-1, tokens[:, None], float("-inf"))
    return logits.logsumexp(-1) - others.logsumexp(-1)


class OwnRepeats:
    """Batches of the documents in which an answer repeats itself, with the repeating tokens marked.

    Rows of one fixed size, so that compiled blocks are not compiled for every batch. Raises UsageError for a folder
    that is not there, was made with another tokenizer or repeats too little to fill a batch.
    """

    def __init__(self, folder: Path, tokenizer_file: Path, *, length: int, rows: int, seed: int):
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        if tokenizer.get_vocab() != load_tokenizer(tokenizer_file).get_vocab():
            raise UsageError(
                f"{folder / 'tokenizer.json'}: not the one of {tokenizer_file}; name text of the same model"
            )
        tokens, mask = read_packed(folder, "train")
        marks = repeats(tokens, mask)
        if not marks.any():
            raise UsageError(f"{folder}: no answer repeats {SPAN} tokens; nothing to train on, leave --unlikely out")
        bos = tokenizer.token_to_id(BOS)
        self.rows = WholeDocuments(folder, "train", length=length, rows=rows, seed=seed, bos=bos, marks=marks)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows, length+1] tokens and bool [rows, length] of batch `step`: which labels are repeats."""
        tokens, marks = self.rows[step]
        return tokens, marks[:, 1:] != 0
