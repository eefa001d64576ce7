"""Conversations to token arrays: render with the chat template, tokenize, pack into rows, hold some out.

A prepared data set is a folder: `tokenizer.json`, `{train,val}.tokens.npy` (uint16, packed documents one after the
other) and `{train,val}.mask.npy` (uint8, 1 where the token is the assistant's and so part of the drafter's loss).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UsageError
from .tokenizer import BOS, TURN_END, TURN_START, load_tokenizer, train_tokenizer

# Modern chat and worked maths are thin in the corpus and worth seeing several times; books are plentiful.
DEFAULT_WEIGHTS = {
    "oasst_octopack": 4, "oasst_trees": 4, "small_instruct": 4, "taskmaster4": 2, "gsm8k_train": 3,
    "mbpp_train": 4, "mawps": 2, "chatterbot_corpus": 2,
}  # fmt: skip


def read_conversations(path: Path) -> Iterator[dict]:
    """Yield {messages, source, domain} from a .jsonl or .jsonl.xz file."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def render_pieces(messages: list[dict]) -> Iterator[tuple[str, bool]]:
    """The chat template as (text, is the assistant's) pieces; joined they are exactly what the GGUF template renders."""
    yield BOS, False
    for message in messages:
        mine = message["role"] == "assistant"
        yield f"{TURN_START}{message['role']}\n", False
        yield f"{message['content']}{TURN_END}", mine
        yield "\n", False


def encode_conversation(tokenizer, messages: list[dict]) -> tuple[list[int], list[int]]:
    """Token ids and loss mask, both of length T."""
    ids, mask = [], []
    for text, mine in render_pieces(messages):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        mask += [int(mine)] * len(piece)
    return ids, mask


def prepare(
    corpus: Path,
    out: Path,
    *,
    vocab_size: int,
    seed: int,
    val_every: int = 200,
    weights: dict[str, int] | None = None,
) -> dict:
    """Train the tokenizer, then write packed train and validation arrays. Returns counts for the model card."""  # fmt: skip
    weights = DEFAULT_WEIGHTS if weights is None else weights
    records = list(read_conversations(corpus))
    rng = np.random.default_rng(seed)
    rng.shuffle(records)
    out.mkdir(parents=True, exist_ok=True)
    held = [r for i, r in enumerate(records) if i % val_every == 0]
    kept = [r for i, r in enumerate(records) if i % val_every]
    if not (out / "tokenizer.json").exists():
        # A quarter of the corpus settles 4k merges; the rest changes nothing but the time.
        sample = (m["content"] for r in kept[::4] for m in r["messages"])
        train_tokenizer(sample, vocab_size, out / "tokenizer.json")
    tokenizer = load_tokenizer(out / "tokenizer.json")
    counts = {}
    for name, part in (("train", kept), ("val", held)):
        encoded = [(encode_conversation(tokenizer, r["messages"]), r["source"]) for r in part]
        repeats = [weights.get(s, 1) if name == "train" else 1 for _, s in encoded]
        order = np.repeat(np.arange(len(encoded)), repeats)
        rng.shuffle(order)
        tokens = np.concatenate([np.asarray(encoded[i][0][0], np.uint16) for i in order])
        mask = np.concatenate([np.asarray(encoded[i][0][1], np.uint8) for i in order])
        np.save(out / f"{name}.tokens.npy", tokens)
        np.save(out / f"{name}.mask.npy", mask)
        counts[name] = {"records": len(part), "tokens": int(tokens.size), "assistant": int(mask.sum())}
    (out / "counts.json").write_text(json.dumps(counts, indent=1))
    return counts


class Batches:
    """Rows of `length` tokens in a seeded order; epoch after epoch, any step reachable directly (so resume is exact).

    A row is cut from the packed stream at a random offset per epoch; documents start with BOS inside rows.
    """

    def __init__(self, folder: Path, split: str, *, length: int, rows: int, seed: int):
        self.tokens = np.load(folder / f"{split}.tokens.npy", mmap_mode="r")
        self.mask = np.load(folder / f"{split}.mask.npy", mmap_mode="r")
        self.length, self.rows, self.seed = length, rows, seed
        self.per_epoch = (self.tokens.size - 2 * length) // length // rows
        if self.per_epoch < 1:
            raise UsageError(
                f"{folder}: {split} holds {self.tokens.size} tokens, fewer than a batch of {rows} x {length}"
            )
        self._epoch, self._order, self._offset = -1, np.empty(0, np.int64), 0

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [rows, length+1] tokens and uint8 [rows, length+1] mask of batch `step`."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = rng.permutation(self.per_epoch * self.rows)
            self._offset = int(rng.integers(self.length))
            self._epoch = epoch
        starts = self._order[index * self.rows : (index + 1) * self.rows] * self.length + self._offset
        at = starts[:, None] + np.arange(self.length + 1)
        return self.tokens[at].astype(np.int64), self.mask[at]
