"""Prompts for measurements: from a file, or two hundred built-in ones, the same on every machine.

The built-in ones are made from templates: questions, word problems, Python tasks, stories, options.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import NamedTuple

from refspec.errors import PromptError, UsageError

_TOPICS = (
    "the moon", "volcanoes", "honey bees", "the Roman army", "photosynthesis", "the stock market", "glaciers",
    "the printing press", "whales", "vaccines", "bicycles", "the French Revolution", "sleep", "rainbows", "bread",
    "the Silk Road", "magnets", "earthquakes", "chess", "libraries",
)  # fmt: skip
_QUESTIONS = ("What is interesting about {}?", "Explain {} to a child.", "Write a short paragraph about {}.")
_NAMES = ("Anna", "Omar", "Lucy", "Pedro", "Mei", "Tom", "Ruth", "Ivan", "Nora", "Sam")
_THINGS = ("apples", "pencils", "stickers", "marbles", "books", "coins", "cookies", "shells")
_TASKS = (
    "returns the sum of the even numbers in a list", "reverses the words of a sentence",
    "counts how often each letter occurs in a string", "checks whether a number is prime",
    "returns the largest item of a list without using max", "merges two sorted lists",
    "computes the n-th Fibonacci number", "removes duplicates from a list and keeps the order",
    "converts a temperature from Celsius to Fahrenheit", "flattens a list of lists",
    "checks whether a string is a palindrome", "returns the common elements of two lists",
    "reads a file and returns its number of lines", "sorts a list of tuples by their second item",
    "groups a list of words by their first letter", "computes the factorial of n",
    "finds the index of a value in a sorted list by bisection", "rotates a list by k places",
    "counts the vowels of a string", "returns the digits of an integer as a list",
)  # fmt: skip
_STORIES = ("a lost dog", "an old lighthouse", "the last train", "a letter that came too late", "two brothers at sea")
_STORY_FORMS = ("Write a story about {}.", "Suggest a title for a story about {}.", "Write a poem about {}.")
_OPENINGS = (
    "The door had not been opened for thirty years.", "Nobody in the village knew where the old man came from.",
    "It rained on the morning of the wedding.", "The captain put down his glass and pointed to the north.",
    "My grandmother kept a key in her sewing box.", "When the music stopped, all heads turned to the stairs.",
    "There was no moon that night, and the road was long.", "She had counted the money twice.",
    "The letter lay on the table, and no one dared to open it.", "At the end of the lane stood a small white house.",
    "He had promised to be back before dark.", "The first snow fell in October that year.",
    "We had been walking for three days.", "The boy hid the book under his coat.", "On the ninth day the wind changed.",
    "Every evening the same stranger sat by the fire.", "The horse refused to cross the bridge.",
    "A bell rang somewhere in the fog.", "They had not spoken since the funeral.",
    "The map was wrong, and both of them knew it.",
)  # fmt: skip
_CHOICES = (
    ("Where would you keep milk cold?", "oven", "refrigerator", "desk"),
    ("What do people wear when it rains?", "raincoat", "swimsuit", "crown"),
    ("What can you use to cut paper?", "scissors", "pillow", "water"),
    ("Where do fish live?", "trees", "water", "sand"),
    ("What gives us light at night?", "lamp", "stone", "shoe"),
)


def _word_problems() -> list[str]:
    out = []
    for i, (name, thing) in enumerate(product(_NAMES, _THINGS)):
        a, b, c = 12 + 7 * i % 40, 3 + 5 * i % 17, 2 + i % 9
        out.append(f"{name} has {a} {thing}, buys {b} more and gives {c} away. How many {thing} does {name} have now?")
    return out


def built_in(count: int = 200) -> list[str]:
    """`count` prompts, families interleaved, so that a prefix of the list is as mixed as the whole."""
    families = [
        [q.format(t) for t, q in product(_TOPICS, _QUESTIONS)],
        _word_problems(),
        [f"Write a Python function that {task}." for task in _TASKS],
        [f.format(story) for story, f in product(_STORIES, _STORY_FORMS)],
        [f"Continue this story.\n\n{opening}" for opening in _OPENINGS],
        [f"{q}\nOptions:\n- {a}\n- {b}\n- {c}" for q, a, b, c in _CHOICES],
    ]
    # No prompt comes again before all are used.
    mixed, streams = [], [iter(f) for f in families]
    while streams:
        for stream in list(streams):
            prompt = next(stream, None)
            if prompt is None:
                streams.remove(stream)
            else:
                mixed.append(prompt)
    return list(islice(cycle(mixed), count))


class Prompt(NamedTuple):
    """A prompt, the family it belongs to, and what the user says after each answer."""

    family: str
    text: str  # the first turn
    later: tuple[str, ...] = ()  # the turns after it
    id: str = ""  # of its row in the file


def fit(tokens: Sequence[int], room: int) -> list[int]:
    """The tokens, or the first and the last `room` - 1 of more than `room`: long documents ask their question last."""
    return list(tokens) if len(tokens) <= room else [*tokens[:1], *tokens[len(tokens) - room + 1 :]]


def read(path: str | None, families: Sequence[str] = ()) -> list[Prompt]:
    """Prompts of a file (JSONL of `turns` and `benchmark`, or one prompt a line; PromptError), or the built-in ones."""
    if path is None:
        if families:
            raise UsageError("--family chooses among the prompts of a JSONL file; name one with --prompts")
        return [Prompt("built-in", text) for text in built_in()]
    try:
        lines = Path(path).read_text("utf-8").split("\n")  # not splitlines: JSON texts may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: {error}; name a UTF-8 text or JSONL file") from None
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not path.endswith(".jsonl"):
            out.append(Prompt("file", line))
            continue
        try:
            row = json.loads(line)
            if not isinstance(row["turns"], list):
                raise TypeError
            first, *later = (str(turn) for turn in row["turns"])
            out.append(Prompt(str(row.get("benchmark", "file")), first, tuple(later), str(row.get("id", number))))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise PromptError(f"{path}: line {number} is not an object with `turns`, a list of strings") from None
    kept = [p for p in out if not families or p.family in families]
    if not kept:
        known = ", ".join(sorted({p.family for p in out})) or "none"
        raise PromptError(f"{path}: no prompts of {', '.join(families) or 'any family'}; families there: {known}")
    return kept


def halves(path: str | None, families: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Up to `count` prompts to calibrate on and up to `count` others to measure on; a short file is divided in two."""
    texts = list(dict.fromkeys(p.text for p in read(path, families)))[: 2 * count]
    return texts[::2], texts[1::2]
