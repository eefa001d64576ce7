"""What is asked of a target that answers many prompts at once, and what it answers: in llama.cpp (`parallel.py`) or torch (`train/answering.py`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.ops import Ids

Coins = npt.NDArray[np.float64]


class Request(NamedTuple):
    """A prompt [>= 1] and what decides its answer: coins [at least the longest answer] in [0, 1), or None for argmax."""

    key: int
    prompt: Ids
    coins: Coins | None


class Answer(NamedTuple):
    """The tokens after a request's prompt; the last one is a stop token, or the answer was cut at `max_new`."""

    request: Request
    tokens: list[int]
