"""What the decode cycle needs from a target model.

Not an implementation. A target holds the KV of positions 0..n_past-1; `decode` appends to them, `rollback` drops the
last ones. Legend: T tokens of one decode, V vocabulary, Ht width, n_states captured boundaries.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from refspec.native.penalties import Penalizer
from refspec.reference.draft import Draft
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler
from refspec.reference.verify import Verdict


class Verifier(Protocol):
    """Verify steps of a chain."""

    def step(self, pending: int, draft: Draft, position: int) -> Verdict:
        """Run pending and draft, decide from output position `position` on, take back what was not accepted."""


# What changes logits, the token of every position (a verifier keeps them up to date), and the first one that counts.
Penalized = tuple[Penalizer, npt.NDArray[np.int32], int]


class Target(Protocol):
    """A causal language model with a KV cache that can be rolled back."""

    @property
    def seconds(self) -> float:
        """Time spent inside the model so far."""

    @property
    def n_ctx(self) -> int:
        """Positions the cache can hold."""

    @property
    def n_vocab(self) -> int:
        """V, the number of tokens."""

    @property
    def n_past(self) -> int:
        """Positions the cache holds."""

    @property
    def tokens(self) -> Sequence[int] | Ids:
        """The tokens [n_past] at these positions."""

    @property
    def restores(self) -> int:
        """The first position whose state `rollback` brings back: 0, or what a recurrent state still has."""

    capturing: bool  # whether decodes keep the hidden states that `features` returns

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the model's file, under GGUF names."""

    @property
    def end_tokens(self) -> Container[int]:
        """Tokens that end an output."""

    @property
    def add_bos(self) -> bool:
        """Whether the tokenizer puts the BOS token in front."""

    def decode(self, tokens: Ids | Sequence[int], *, logits: str = "all") -> int:
        """Append T tokens, with logits of "all", the "last" or "none" of them; returns T."""

    def logits(self, i: int) -> Array:
        """Logits [V] of token i of the last decode, valid until the next one."""

    def features(self) -> Array:
        """Captured states [T, n_states*Ht] of the last decode, valid until the next one."""

    def rollback(self, n: int) -> None:
        """Keep positions 0..n-1; BackendError where a recurrent state cannot go back so far."""

    def reset(self) -> None:
        """Forget every position."""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of a string, with the tokenizer's own BOS when `add_special`."""

    def token_to_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Bytes a token prints as; control tokens print as nothing unless `special`."""

    def close(self) -> None:
        """Release the model; calling it twice is harmless."""


@runtime_checkable
class Verifies(Protocol):
    """A target that can do a verify step in one call, for drafts fixed in advance."""

    def verifier(self, sampler: Sampler, seed: int, penalties: Penalized | None = None) -> Verifier | None:
        """The twin of `verifier.MatchVerifier`, with penalties of its own if given; None where it cannot."""


class TreeTarget(Target, Protocol):
    """A target that can also verify several continuations at once."""

    @property
    def max_nodes(self) -> int:
        """The most nodes a tree may have here."""

    def decode_tree(self, tokens: Ids | Sequence[int], parents: Ids | Sequence[int]) -> int:
        """Run the pending token and N nodes, tokens [N+1], parents [N] (-1: pending), with all logits."""

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Append the pending token and these nodes, a path from the root; the others are forgotten."""
