"""WrappedTarget: a Target whose logits are made of another's and of the tokens before each: penalties, a grammar.

That is a function of the tokens held, as logits are, so it is one more target: the decode cycle, its rules and its
proofs do not know about it. What stands here is the keeping of those tokens, for chains and trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from refspec.decoding.target import Target, TreeTarget
from refspec.reference.ops import Ids


class WrappedTarget:
    """`inner` itself, until a subclass says otherwise; output tokens count from position `first` on."""

    def __init__(self, inner: Target, first: int) -> None:
        self.inner, self.first = inner, first
        # tokens of positions held and of the last decode; a verifier may run one beside the last position
        self.text = np.zeros(inner.n_ctx + 2, np.int32)
        self._start = 0  # position of the first row of the last decode
        # tokens from the pending one to each node's, if the last decode was a tree
        self._paths: list[list[int]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def seconds(self) -> float:
        """As of `inner`; asked twice a step, so not by way of `__getattr__`."""
        return self.inner.seconds

    @property
    def capturing(self) -> bool:
        """As of `inner`."""
        return self.inner.capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self.inner.capturing = wanted

    def holding(self, tokens: Sequence[int] | Ids) -> None:
        """Take over the tokens of the positions that `inner` holds already, from the first on."""
        self.text[: len(tokens)] = tokens
        if isinstance(self.inner, WrappedTarget):
            self.inner.holding(tokens)

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """As of `inner`."""
        self._start, self._paths = self.inner.n_past, None
        rows = self.inner.decode(tokens, logits=logits)
        self.text[self._start : self._start + rows] = tokens
        return rows

    def decode_tree(self, tokens: Sequence[int] | Ids, parents: Sequence[int] | Ids) -> int:
        """As of `inner`, a TreeTarget."""
        rows = cast(TreeTarget, self.inner).decode_tree(tokens, parents)
        ids = [int(t) for t in tokens]
        self._start, self._paths = self.inner.n_past, [ids[:1]]
        self.text[self._start] = ids[0]
        for token, parent in zip(ids[1:], parents, strict=True):
            self._paths.append([*self._paths[int(parent) + 1], token])
        return rows

    def keep_path(self, nodes: Sequence[int]) -> None:
        """As of `inner`, a TreeTarget."""
        assert self._paths is not None
        cast(TreeTarget, self.inner).keep_path(nodes)
        path = self._paths[nodes[-1] + 1 if len(nodes) else 0]
        self.text[self._start : self._start + len(path)] = path
