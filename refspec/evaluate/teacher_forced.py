"""A drafter on the target's recorded outputs (teacher forcing): the target runs once for all readings of the drafter.

The target's hidden states at every boundary of interest and its distributions are kept. Then a drafter, under any
reading of its switches and layers, is judged at the same positions: by its cross-entropy under the target's
distribution, which training made small (on output sampled at temperature 1, like the training data), and by how many of
its drafts are the greedy output. All readings see the same positions, so that small differences can be told from chance
(`gain`). Legend: N tokens of prompt and output, Ht target width, D draft vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refspec.llama.target import LlamaTarget
from refspec.reference.eagle3 import Eagle3Drafter


class Recording(NamedTuple):
    """One sequence: tokens [N], of which those from `start` on are the target's, with its states and distributions."""

    tokens: np.ndarray
    start: int
    states: np.ndarray  # [N, boundaries, Ht]
    log_p: np.ndarray  # [N, D] over the draft vocabulary, float32


class Gain(NamedTuple):
    """Two readings at the same positions: both means, and the standard error of the difference."""

    as_is: float
    other: float
    error: float

    @property
    def sigmas(self) -> float:
        """The gain in standard errors, 0 where nothing differs."""
        difference = self.other - self.as_is
        return difference / self.error if self.error else (math.copysign(math.inf, difference) if difference else 0.0)


def record(
    target: LlamaTarget, tokens: Sequence[int], start: int, draft_ids: np.ndarray, chunk: int = 128
) -> Recording:
    """Run `tokens` through a target that captures every boundary of interest; log p is that of draft_ids [D]."""
    target.reset()
    ids, states, log_p = np.asarray(tokens, np.int32), [], []
    for first in range(0, len(ids), chunk):
        n = target.decode(ids[first : first + chunk], logits="all")
        logits = np.array([target.logits(i)[draft_ids] for i in range(n)], np.float64)  # [T, D]
        log_p.append(log_softmax(logits).astype(np.float32))
        states.append(np.array(target.features()).reshape(n, len(target.capture_layers), -1))
    return Recording(ids, start, np.concatenate(states), np.concatenate(log_p))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax of every row [T, D]."""
    x = x - x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def _features(r: Recording, columns: Sequence[int], late: int) -> np.ndarray:
    """[N, n_states*Ht]; row P has the states of row P - late: other than 0 is a misalignment to try."""
    return np.roll(r.states[:, list(columns)].reshape(len(r.tokens), -1), late, axis=0)


def scores(
    drafter: Eagle3Drafter, recordings: Sequence[Recording], columns: Sequence[int], late: int = 0
) -> np.ndarray:
    """Minus the cross-entropy of the first drafted token under the target's distribution, at every output token.

    `columns` chooses the boundaries among those recorded. Row P predicts what the target's row P + 1 predicts.
    """
    out = []
    for r in recordings:
        drafter.reset()
        features = _features(r, columns, late)[:-2]
        rows = drafter.forward_rows(r.tokens[1:-1], features, is_target_feature=True)
        first = max(r.start - 2, 0)
        drafted = log_softmax(rows.logits[first:].astype(np.float64))
        out.append((np.exp(r.log_p[1 + first : -1].astype(np.float64)) * drafted).sum(axis=1))
    return np.concatenate(out)


def accepted(
    drafter: Eagle3Drafter, recordings: Sequence[Recording], columns: Sequence[int], depth: int, most: int,
    late: int = 0,
) -> np.ndarray:  # fmt: skip
    """How many of `depth` drafted tokens are the (greedy) output, at about `most` places of it, [n]."""
    every = [
        (i, row) for i, r in enumerate(recordings) for row in range(max(r.start - 2, 0), len(r.tokens) - 1 - depth)
    ]
    out, done, now = [], 0, -1
    for i, row in every[:: max(-(-len(every) // max(most, 1)), 1)]:
        r = recordings[i]
        if i != now:
            drafter.reset()
            features, done, now = _features(r, columns, late), 0, i
        drafter.extend(r.tokens[done + 1 : row + 2], features[done : row + 1])
        done = row + 1
        draft = drafter.draft(depth).tokens
        same = np.equal(draft, r.tokens[row + 2 : row + 2 + len(draft)])
        out.append(len(draft) if same.all() else int(np.argmin(same)))
    return np.array(out)


def gain(as_is: np.ndarray, other: np.ndarray) -> Gain:
    """Paired comparison of two readings at the same positions [n]."""
    difference = other.astype(float) - as_is
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else math.inf
    return Gain(float(as_is.mean()), float(other.mean()), error)
