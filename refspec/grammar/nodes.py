"""What a grammar is, whatever it was written in: a regular expression, a JSON schema or GBNF becomes these nodes.

A node stands for a set of strings of characters. Rules may contain themselves, as deep as `Grammar.depth` says, so the
language of a grammar is regular and one automaton of bytes serves all of them (`automaton.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LAST = 0x10FFFF  # the last code point
DEPTH = 8  # nested uses of rules that can contain themselves, where nothing else is said


@dataclass(frozen=True)
class Chars:
    """One character out of these inclusive ranges of code points; in order and apart: `chars` makes them so."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Seq:
    """One item after the other; without items the empty string."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    """Any of the options; without options nothing at all."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times the item; most None is without end."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Ref:
    """What the rule of this name stands for."""

    name: str


Node = Chars | Seq | Alt | Repeat | Ref
EMPTY, NOTHING = Seq(()), Alt(())


@dataclass(frozen=True)
class Grammar:
    """Rules by name; the language is that of `root`."""

    rules: Mapping[str, Node]
    root: str = "root"
    depth: int = field(default=DEPTH)


class Bounds(NamedTuple):
    """How often something comes: `{2,5}` is Bounds(2, 5), `+` Bounds(1, None)."""

    least: int
    most: int | None


def chars(ranges: Iterable[tuple[int, int]], *, other: bool = False) -> Chars:
    """Any character of the ranges, or with `other` any but these."""
    kept: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if kept and low <= kept[-1][1] + 1:
            kept[-1] = (kept[-1][0], max(kept[-1][1], high))
        else:
            kept.append((low, high))
    if not other:
        return Chars(tuple(kept))
    edges = [-1, *(edge for pair in kept for edge in pair), LAST + 1]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return Chars(tuple((before + 1, after - 1) for before, after in gaps if before + 1 < after))


def one_of(characters: str) -> Chars:
    """Any of these characters."""
    return chars((ord(c), ord(c)) for c in characters)


def text(string: str) -> Seq:
    """Exactly this string."""
    return Seq(tuple(one_of(c) for c in string))


def seq(*items: Node | str) -> Seq:
    """Items in order; strings stand for themselves."""
    return Seq(tuple(text(item) if isinstance(item, str) else item for item in items))


def alt(*options: Node | str) -> Alt:
    """Any of these; strings stand for themselves."""
    return Alt(tuple(text(option) if isinstance(option, str) else option for option in options))


DIGIT = chars([(ord("0"), ord("9"))])
