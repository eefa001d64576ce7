"""The EAGLE-3 drafter's rows in C: `refspec/drafters/eagle3_forward.py` one row at a time, KV cache included.

Not a drafter: no rollback, no sampling; for agreement tests and probes. Row r has RoPE position r and sees rows 0..r, so
rolling back is stepping again from an earlier row. Shape legend: see `refspec/config.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refspec.config import (
    BIASED,
    DrafterConfig,
    FeatureNorm,
    Feedback,
    Residual,
    RopeStyle,
    Weights,
    check_weights,
    fold_rope_attention,
)
from refspec.errors import BackendError, ShapeError
from refspec.native.module import ffi, floats, lib, require, to_c
from refspec.ops import Array

_PLAIN = (
    "token_embd", "fc", "attn_norm", "hidden_norm", "attn_q", "attn_k", "attn_v", "q_norm", "k_norm", "rope_freqs",
    "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "output_norm", "output",
)  # fmt: skip


class StepResult(NamedTuple):
    """What one row produced."""

    logits: Array  # [D] over the draft vocabulary
    h: Array  # [H] block output
    state_out: Array  # [H] state for the next chained row
    attention: Array | None  # [nh, row+1] weights, when asked for


class Eagle3Rows:
    """The weights and a KV cache of `capacity` rows in C's hands; raises like Eagle3Drafter, and BackendError without C."""

    def __init__(self, config: DrafterConfig, weights: Weights, capacity: int) -> None:
        if lib is None:
            raise BackendError("Eagle3Rows needs the C module; build it with: python native/build_ffi.py")
        check_weights(config, weights)
        self.config, self.capacity = config, capacity
        self.keys, self.values = (
            np.zeros((capacity, config.n_kv_heads, config.head_dim), np.float32) for _ in range(2)
        )
        folded = fold_rope_attention(config, weights)
        self._arrays = {name: floats(array) for name, array in folded.items() if name != "d2t"}
        self._config, self._weights = self._make_config(), self._make_weights()
        if lib.rs_eagle3_check(self._config, self._weights) != lib.RS_OK:
            raise ShapeError(f"the C drafter cannot run this configuration with {capacity} rows: {config}")
        self._scratch = np.empty(lib.rs_eagle3_scratch(self._config), dtype=np.float32)

    def encode(self, feature: Array) -> Array:
        """Captured target states of one row [n_states*Ht] -> the state g [H] that enters the block."""
        feature = floats(feature)
        width = self.config.n_states * self.config.target_hidden_size
        require(feature.shape == (width,), f"encode: feature {feature.shape}, need [{width}]")
        g = np.empty(self.config.hidden_size, dtype=np.float32)
        lib.rs_eagle3_encode(to_c(g), to_c(self._scratch), self._config, self._weights, to_c(feature))
        return g

    def step(self, token: int, state: Array, row: int, attention: bool = False) -> StepResult:
        """Run one row: token id, state [H] (from encode, or state_out of the row before), cache row. Raises ShapeError."""
        c, state = self.config, floats(state)
        require(state.shape == (c.hidden_size,), f"step: state {state.shape}, need [{c.hidden_size}]")
        require(row >= 0, f"step: row {row} is negative")
        logits, h, out = (np.empty(n, dtype=np.float32) for n in (c.draft_vocab_size, c.hidden_size, c.hidden_size))
        weights = np.empty((c.n_heads, row + 1), dtype=np.float32) if attention else None
        status = lib.rs_eagle3_step(
            to_c(logits), to_c(h), to_c(out), to_c(self.keys), to_c(self.values), ffi.NULL if weights is None else to_c(weights),
            to_c(self._scratch), self._config, self._weights, token, to_c(state), row, row,
        )  # fmt: skip
        require(status != lib.RS_BAD_TOKEN, f"step: token {token} leaves the vocabulary of {c.vocab_size}")
        require(status != lib.RS_CACHE_FULL, f"step: row {row} is outside the cache of {self.capacity} rows")
        return StepResult(logits, h, out, weights)

    def _make_config(self) -> Any:
        c = self.config
        return ffi.new("rs_eagle3_config *", {
            "hidden": c.hidden_size, "target_hidden": c.target_hidden_size, "n_states": c.n_states, "n_heads": c.n_heads,
            "n_kv_heads": c.n_kv_heads, "head_dim": c.head_dim, "intermediate": c.intermediate_size, "vocab": c.vocab_size,
            "draft_vocab": c.draft_vocab_size, "capacity": self.capacity, "rope_theta": c.rope_theta, "rms_eps": c.rms_eps,
            "rope_style": list(RopeStyle).index(c.rope_style), "feature_norm": list(FeatureNorm).index(c.feature_norm),
            "feedback": list(Feedback).index(c.feedback), "residual": list(Residual).index(c.residual),
            "head_norm": int(c.head_norm), "qk_norm": int(c.qk_norm),
        })  # fmt: skip

    def _make_weights(self) -> Any:
        struct = ffi.new("rs_eagle3_weights *")
        self._pointers = {name: to_c(array) for name, array in self._arrays.items()}
        for name in _PLAIN:
            setattr(struct, name, self._pointers.get(name, ffi.NULL))
        for name in BIASED:
            setattr(struct, f"{name}_bias", self._pointers.get(f"{name}.bias", ffi.NULL))
        struct.fc_norm = self._pointers.get("fc_norm", ffi.NULL)
        if self.config.feature_norm is FeatureNorm.PER_STATE:
            self._per_state = ffi.new(
                "float *[]", [self._pointers[f"fc_norm.{i}"] for i in range(self.config.n_states)]
            )
            struct.fc_norm_state = self._per_state
        return struct
