"""Rows of the EAGLE-3 forward pass over a KV cache: true rows, and chained rows after them.

A true row is made from a feature of the target. A chained row starts from the output of the row before it, and lives
only until the next call. Chains are in `eagle3.py`, trees in `eagle3_tree.py`. Legend: T rows, the rest in `config.py`.
"""

from __future__ import annotations

import math
from copy import copy
from typing import NamedTuple, TypeVar

import numpy as np

from refspec.errors import CheckpointError, ShapeError, UsageError
from refspec.reference import ops as numpy_ops
from refspec.reference.cache import KVCache, RowBuffer
from refspec.reference.config import DrafterConfig, Weights, check_weights, fold_rope_attention
from refspec.reference.draft import LogitsChange, Ops, Probe, RowRecord
from refspec.reference.eagle3_forward import Anchor, block, feedback, head, output_norm, project, resized
from refspec.reference.ops import Array, Ids

Self = TypeVar("Self", bound="Eagle3Rows")


class Rows(NamedTuple):
    """What T rows produced, for teacher-forced comparisons."""

    logits: Array  # [T, D] over the draft vocabulary
    g: Array  # [T, H] state that entered the block
    h: Array  # [T, H] block output
    state_out: Array  # [T, H] state handed to the next chained row


class Eagle3Rows:
    """Rows of the forward pass over a KV cache; `probe`, when set, is told of every row that runs."""

    def __init__(
        self, config: DrafterConfig, weights: Weights, ops: Ops = numpy_ops, anchor: float = 0.0, grow: float = 0.0
    ) -> None:
        """Raises ShapeError or CheckpointError unless the weights are exactly what the configuration needs.

        Two experiments, off at 0: `anchor` is a bonus on the scores that chained rows give true rows
        (`eagle3_forward.anchored`); `grow` sets the size of the state that the chained row of depth d starts from, to
        grow^(d - 1) times the size of the first one's, which changes nothing where the residual is normed.
        """
        check_weights(config, weights)
        for name, value in (("anchor", anchor), ("grow", grow)):
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} = {value} must be 0 (none) or more")
        self.config, self.ops, self.anchor, self.grow = config, ops, float(anchor), float(grow)
        folded = fold_rope_attention(config, weights)
        self.weights = {k: np.ascontiguousarray(a, np.float32) for k, a in folded.items() if k != "d2t"}
        identity = np.arange(config.draft_vocab_size)
        self.d2t: Ids = np.asarray(weights.get("d2t", identity), dtype=np.int64)  # [D] target id of each draft id
        self.capture_layers = config.capture_layers
        self.probe: Probe | None = None
        self.penalties: LogitsChange | None = None
        self.seconds = 0.0  # measured by the caller: there is no clock here
        self.reset()

    def varied(self: Self, *, anchor: float = 0.0, grow: float = 0.0) -> Self:
        """The same drafter, weights shared, without rows and with other experiments."""
        other = copy(self)
        other.anchor, other.grow = anchor, grow
        other.reset()
        return other

    def reset(self) -> None:
        """Forget every row; the time spent stays counted."""
        self.cache = KVCache(self.config.n_kv_heads, self.config.head_dim)
        self.hidden = RowBuffer(self.config.hidden_size)  # h of every row, so that drafting can resume after a rollback
        self.n_rows = 0

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows and no chained row; raises ShapeError unless 0 <= n_rows <= self.n_rows."""
        if not 0 <= n_rows <= self.n_rows:
            raise ShapeError(f"cannot roll the drafter back to {n_rows} rows: it holds {self.n_rows}")
        self.cache.rollback(n_rows)
        self.hidden.rollback(n_rows)
        self.n_rows = n_rows

    def extend(self, tokens: Ids, features: Array) -> None:
        """Drop chained rows, then append true rows from tokens [T] and features [T, n_states*Ht]."""
        self._run(tokens, features, is_target_feature=True)

    def survey(self, tokens: Ids, features: Array) -> float:
        """`extend`, and the mean log-probability of each row's likeliest token without penalties; nan if T = 0."""
        if not len(tokens):
            return math.nan
        logits = self.forward_rows(tokens, features, is_target_feature=True).logits  # [T, D]
        return float(np.mean(np.log(self.ops.softmax(logits).max(axis=1).astype(np.float64))))

    def forward_rows(self, tokens: Ids, states: Array, *, is_target_feature: bool) -> Rows:
        """Teacher-forced rows: tokens [T] with target features [T, n_states*Ht] or chained states [T, H]; all outputs.

        True rows replace chained ones; chained rows are appended.
        """
        g, h, n = self._run(tokens, states, is_target_feature)
        return Rows(head(self.config, self.weights, h, n, self.ops), g, h, feedback(self.config, h, n))

    def handed_on(self, states: Array, depth: int) -> Array:
        """[T, H] states that chained rows of depth `depth`, `depth` + 1, ... start from, resized if `grow` is set."""
        if not self.grow or not self.n_rows:
            return states
        c, h = self.config, self.hidden.rows[self.n_rows - 1 : self.n_rows]  # [1, H] of the last true row
        first = feedback(c, h, output_norm(c, self.weights, h, self.ops))  # [1, H]
        size = float(np.sqrt(np.mean(np.square(first, dtype=np.float64))))
        return resized(states, size * self.grow ** np.arange(depth - 1, depth - 1 + len(states), dtype=np.float64))

    def close(self) -> None:
        """Release the rows held."""
        self.reset()

    def _run(self, tokens: Ids, states: Array, is_target_feature: bool) -> tuple[Array, Array, Array]:
        """Append T rows; returns g, h and n, [T, H] each."""
        c, w, ops = self.config, self.weights, self.ops
        tokens, states = self._checked(tokens, states, is_target_feature)
        if is_target_feature:
            self.rollback(self.n_rows)
        first = len(self.cache)
        depth = 0 if is_target_feature else first - self.n_rows + 1
        g = project(c, w, states, ops) if is_target_feature else self.handed_on(states, depth)  # [T, H]
        anchor = Anchor(self.n_rows, self.anchor) if self.anchor and not is_target_feature else None
        h, attention = block(c, w, tokens, g, self.cache, ops, self.probe is not None, anchor)  # [T, H]
        n = output_norm(c, w, h, ops)  # [T, H]
        self.hidden.append(h)
        if is_target_feature:
            self.n_rows = len(self.cache)
        if self.probe is not None and attention is not None:
            self.probe(RowRecord(depth, first, *attention, g, feedback(c, h, n)))
        return g, h, n

    def _checked(self, tokens: Ids, states: Array, is_target_feature: bool) -> tuple[Ids, Array]:
        """Tokens [T] and states [T, width] as arrays; raises ShapeError for shapes and ids, CheckpointError for NaN."""
        tokens, states = np.asarray(tokens, dtype=np.int64), np.ascontiguousarray(states, dtype=np.float32)
        c = self.config
        width = c.n_states * c.target_hidden_size if is_target_feature else c.hidden_size
        source = "target features" if is_target_feature else "chained states"
        if tokens.ndim != 1 or states.shape != (len(tokens), width):
            raise ShapeError(f"{source}: {list(states.shape)} with {list(tokens.shape)} tokens, need [T, {width}]")
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < c.vocab_size:
            raise ShapeError(f"drafter: token ids {tokens.min()}..{tokens.max()} outside 0..{c.vocab_size - 1}")
        if not np.isfinite(states).all():
            raise CheckpointError(f"{source} from row {len(self.cache)} on hold NaN or infinity; a model is damaged")
        return tokens, states
