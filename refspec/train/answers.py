"""A GGUF's own answers to prompts, many at once in llama.cpp: the text its drafter learns to draft.

A drafter is asked to draft what its target would say, so it learns best from that. The target is the very file the
drafter will meet (any architecture, quantized as it is), the prompts go through its own chat template and tokenizer,
and answers are sampled as its makers recommend, a stated share of them greedily. Every answer is journaled: a run that
is killed goes on, and the result is the shortest beginning of the prompts' order that has enough tokens, whichever
answers ended first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.decoding import chat
from refspec.decoding.requests import Answer, Answers, Request
from refspec.errors import PromptError
from refspec.evaluate.journal import Journal
from refspec.evaluate.prompts import built_in
from refspec.reference.sampling import Sampler

Ids = npt.NDArray[np.int32]
Messages = list[chat.Message]


class Answered(NamedTuple):
    """Documents one after the other: a prompt and its answer each."""

    tokens: Ids  # [N]
    mine: npt.NDArray[np.uint8]  # [N] 1 where the target wrote the token
    starts: npt.NDArray[np.int64]  # [documents + 1] where each begins; the last one is N

    def first(self, tokens: int) -> Answered:
        """The first documents, of about so many tokens."""
        count = max(int(np.searchsorted(self.starts, tokens)), 1)
        end = int(self.starts[min(count, len(self.starts) - 1)])
        return Answered(self.tokens[:end], self.mine[:end], self.starts[: min(count, len(self.starts) - 1) + 1])


def read_prompts(path: Path | None) -> list[Messages | str]:
    """Prompts of a file, or the built-in ones: `messages`, `turns`, `prompt` or `text` in JSONL, else one a line.

    Of a conversation the part before its last answer is the prompt; a `text` is used as it is, without a chat template.
    Raises PromptError naming the first line that is none of these.
    """
    if path is None:
        return [[{"role": "user", "content": text}] for text in built_in()]
    try:
        lines = path.read_text("utf-8").split("\n")  # not splitlines: JSON texts may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: {error}; name a UTF-8 text or JSONL file") from None
    found: list[Messages | str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_prompt(json.loads(line)) if path.suffix == ".jsonl" else [{"role": "user", "content": line}])
        except (ValueError, KeyError, TypeError, IndexError):
            raise PromptError(
                f"{path}: line {number} is not an object with `messages`, `turns`, `prompt` or `text`"
            ) from None
    if not found:
        raise PromptError(f"{path}: no prompts; give one a line, or JSONL objects")
    return found


def _prompt(row: Any) -> Messages | str:
    if "text" in row:
        return str(row["text"])
    if "messages" in row:
        said: Messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in row["messages"]]
        while said and said[-1]["role"] == "assistant":
            said.pop()
        if not said:
            raise ValueError
        return said[: next((i for i, m in enumerate(said) if m["role"] == "assistant"), len(said))]
    return [{"role": "user", "content": str(row["turns"][0] if "turns" in row else row["prompt"])}]


def encode(
    prompts: Iterable[Messages | str], encoder: Callable[[Messages | str], list[int]], longest: int
) -> list[Ids]:
    """Token ids of every prompt of at most `longest` tokens, each prompt once."""
    seen: dict[bytes, Ids] = {}
    for prompt in prompts:
        ids = np.asarray(encoder(prompt), np.int32)
        if 0 < len(ids) <= longest:
            seen.setdefault(ids.tobytes(), ids)
    return list(seen.values())


class Collecting:
    """Answers to prompts in a seeded order, until `tokens` of them (prompts included) are there without a gap.

    Prompts are asked again, with other coins, when all have been asked once. Document i has a random generator of its
    own: what it says does not depend on how many are answered at once, but for llama.cpp's rounding.
    """

    def __init__(
        self, prompts: Sequence[Ids], journal: Journal, *, tokens: int, max_new: int, greedy: float, seed: int
    ) -> None:
        self.prompts, self.journal, self.wanted, self.max_new = prompts, journal, tokens, max_new
        self.greedy, self.seed = greedy, seed
        self._order: npt.NDArray[np.int64] | None = None  # of this turn through the prompts
        self.whole = self.tokens = 0  # documents answered without a gap, and their tokens
        self.held = sum(len(kept["prompt"]) + len(kept["answer"]) for kept in journal.done.values())  # of any

    def _document(self, i: int) -> tuple[Ids, npt.NDArray[np.float64] | None]:
        turn, place = divmod(i, len(self.prompts))
        if place == 0 or self._order is None:
            self._order = np.random.default_rng([self.seed, turn]).permutation(len(self.prompts))
        rng = np.random.default_rng([self.seed, i + 1])
        greedy = turn == 0 and rng.random() < self.greedy  # the same argmax twice would teach nothing
        return self.prompts[self._order[place]], None if greedy else rng.random(self.max_new)

    def requests(self) -> Iterator[Request]:
        """What is still to be asked, in order."""
        i = 0
        while not self.enough():
            prompt, coins = self._document(i)
            if str(i) not in self.journal.done:
                yield Request(i, prompt, coins)
            self._advance()
            i += 1

    def add(self, answer: Answer) -> None:
        """Keep one answer."""
        prompt = [int(t) for t in answer.request.prompt]
        self.journal.add(str(answer.request.key), {"prompt": prompt, "answer": answer.tokens})
        self.held += len(prompt) + len(answer.tokens)
        self._advance()

    def _advance(self) -> None:
        while not self.enough() and (kept := self.journal.done.get(str(self.whole))) is not None:
            self.tokens += len(kept["prompt"]) + len(kept["answer"])
            self.whole += 1

    def enough(self) -> bool:
        """Whether there are as many tokens as wanted."""
        return self.tokens >= self.wanted

    def answered(self) -> Answered:
        """What has been answered without a gap."""
        parts: list[Ids] = []
        mine: list[npt.NDArray[np.uint8]] = []
        starts = [0]
        for i in range(self.whole):
            kept = self.journal.done[str(i)]
            parts.append(np.array([*kept["prompt"], *kept["answer"]], np.int32))
            mine.append(np.repeat(np.array([0, 1], np.uint8), [len(kept["prompt"]), len(kept["answer"])]))
            starts.append(starts[-1] + len(parts[-1]))
        return Answered(
            np.concatenate([np.zeros(0, np.int32), *parts]),
            np.concatenate([np.zeros(0, np.uint8), *mine]),
            np.array(starts, np.int64),
        )


def collect(
    target: Answers,
    collecting: Collecting,
    *,
    sampler: Sampler,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Answered:
    """Ask until there is enough; `progress` is told the tokens there are, gaps or not, after every answer."""
    answers = target.answers(collecting.requests(), max_new=collecting.max_new, sampler=sampler, stop=target.end_tokens)
    for answer in answers:
        collecting.add(answer)
        progress(collecting.held)
        if collecting.enough():
            break
    return collecting.answered()
