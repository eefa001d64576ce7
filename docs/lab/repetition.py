"""`python docs/lab repetition`: which tokens of an answer repeat it, and how much of a folder's answers does.

An answer is a run of tokens whose mask is 1 (`train/data.py`); what its question says, or another answer, is no repeat.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from refspec.cli.command import Command
from refspec.errors import UsageError

# A repeat is a stretch of this many tokens. Welleck et al. 2019 take 4, of a large vocabulary. With 4096 entries and a
# token for each digit, four tokens come again in much of what people write (numbers restated, "the answer is", lines of
# code), twelve seldom. A loop repeats any length it has the room for, so 12 spares what people write and misses only
# loops that are cut off in their second round.
SPAN = 12


def _grams(tokens: np.ndarray, n: int) -> np.ndarray:
    """int64 [T-n+1]: equal numbers where, and only where, the `n` tokens that begin there are equal. Needs T >= n."""
    ids, have = np.unique(tokens, return_inverse=True)[1].astype(np.int64), 1
    while have < n:
        # Two overlapping or touching grams of `have` tokens settle one of up to 2 * have: log2(n) sorts, and no hash to
        # collide.
        step = min(have, n - have)
        first, second = ids[: ids.size - step], ids[step:]
        ids = np.unique(first * (ids.max() + 1) + second, return_inverse=True)[1].astype(np.int64)
        have += step
    return ids


def answers(mask: np.ndarray) -> np.ndarray:
    """int64 [A, 2]: first token and one past the last of every run of ones in `mask` [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask) != 0, [0]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def _again(tokens: np.ndarray, mask: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first token of every n-gram inside one answer, its answer, whether it began earlier in that answer)."""
    spans = answers(mask)
    counts = np.maximum(spans[:, 1] - spans[:, 0] - n + 1, 0)
    owner = np.repeat(np.arange(len(spans)), counts)
    at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + spans[owner, 0]
    again = np.ones(at.size, bool)
    if at.size:
        grams = _grams(np.asarray(tokens), n)[at]
        again[np.unique(owner * (grams.max() + 1) + grams, return_index=True)[1]] = False
    return at, owner, again


def repeats(tokens: np.ndarray, mask: np.ndarray, n: int = SPAN) -> np.ndarray:
    """bool [T]: the tokens of every stretch of `n` that came, token for token, earlier in the same answer.

    `tokens` int [T] and `mask` [T] as packed by `data.prepare`. All tokens of the later stretch are marked, not only
    the one that completes it: the first are the decision to repeat. The two may overlap, so a loop of period p is
    marked from its second round on, once the copy is `n` tokens long. The repeating n-grams of Welleck et al. 2019,
    with this `n` for their 4.
    """
    at, _, again = _again(tokens, mask, n)
    begins = np.zeros(len(mask) + 1, np.int64)
    begins[at[again]] = 1
    begun = np.cumsum(begins)[:-1]  # marked: a repeated stretch began at the token or at one of the n - 1 before it
    return begun > np.concatenate([np.zeros(min(n, begun.size), np.int64), begun[:-n]])


class Repetition(NamedTuple):
    """How much the answers of a folder repeat themselves. Shares are of 1; NaN where there is nothing to count."""

    answers: int
    mean_tokens: float  # end of turn included
    ended: float  # answers whose last token ends the turn, the others were cut off
    seq_rep_4: float  # mean over answers (of 4 tokens or more) of 1 - distinct / all 4-grams, Welleck et al. 2019
    looping: float  # answers that repeat a stretch of SPAN tokens
    repeated: float  # assistant tokens inside such a stretch


def measure(tokens: np.ndarray, mask: np.ndarray, turn_end: int) -> Repetition:
    """The figures of packed answers (`tokens` and `mask` [T]); `turn_end` is the id that ends a turn."""
    tokens, spans = np.asarray(tokens), answers(mask)
    if not len(spans):
        return Repetition(0, *[float("nan")] * 5)
    _, owner, again = _again(tokens, mask, 4)
    grams = np.bincount(owner, minlength=len(spans))
    share = np.bincount(owner, again, minlength=len(spans))[grams > 0] / grams[grams > 0]
    marked = repeats(tokens, mask)
    upto = np.concatenate([[0], np.cumsum(marked)])
    lengths = spans[:, 1] - spans[:, 0]
    return Repetition(
        answers=len(spans),
        mean_tokens=float(lengths.mean()),
        ended=float((tokens[spans[:, 1] - 1] == turn_end).mean()),
        seq_rep_4=float(share.mean()) if share.size else float("nan"),
        looping=float((upto[spans[:, 1]] > upto[spans[:, 0]]).mean()),
        repeated=float(marked.sum() / lengths.sum()),
    )


def read_packed(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of a folder as `data.prepare` writes it; UsageError where they do not belong together."""
    found = []
    for part in ("tokens", "mask"):
        file = folder / f"{split}.{part}.npy"
        try:
            found.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except FileNotFoundError:
            raise UsageError(f"{file}: no such file; name a folder in the format of `refspec train data`") from None
        except (ValueError, OSError, EOFError) as error:
            why = " ".join(str(error).split())[:100]
            raise UsageError(f"{file}: not a NumPy array ({why}); make it again") from None
    if found[0].ndim != 1 or found[0].shape != found[1].shape:
        raise UsageError(f"{folder}: {split} has tokens {found[0].shape} and mask {found[1].shape}; make it again")
    return found[0], found[1]


@click.command("repetition", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--split", type=click.Choice(["train", "val"]), default="train", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One object on stdout.")
def command(folder: Path, split: str, as_json: bool) -> None:
    """Measure how much the answers in DIR repeat themselves, a folder like that of `train data`.

    \b
        answers      how many
        mean_tokens  their mean length, end of turn included
        ended        share that end by themselves, the others were cut off
        seq_rep_4    mean over answers of 1 - distinct / all 4-grams
        looping      share that repeat a stretch of 12 tokens word for word
        repeated     share of all their tokens inside such a stretch
    """
    from refspec.train.tokenizer import TURN_END, load_tokenizer  # the `train` extra; `measure` does without

    turn_end = load_tokenizer(folder / "tokenizer.json").token_to_id(TURN_END)
    found = measure(*read_packed(folder, split), turn_end)
    if not found.answers:
        raise UsageError(f"{folder}: {split} holds no answer (no token whose mask is 1)")
    figures = {k: round(v, 4) for k, v in found._asdict().items() if v == v}
    click.echo(json.dumps(figures) if as_json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
