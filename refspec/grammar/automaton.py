"""From a grammar to a deterministic automaton over bytes.

The states of a grammar are what may still come: a stack of nodes, each to be matched in full before the one below it
(the derivatives of Brzozowski 1964, kept as stacks). A state of the automaton is a set of such stacks. Because rules
nest at most `Grammar.depth` deep there are finitely many, and each of them can be completed: a stack that cannot is
never made. Characters are bytes of UTF-8 from the beginning, so tokens may end inside one.

Legend: S states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
import numpy.typing as npt

from refspec.errors import UsageError
from refspec.grammar.nodes import Alt, Chars, Grammar, Node, Ref, Repeat, Seq

MOST_STATES = 20_000
DONE = 0  # the empty stack: all is matched


@dataclass(frozen=True)
class ByteAutomaton:
    """State S is dead; from every other state a final one can be reached."""

    next: npt.NDArray[np.int32]  # [S+1, 256] the state after each byte
    final: npt.NDArray[np.bool_]  # [S+1] whether what was read so far is in the language
    start: int

    @property
    def dead(self) -> int:
        """S, the state of what no string of the language begins with."""
        return len(self.next) - 1

    def run(self, data: bytes, state: int | None = None) -> int:
        """The state after these bytes."""
        q = self.start if state is None else state
        for byte in data:
            q = int(self.next[q, byte])
        return q

    def matches(self, data: bytes) -> bool:
        """Whether these bytes are in the language."""
        return bool(self.final[self.run(data)])

    def key(self) -> str:
        """A hash of the language as it is written here."""
        return hashlib.sha256(self.next.tobytes() + self.final.tobytes() + b"%d" % self.start).hexdigest()

    def strings(self, most: int) -> list[bytes] | None:
        """Every string of the language in order of its bytes, None where there are more than `most`."""
        found: list[bytes] = []
        on_path: set[int] = set()

        def visit(q: int, data: bytes) -> bool:
            if q in on_path:  # around in a circle, and every state can be completed: without end
                return False
            on_path.add(q)
            if self.final[q]:
                found.append(data)
            fits = len(found) <= most
            for byte in np.flatnonzero(self.next[q] != self.dead).tolist():
                fits = fits and visit(int(self.next[q, byte]), data + bytes([byte]))
            on_path.remove(q)
            return fits

        try:
            return found if visit(self.start, b"") else None
        except RecursionError:
            return None


def automaton(grammar: Grammar) -> ByteAutomaton:
    """UsageError where the grammar has no string, or more than MOST_STATES states."""
    stacks = _Stacks(grammar)
    start = stacks.start()
    if not start:
        raise UsageError(f"grammar: no string matches {grammar.root!r}; rules may nest {grammar.depth} deep")
    numbers, states, rows = {start: 0}, [start], []
    for state in states:
        row = []
        for low, high, after in stacks.edges(state):
            if after not in numbers:
                numbers[after] = len(states)
                states.append(after)
                if len(states) > MOST_STATES:
                    raise UsageError(
                        f"grammar: more than {MOST_STATES} states; allow shorter repetitions, or less depth than "
                        f"{grammar.depth}"
                    )
            row.append((low, high, numbers[after]))
        rows.append(row)
    table = np.full((len(states) + 1, 256), len(states), np.int32)
    for q, row in enumerate(rows):
        for low, high, after_q in row:
            table[q, low : high + 1] = after_q
    return ByteAutomaton(table, np.array([DONE in state for state in states] + [False]), 0)


State = frozenset[int]


class _Stacks:
    """Stacks of nodes as numbers: DONE, or (node, depth it is at, the stack below)."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.reach = _reach(grammar)
        self.nested = {name for name, used in self.reach.items() if name in used}  # rules that can contain themselves
        self.nodes: list[tuple] = []  # type: ignore[type-arg]
        self.of: dict[tuple, int] = {}  # type: ignore[type-arg]
        self.deep: list[bool] = []  # whether a node contains a rule that nests
        self.rules: dict[str, int] = {}
        self.stacks: list[tuple[int, int, int]] = [(-1, 0, DONE)]
        self.stack_of: dict[tuple[int, int, int], int] = {}
        self.shortest: dict[tuple[int, int], float] = {}
        self.tops: dict[int, State] = {}
        self.joined: dict[frozenset[int], State] = {}

    def start(self) -> State:
        """The state of the whole language, empty where it has no string."""
        stack = self.push(self.number(Ref(self.grammar.root)), 0, DONE)
        return frozenset() if stack is None else self.top(stack)

    def edges(self, state: State) -> Iterator[tuple[int, int, State]]:
        """(first byte, last byte, state after them), apart and in order."""
        heads = [(*self.nodes[self.stacks[c][0]][1:], self.stacks[c][2]) for c in state if c != DONE]
        cuts = sorted({low for low, _, _ in heads} | {high + 1 for _, high, _ in heads})
        for low, beyond in pairwise(cuts):
            rests = frozenset(rest for a, b, rest in heads if a <= low <= b)
            if rests:
                if rests not in self.joined:
                    self.joined[rests] = frozenset().union(*map(self.top, rests))
                yield low, beyond - 1, self.joined[rests]

    def top(self, stack: int) -> State:
        """The stacks that this one can become without a byte, with a range of bytes on top, and DONE."""
        if stack not in self.tops:
            seen, left, found = set[int](), [stack], set[int]()
            while left:
                c = left.pop()
                if c in seen:
                    continue
                seen.add(c)
                if c == DONE or self.nodes[self.stacks[c][0]][0] == "byte":
                    found.add(c)
                else:
                    left += [d for d in self.opened(*self.stacks[c]) if d is not None]
            self.tops[stack] = frozenset(found)
        return self.tops[stack]

    def opened(self, node: int, depth: int, rest: int) -> Iterator[int | None]:
        """The stacks that stand for one whose top is a node of other nodes; None for what cannot be completed."""
        kind, *parts = self.nodes[node]
        if kind == "seq":
            stack: int | None = rest
            for part in reversed(parts):
                stack = None if stack is None else self.push(part, depth, stack)
            yield stack
        elif kind == "alt":
            for part in parts:
                yield self.push(part, depth, rest)
        elif kind == "repeat":
            part, least, most = parts
            if least == 0:
                yield rest
            if most != 0:
                again = self.add(("repeat", part, max(least - 1, 0), None if most is None else most - 1))
                after = self.push(again, depth, rest)
                yield None if after is None else self.push(part, depth, after)
        else:
            yield self.push(self.rule(parts[0]), depth + (parts[0] in self.nested), rest)

    def push(self, node: int, depth: int, rest: int) -> int | None:
        """The stack with a node on top; None where it cannot be completed within the depth."""
        depth = depth if self.deep[node] else 0
        if self.least(node, depth) == inf:
            return None
        key = (node, depth, rest)
        if key not in self.stack_of:
            self.stack_of[key] = len(self.stacks)
            self.stacks.append(key)
        return self.stack_of[key]

    def least(self, node: int, depth: int) -> float:
        """The fewest bytes of a string of the node, inf where it has none."""
        if depth > self.grammar.depth:
            return inf
        key = (node, depth)
        if key not in self.shortest:
            kind, *parts = self.nodes[node]
            if kind == "byte":
                found: float = 1
            elif kind == "seq":
                found = sum(self.least(part, depth) for part in parts)
            elif kind == "alt":
                found = min((self.least(part, depth) for part in parts), default=inf)
            elif kind == "repeat":
                found = parts[1] * self.least(parts[0], depth) if parts[1] else 0
            else:
                found = self.least(self.rule(parts[0]), depth + (parts[0] in self.nested))
            self.shortest[key] = found
        return self.shortest[key]

    def rule(self, name: str) -> int:
        if name not in self.rules:
            self.rules[name] = self.number(self.grammar.rules[name])
        return self.rules[name]

    def number(self, node: Node) -> int:
        """The number of a node; equal nodes have one number."""
        if isinstance(node, Chars):
            options = [pattern for low, high in node.ranges for pattern in utf8(low, high)]
            spelled = [self.add(("seq", *(self.add(("byte", *pair)) for pair in pattern))) for pattern in options]
            return self.add(("alt", *spelled))
        if isinstance(node, Seq):
            return self.add(("seq", *map(self.number, node.items)))
        if isinstance(node, Alt):
            return self.add(("alt", *map(self.number, node.options)))
        if isinstance(node, Repeat):
            return self.add(("repeat", self.number(node.item), node.least, node.most))
        return self.add(("ref", node.name))

    def add(self, key: tuple) -> int:  # type: ignore[type-arg]
        if key not in self.of:
            kind, *parts = key
            if kind == "ref":
                self.deep.append(bool(self.nested & {parts[0], *self.reach[parts[0]]}))
            else:
                inner = {"byte": [], "repeat": parts[:1]}.get(kind, parts)
                self.deep.append(any(self.deep[part] for part in inner))
            self.of[key] = len(self.nodes)
            self.nodes.append(key)
        return self.of[key]


def _names(node: Node) -> set[str]:
    if isinstance(node, Ref):
        return {node.name}
    if isinstance(node, Repeat):
        return _names(node.item)
    inner = node.items if isinstance(node, Seq) else node.options if isinstance(node, Alt) else ()
    return set().union(*map(_names, inner))


def _reach(grammar: Grammar) -> dict[str, set[str]]:
    """Rule -> the rules it uses, and those they use."""
    uses = {name: _names(node) for name, node in grammar.rules.items()}
    for middle in uses:
        for name in uses:
            if middle in uses[name]:
                uses[name] |= uses[middle]
    return uses


def utf8(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Sequences of byte ranges that together spell the code points low..high; surrogates have no spelling."""
    for a, b in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)):
        if low <= b and high >= a:
            yield from _spelled(max(low, a), min(high, b))


def _spelled(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """`utf8` where all have the same number of bytes."""
    for bits in (6, 12, 18):  # of the last one, two, three bytes
        if high < 0x80:
            break
        below = (1 << bits) - 1
        if low | below >= high:
            break
        if low & below:
            yield from _spelled(low, low | below)
            yield from _spelled((low | below) + 1, high)
            return
        if high & below != below:
            yield from _spelled(low, (high & ~below) - 1)
            yield from _spelled(high & ~below, high)
            return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
