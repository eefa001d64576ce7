"""A finite language as the model itself would cut it into tokens: a trie of the tokens of every string.

Here each string is one sequence of tokens, so what every string goes on with is one sequence too, and the model's
probability of each string can be had by running the trie once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from refspec.grammar.tokens import DEAD, NEVER, Row, Tokens


class TokenTrie:
    """The TokenAutomaton of these sequences; states are nodes, `sequences` how many there are."""

    start = 0

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        finals = set[int]()
        for sequence in sequences:
            node = 0
            for token in sequence:
                if int(token) not in self.children[node]:
                    self.children[node][int(token)] = len(self.children)
                    self.children.append({})
                node = self.children[node][int(token)]
            finals.add(node)
        self.sequences = len(finals)
        self.shortest: Tokens = np.full(len(self.children), NEVER, np.int32)
        for node in range(len(self.children) - 1, -1, -1):  # children come after their parent
            below = [int(self.shortest[child]) + 1 for child in self.children[node].values()]
            self.shortest[node] = 0 if node in finals else min(below, default=NEVER)
        self._rows: dict[int, Row] = {}

    def row(self, state: int) -> Row:
        """See `TokenAutomaton`."""
        if state not in self._rows:
            pairs = np.array(sorted(self.children[state].items()), np.int32).reshape(-1, 2)
            self._rows[state] = Row(pairs[:, 0], pairs[:, 1])
        return self._rows[state]

    def step(self, state: int, token: int) -> int:
        """See `TokenAutomaton`."""
        return self.children[state].get(token, DEAD)

    def certain(self, state: int) -> bytes:
        """None: what is certain here is a token."""
        return b""


def trie_of(
    strings: Collection[bytes], tokenize: Callable[[bytes], Sequence[int]], pieces: Sequence[bytes]
) -> TokenTrie | None:
    """The trie of strings in the tokens of a model; None where the tokens of one do not spell it."""
    sequences = [[int(token) for token in tokenize(string)] for string in strings]
    spelled = (b"".join(pieces[token] for token in tokens) for tokens in sequences)
    return TokenTrie(sequences) if all(a == b for a, b in zip(spelled, strings, strict=True)) else None
