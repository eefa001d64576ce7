"""From an automaton over bytes to one over the tokens of a vocabulary.

A token is allowed in a state if its bytes lead to a state that can still be completed, by tokens. All tokens of a
vocabulary are walked through the automaton together, as a trie, one byte of all of them at a time. Any way to cut a
string into tokens is a sequence of the language here; `trie.py` has the model's own way only.

Legend: V vocabulary, S states, n allowed tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refspec.errors import UsageError
from refspec.grammar.automaton import ByteAutomaton
from refspec.native.grammar import TrieWalk

NEVER = np.iinfo(np.int32).max  # no sequence of tokens completes the state
DEAD = -1
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """What may follow a state, and what is worth knowing once about it."""

    ids: Tokens  # [n] in order
    next: Tokens  # [n] the state after each

    @cached_property
    def groups(self) -> tuple[list[int], npt.NDArray[np.intp]]:
        """The different states that follow, and which of them each token leads to [n]."""
        states, which = np.unique(self.next, return_inverse=True)
        return states.tolist(), which

    @cached_property
    def key(self) -> bytes:
        """The same for rows of the same tokens."""
        return hashlib.sha256(self.ids.tobytes()).digest()

    def others(self, vocab: int) -> npt.NDArray[np.intp] | None:
        """The tokens that may not follow, where these are the fewer."""
        if 2 * len(self.ids) <= vocab:
            return None
        if "others" not in self._kept:
            rest = np.ones(vocab, np.bool_)
            rest[self.ids] = False
            self._kept["others"] = np.flatnonzero(rest)
        return self._kept["others"]

    def leads(self, vocab: int) -> npt.NDArray[np.intp]:
        """[V] which of the states in `groups` each token leads to, their number for those that may not follow."""
        if "leads" not in self._kept:
            states, which = self.groups
            self._kept["leads"] = np.full(vocab, len(states), np.intp)
            self._kept["leads"][self.ids] = which
        return self._kept["leads"]

    _kept: dict[str, npt.NDArray[np.intp]] = field(default_factory=dict, init=False, repr=False)


class TokenAutomaton(Protocol):
    """A language of token sequences; states are numbers."""

    start: int
    shortest: Tokens  # [S] the fewest tokens that complete a sequence from each state, 0 in a final one; or NEVER

    def row(self, state: int) -> Row:
        """The tokens after which the state can still be completed."""

    def step(self, state: int, token: int) -> int:
        """The state after a token, DEAD where it is not allowed."""

    def certain(self, state: int) -> bytes:
        """The bytes that every sequence goes on with from here, as far as is known."""


class Level(NamedTuple):
    """The nodes of a vocabulary's trie that are so many bytes deep, those of one parent side by side."""

    byte: npt.NDArray[np.uint8]  # [nodes] the last one
    child: Tokens  # [nodes+1] the first child of each on the level below, and where the last one's end
    end: Tokens  # [nodes+1] the first of each one's tokens in `ids`, likewise
    ids: Tokens  # tokens that end here, by node


class Vocabulary:
    """The tokens that print something, as a trie of their bytes; `pieces` [V], empty for those that print nothing."""

    def __init__(self, pieces: Sequence[bytes], end_tokens: Container[int] = ()) -> None:
        self.pieces = [b"" if token in end_tokens else piece for token, piece in enumerate(pieces)]
        self.ends = [token for token in range(len(pieces)) if token in end_tokens]
        self.levels = _trie(self.pieces)
        self.in_c = _flat(self.levels, len(self.pieces))

    def key(self) -> str:
        """A hash of the tokens."""
        lengths = np.array([len(piece) for piece in self.pieces], np.int32)
        return hashlib.sha256(lengths.tobytes() + b"".join(self.pieces)).hexdigest()


def _trie(pieces: Sequence[bytes]) -> list[Level]:
    """Levels from the root, which has no byte, down."""
    ids = np.array([i for i, piece in enumerate(pieces) if piece], np.int32)
    lengths = np.array([len(pieces[i]) for i in ids], np.int64)
    data = np.frombuffer(b"".join(pieces[i] for i in ids), np.uint8)
    first = np.cumsum(lengths) - lengths
    node = np.zeros(len(ids), np.int64)  # each token's, on this level
    byte, n = np.zeros(1, np.uint8), 1
    levels: list[Level] = []
    while n:
        depth = len(levels)
        ends = lengths == depth
        order = np.argsort(node[ends], kind="stable")
        end = np.searchsorted(node[ends][order], np.arange(n + 1))
        here = ids[ends][order]
        ids, lengths, first, node = (x[~ends] for x in (ids, lengths, first, node))
        kinds, node = np.unique(node * 256 + data[first + depth], return_inverse=True)
        child = np.searchsorted(kinds // 256, np.arange(n + 1))
        levels.append(Level(byte, child.astype(np.int32), end.astype(np.int32), here))
        byte, n = (kinds % 256).astype(np.uint8), len(kinds)
    return levels


def _flat(levels: Sequence[Level], vocab: int) -> TrieWalk:
    """The levels as one trie."""
    below = np.cumsum([len(level.byte) for level in levels])  # where the next level begins
    before = np.cumsum([0, *(len(level.ids) for level in levels)])
    child = [level.child[:-1] + n for level, n in zip(levels, below, strict=True)]
    end = [level.end[:-1] + n for level, n in zip(levels, before[:-1], strict=True)]
    return TrieWalk(
        np.concatenate([level.byte for level in levels]), np.append(np.concatenate(child), below[-1]).astype(np.int32),
        np.append(np.concatenate(end), before[-1]).astype(np.int32), np.concatenate([level.ids for level in levels]),
        vocab,
    )  # fmt: skip


def _spans(first: Tokens, which: Tokens) -> tuple[Tokens, Tokens]:
    """Where the elements of these spans lie, span i from first[i] to first[i+1], and the place in `which` of each."""
    begin, size = first[which], first[which + 1] - first[which]
    place = np.repeat(np.arange(len(which), dtype=np.int32), size)
    before = np.cumsum(size, dtype=np.int32) - size
    return np.asarray((begin - before)[place] + np.arange(len(place)), np.int32), np.asarray(place, np.int32)


class ByteTokens:
    """The TokenAutomaton of all sequences of a vocabulary's tokens whose bytes are in a language of bytes."""

    def __init__(self, language: ByteAutomaton, vocabulary: Vocabulary, cache: Path | None = None) -> None:
        """`cache` is a directory in which the table of shortest completions is kept; UsageError where there is none."""
        self.language, self.vocabulary, self.start = language, vocabulary, language.start
        self._rows: dict[int, Row] = {}
        self.shortest = _remembered(self, cache)
        if self.shortest[self.start] == NEVER:
            raise UsageError("grammar: this vocabulary has no tokens for any output that matches; check the grammar")

    def row(self, state: int) -> Row:
        """See `TokenAutomaton`; looked up once for each state."""
        if state not in self._rows:
            walked = self.walked(state)
            alive = self.shortest[walked.next] != NEVER
            self._rows[state] = Row(walked.ids[alive], walked.next[alive])
        return self._rows[state]

    def walked(self, state: int) -> Row:
        """Tokens whose bytes the language allows."""
        after = self.vocabulary.in_c(self.language.next, self.language.dead, state)
        if after is None:
            return self.walk(state)
        ids = np.flatnonzero(after >= 0).astype(np.int32)
        return Row(ids, after[ids])

    def walk(self, state: int) -> Row:
        """The same in NumPy."""
        table, dead = self.language.next, self.language.dead
        nodes, states = np.zeros(1, np.int32), np.array([state], np.int32)  # alive
        ids, after = [], []
        for i, level in enumerate(self.vocabulary.levels):
            if i:
                states = table[states, level.byte[nodes]]
                alive = states != dead
                nodes, states = nodes[alive], states[alive]
            if not len(nodes):
                break
            ends, place = _spans(level.end, nodes)
            ids.append(level.ids[ends])
            after.append(states[place])
            nodes, place = _spans(level.child, nodes)
            states = states[place]
        found = np.concatenate(ids)
        order = np.argsort(found)
        return Row(found[order], np.concatenate(after)[order])

    def step(self, state: int, token: int) -> int:
        """See `TokenAutomaton`."""
        piece = self.vocabulary.pieces[token]
        after = self.language.run(piece, state) if piece else self.language.dead
        return DEAD if after == self.language.dead or self.shortest[after] == NEVER else after

    def certain(self, state: int, most: int = 256) -> bytes:
        """See `TokenAutomaton`; at most so many."""
        said = bytearray()
        while len(said) < most and not self.language.final[state]:
            going = np.flatnonzero(self.language.next[state] != self.language.dead)
            if len(going) != 1:
                break
            said.append(int(going[0]))
            state = int(self.language.next[state, going[0]])
        return bytes(said)


def _remembered(automaton: ByteTokens, cache: Path | None) -> Tokens:
    """`_shortest`, from a file of the cache named after the vocabulary and the language if there is one."""
    if cache is None:
        return _shortest(automaton)
    key = hashlib.sha256((automaton.vocabulary.key() + automaton.language.key()).encode()).hexdigest()[:16]
    path = cache / f"grammar-{key}.npy"
    try:
        known = np.load(path)
        if known.shape == (automaton.language.dead + 1,) and known.dtype == np.int32:
            return np.asarray(known)
    except (OSError, ValueError, EOFError):
        pass
    found = _shortest(automaton)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, found)
        os.replace(partial, path)
    except OSError:
        pass  # it is made again next time
    return found


def _shortest(automaton: ByteTokens) -> Tokens:
    """[S+1] the fewest tokens from each state to a final one; NEVER where no tokens lead there."""
    n = automaton.language.dead + 1
    least = np.where(automaton.language.final, 0, NEVER).astype(np.int32)
    before: list[list[int]] = [[] for _ in range(n)]  # state -> those from which one token leads there
    seen, left = {automaton.start}, [automaton.start]
    for state in left:
        there = np.zeros(n, np.bool_)
        there[automaton.walked(state).next] = True
        for after in np.flatnonzero(there).tolist():
            before[after].append(state)
            if after not in seen:
                seen.add(after)
                left.append(after)
    front = [state for state in left if least[state] == 0]
    for state in front:
        for earlier in before[state]:
            if least[earlier] == NEVER:
                least[earlier] = least[state] + 1
                front.append(earlier)
    return least
