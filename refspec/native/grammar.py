"""The walk of `refspec/grammar/tokens.py` in C. Legend: V vocabulary, S states, N nodes of its trie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refspec.native.module import ffi, lib, to_c

Ints = npt.NDArray[np.int32]


class TrieWalk:
    """A trie of tokens: node i has the last byte `byte[i]`, the children child[i] up to child[i+1], the tokens
    ids[end[i]] up to ids[end[i+1]].
    """

    def __init__(self, byte: npt.NDArray[np.uint8], child: Ints, end: Ints, ids: Ints, vocab: int) -> None:
        """byte [N], child [N+1], end [N+1]; node 0 is the root."""
        self.vocab = vocab
        self._arrays = byte, child, end, ids
        self._space = np.empty(len(byte), np.int32), np.empty(len(byte), np.int32)

    def __call__(self, table: Ints, dead: int, state: int) -> Ints | None:
        """[V] the state each token leads to from `state`, -1 for those the table [S+1, 256] leads to `dead`; None
        without C.
        """
        if lib is None:
            return None
        after = np.full(self.vocab, -1, np.int32)
        byte, child, end, ids = self._arrays
        lib.rs_grammar_walk(
            to_c(after), to_c(table), dead, state, ffi.from_buffer("uint8_t[]", byte), to_c(child), to_c(end),
            to_c(ids), *map(to_c, self._space),
        )  # fmt: skip
        return after
