"""Decontamination: paragraphs that share 13 words in a row with a benchmark are left out of the training data."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

WORDS = 13  # the length that decontamination commonly uses (GPT-3, arXiv 2005.14165, appendix C)


def runs_of(text: str) -> Iterable[tuple[str, ...]]:
    """Every run of `WORDS` words, letters and digits only, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return (tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1))


def strings_in(value: Any) -> Iterable[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_in(part)


def without(text: str, known: set[tuple[str, ...]]) -> tuple[str, int]:
    """`text` without the paragraphs (separated by blank lines) that have one of the runs `known`, and their number.

    A run across the border of two paragraphs is not found.
    """
    paragraphs = text.split("\n\n")
    kept = [p for p in paragraphs if known.isdisjoint(runs_of(p))]
    return "\n\n".join(kept), len(paragraphs) - len(kept)
