"""What is asked of a target that answers many prompts at once, in llama.cpp or torch, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from refspec.decoding.drafter import Coins
from refspec.reference.ops import Ids
from refspec.reference.sampling import Sampler


class Request(NamedTuple):
    """A prompt [>= 1] and what decides its answer: coins [>= its tokens] in [0, 1), or None for argmax."""

    key: int
    prompt: Ids
    coins: Coins | None


class Answer(NamedTuple):
    """The tokens after a request's prompt; the last one is a stop token, or the answer was cut at `max_new`."""

    request: Request
    tokens: list[int]


class Answers(Protocol):
    """What answers: `llama.parallel_target.ParallelTarget`, `train.answering.TorchAnswers`."""

    @property
    def path(self) -> Path:
        """Where its weights are, for messages."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token by its text, as tokenizer.json writes it, without padding of the head."""

    def answers(
        self, requests: Iterable[Request], *, max_new: int, sampler: Sampler, stop: frozenset[int]
    ) -> Iterator[Answer]:
        """As `ParallelTarget.answers`."""

    def close(self) -> None:
        """Free what it holds."""
