"""`python docs/lab unlikelihood`: train a target that learns against its own repetitions.

Unlikelihood training of Welleck et al. 2019, sequence level. The paper generates during training; here the answers are
read from a folder in the format of `train data`, which the model wrote before this run began. So a run should be short,
or follow a new folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from lab.repetition import SPAN, read_packed, repeats
from refspec.cli.command import Command
from refspec.cli.train import folder
from refspec.cli.train import target as train_target
from refspec.errors import UsageError
from refspec.train.packing import WholeDocuments
from refspec.train.target import TOKENS_PER_STEP, LogitsOf
from refspec.train.tokenizer import BOS, load_tokenizer

LENGTH = 512  # tokens in a row of answers, which are short; a shape that whole rows have compiled already


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

    def __init__(self, source: Path, tokenizer_file: Path, *, length: int, rows: int, seed: int):
        tokenizer = load_tokenizer(source / "tokenizer.json")
        if tokenizer.get_vocab() != load_tokenizer(tokenizer_file).get_vocab():
            raise UsageError(
                f"{source / 'tokenizer.json'}: not the one of {tokenizer_file}; name text of the same model"
            )
        tokens, mask = read_packed(source, "train")
        marks = repeats(tokens, mask)
        if not marks.any():
            raise UsageError(f"{source}: no answer repeats {SPAN} tokens; nothing to learn from")
        bos = tokenizer.token_to_id(BOS)
        self.rows = WholeDocuments(source, "train", length=length, rows=rows, seed=seed, bos=bos, marks=marks)

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows, length+1] tokens and bool [rows, length] of batch `step`: which labels are repeats."""
        tokens, marks = self.rows[step]
        return tokens, marks[:, 1:] != 0


class UnlikelyRepeats:
    """Every `every`-th step, `weight` times the mean of -log(1 - p) over tokens that repeat their answer."""

    def __init__(
        self,
        source: Path,
        data: Path,
        *,
        seed: int,
        weight: float = 0.5,
        every: int = 4,
        batch_tokens: int | None = None,
    ) -> None:
        """`source` is a folder of the model's own answers, `data` the first folder it is trained on."""
        rows = (batch_tokens or TOKENS_PER_STEP) // LENGTH
        self.own = OwnRepeats(source, data / "tokenizer.json", length=LENGTH, rows=rows, seed=seed)
        self.weight, self.every = weight, every
        self.identity = {"unlikely": str(source), "unlikely_weight": weight, "unlikely_every": every}

    def __call__(self, step: int, logits_of: LogitsOf) -> Tensor | None:
        """The term of this step; None in the steps between."""
        if (step + 1) % self.every:
            return None
        tokens, marks = map(torch.from_numpy, self.own[step // self.every])
        logits = logits_of(tokens, marks)
        return self.weight * unlikelihood(logits, tokens[:, 1:][marks].to(logits.device)).mean()


@click.command("unlikelihood", cls=Command, params=list(train_target.params))
@click.option(
    "--unlikely",
    type=folder,
    required=True,
    help="Folder of the model's own answers, like that of `train data`: tokens that repeat their answer become less "
    "likely.",
)
@click.option(
    "--unlikely-weight",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Weight of that term beside the cross-entropy, in the steps that have it.",
)
@click.option(
    "--unlikely-every", type=click.IntRange(1), default=4, show_default=True, help="Every how many steps it is added."
)
def command(unlikely: Path, unlikely_weight: float, unlikely_every: int, **o: Any) -> None:
    """As `refspec train target`, and also learn against the repetitions in the model's own answers.

    \b
        refspec train regenerate --data runs/data -m runs/target -o runs/own --tokens 2000000
        python docs/lab unlikelihood --init runs/target/hf --data runs/data --unlikely runs/own -o runs/better ...
    """
    extra = UnlikelyRepeats(
        unlikely,
        o["data"][0],
        seed=o["seed"],
        weight=unlikely_weight,
        every=unlikely_every,
        batch_tokens=o["batch_tokens"],
    )
    assert train_target.callback is not None
    train_target.callback(extra_loss=extra, **o)
