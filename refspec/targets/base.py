"""What the decode cycle needs from a target model.

Not an implementation. Rows are positions: a target holds the KV of rows 0..n_past-1, `decode` appends to them, `rollback` drops the
last ones. Legend: T rows of one decode, V vocabulary, Ht width, n_states captured boundaries.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

from refspec.ops import Array, Ids


class Target(Protocol):
    """A causal language model with a KV cache that can be rolled back."""

    n_ctx: int  # rows the cache can hold
    n_vocab: int
    n_past: int  # rows it holds
    seconds: float  # time spent inside the model so far
    metadata: Mapping[str, Any]  # of its file
    end_tokens: Container[int]  # tokens that end the text
    add_bos: bool  # whether its tokenizer puts the BOS token in front

    def decode(self, tokens: Ids | Sequence[int], *, logits: str = "all") -> int:
        """Append T rows, with logits of "all", "last" or "none" of them; returns T."""

    def logits(self, i: int) -> Array:
        """Logits [V] of row i of the last decode, valid until the next one."""

    def features(self) -> Array:
        """Captured states [T, n_states*Ht] of the last decode, valid until the next one."""

    def rollback(self, n: int) -> None:
        """Keep rows 0..n-1."""

    def reset(self) -> None:
        """Forget every row."""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of a text, with the tokenizer's own BOS when `add_special`."""

    def token_to_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Bytes a token prints as; control tokens print as nothing unless `special`."""

    def close(self) -> None:
        """Release the model; calling it twice is harmless."""
