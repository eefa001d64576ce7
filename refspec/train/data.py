"""Conversations to token arrays: render with the chat template, tokenize, pack, hold some out.

A prepared data set is a folder: `tokenizer.json`, `{train,val}.tokens.npy` (uint16, packed documents one after the
other) and `{train,val}.mask.npy` (uint8, 1 where the token is the assistant's and so part of the drafter's loss).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refspec.errors import UsageError
from refspec.train.overlap import runs_of, strings_in
from refspec.train.overlap import without as cleaned
from refspec.train.tokenizer import BOS, TURN_END, TURN_START, load_tokenizer, train_tokenizer

# How often a source is seen, by name or by its beginning (`py_*`); 1 for the others, and 0.3 keeps three records of
# ten. `broad` is for learning the language: modern chat and worked maths are rare in the corpus and repeated, books are
# plentiful. `chat` is for the last part of a training: what people ask, and less of what only teaches words. `tasks` is
# like it, with more Python and fewer repetitions of the rarest sources, for a larger model. `epochs` repeats less, for
# a training that sees all of it several times.
MIXES: dict[str, dict[str, float]] = {
    "broad": {
        "oasst_octopack": 4, "oasst_trees": 4, "small_instruct": 4, "taskmaster4": 2, "gsm8k_train": 3,
        "mbpp_train": 4, "mawps": 2, "chatterbot_corpus": 2,
    },
    "chat": {
        "oasst_octopack": 12, "oasst_trees": 12, "small_instruct": 12, "taskmaster4": 2, "gsm8k_train": 4,
        "mbpp_train": 16, "mawps": 4, "chatterbot_corpus": 4, "african_storybook": 5, "18f_blog": 1.5,
        "flan_cot_strategyqa": 3, "flan_cot_*": 1.5, "t0_common_gen": 3, "py_*": 0.8, "classic_books": 0.35,
        "peps": 0.25, "rust_book": 0.5, "tldr": 0.5, "synth_retrieval": 0.4,
    },
    "tasks": {
        "oasst_octopack": 8, "oasst_trees": 8, "small_instruct": 8, "gsm8k_train": 3, "mbpp_train": 12, "mawps": 3,
        "chatterbot_corpus": 3, "african_storybook": 4, "18f_blog": 1.5, "flan_cot_strategyqa": 3, "flan_cot_*": 1.5,
        "t0_common_gen": 2, "py_*": 2, "classic_books": 0.5, "peps": 0.2, "rust_book": 0.3, "tldr": 0.7,
        "synth_retrieval": 0.4,
    },
    "epochs": {
        "oasst_octopack": 4, "oasst_trees": 4, "small_instruct": 4, "gsm8k_train": 3, "mbpp_train": 6, "mawps": 3,
        "chatterbot_corpus": 2, "african_storybook": 3, "18f_blog": 1.5, "flan_cot_strategyqa": 2, "flan_cot_*": 1.5,
        "t0_common_gen": 1.5, "py_*": 2, "classic_books": 0.4, "peps": 0.2, "rust_book": 0.5, "tldr": 0.7,
        "synth_retrieval": 0.3,
    },
}  # fmt: skip


TEXT = "plain text"  # the source of it, for `weight_of`


def weight_of(source: str, weights: dict[str, float]) -> float:
    """How often a record of `source` is seen: its own entry, else that of the longest `beginning*`, else 1."""
    if source in weights:
        return weights[source]
    starts = [name for name in weights if name.endswith("*") and source.startswith(name[:-1])]
    return weights[max(starts, key=len)] if starts else 1.0


def read_conversations(path: Path) -> Iterator[dict]:
    """Yield {messages, source, domain} from a .jsonl or .jsonl.xz file."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def render_pieces(messages: list[dict]) -> Iterator[tuple[str, bool]]:
    """The chat template as (text, is the assistant's) pieces; joined they are what the GGUF template renders."""
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


def encode_text(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Token ids and loss mask of plain text: a document without an answer."""
    ids = tokenizer.encode(BOS + text, add_special_tokens=False).ids
    return ids, [0] * len(ids)


def prepare(
    corpus: Path,
    out: Path,
    *,
    vocab_size: int,
    seed: int,
    val_every: int = 200,
    weights: dict[str, float] | None = None,
    tokenizer_file: Path | None = None,
    texts: Path | None = None,
    without: Path | None = None,
) -> dict:
    """Train the tokenizer (or take `tokenizer_file`), then write packed train and validation arrays.

    `texts` is a file of {text} objects, plain text: each is one more document of the training part, none of it the
    assistant's; paragraphs that share 13 words in a row with a string in the JSONL file `without` are left out. Returns
    counts for the model card. The seed alone decides which records are held out.
    """
    weights = MIXES["broad"] if weights is None else weights
    records = list(read_conversations(corpus))
    rng = np.random.default_rng(seed)
    rng.shuffle(records)
    out.mkdir(parents=True, exist_ok=True)
    held = [r for i, r in enumerate(records) if i % val_every == 0]
    kept = [r for i, r in enumerate(records) if i % val_every]
    if tokenizer_file is not None:
        load_tokenizer(tokenizer_file)  # raises before anything is written
        (out / "tokenizer.json").write_text(tokenizer_file.read_text(encoding="utf-8"), encoding="utf-8")
    elif not (out / "tokenizer.json").exists():
        # A quarter of the corpus settles 4k merges; the rest changes nothing but the time.
        sample = (m["content"] for r in kept[::4] for m in r["messages"])
        train_tokenizer(sample, vocab_size, out / "tokenizer.json")
    tokenizer = load_tokenizer(out / "tokenizer.json")
    counts = {}
    for name, part in (("train", kept), ("val", held)):
        encoded = [(encode_conversation(tokenizer, r["messages"]), r["source"]) for r in part]
        if name == "train" and texts is not None:
            measured = read_conversations(without) if without else iter(())
            known = {run for r in measured for s in strings_in(r) for run in runs_of(s)}
            kept_texts = [cleaned(r["text"], known) for r in read_conversations(texts)]
            encoded += [(encode_text(tokenizer, text), TEXT) for text, _ in kept_texts]
            counts["left out"] = {"paragraphs": sum(n for _, n in kept_texts)}
        wanted = np.array([weight_of(s, weights) if name == "train" else 1.0 for _, s in encoded])
        repeats = np.floor(wanted).astype(int)
        if (wanted != repeats).any():  # whole numbers draw nothing
            repeats += rng.random(len(wanted)) < wanted - repeats
        order = np.repeat(np.arange(len(encoded)), repeats)
        # The order of the held-out part is the same for every mix, so that losses on it can be compared.
        (rng if name == "train" else np.random.default_rng([seed, 1])).shuffle(order)
        tokens = np.concatenate([np.asarray(encoded[i][0][0], np.uint16) for i in order])
        mask = np.concatenate([np.asarray(encoded[i][0][1], np.uint8) for i in order])
        np.save(out / f"{name}.tokens.npy", tokens)
        np.save(out / f"{name}.mask.npy", mask)
        counts[name] = {"records": len(encoded), "tokens": int(tokens.size), "assistant": int(mask.sum())}
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
                f"{folder}: {split} holds {self.tokens.size} tokens, fewer than a batch of {rows} x {length};"
                " prepare more data"
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
