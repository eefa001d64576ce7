"""Rows of the EAGLE-3 drafter in C: `refspec/reference/eagle3_forward.py` over a KV cache, one by one or chained.

Not a drafter; `llama/native_eagle3.py` is one. Row r has RoPE position r and sees rows 0..r, so a rollback is a step
from an earlier row. Shape legend: see `refspec/reference/config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError, ShapeError
from refspec.native.module import ffi, floats, lib, require, to_c
from refspec.native.penalties import Penalizer
from refspec.reference import config as reference
from refspec.reference.config import BIASED, DrafterConfig, FeatureNorm, Weights
from refspec.reference.ops import Array

_MATRICES = ("token_embd", *BIASED)
_VECTORS = ("attn_norm", "hidden_norm", "q_norm", "k_norm", "rope_freqs", "ffn_norm", "output_norm", "fc_norm")


class PackedMatrix(NamedTuple):
    """A matrix in one of ggml's types, and the addresses of ggml's functions for that type; 0 where none is needed."""

    data: npt.NDArray[np.uint8]  # [rows, bytes of a row]
    dot: int  # a row times a quantized input
    pack: int  # quantizes a float32 input; 0: dot takes float32
    unpack: int  # a row to float32


class Team(NamedTuple):
    """Threads that share a large matrix: addresses of three functions of OpenMP, and how many threads to ask for."""

    parallel: int
    rank: int
    size: int
    threads: int


class ChainPenalties(Protocol):
    """Penalties that drafts are chosen under, as in `decoding/draft_penalties.py`."""

    penalizer: Penalizer
    tokens: npt.NDArray[np.int32]  # [n_ctx + 2] by position
    first: int  # the first position that counts
    row: Array  # [V] scratch


class StepResult(NamedTuple):
    """What one row produced."""

    logits: Array  # [D] over the draft vocabulary
    h: Array  # [H] block output
    state_out: Array  # [H] state for the next chained row
    attention: Array | None  # [nh, row+1] weights, when asked for


class Eagle3Rows:
    """Weights and a KV cache of `capacity` rows for C; raises like Eagle3Drafter, and BackendError without C."""

    def __init__(
        self, config: DrafterConfig, weights: Weights, capacity: int, packed: Mapping[str, PackedMatrix] | None = None,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        """`packed` matrices replace the float32 ones of the same name; without a team one thread computes."""
        if lib is None:
            raise BackendError("Eagle3Rows needs the C module; build it with: python native/build_ffi.py")
        reference.check_weights(config, weights)
        self.config, self.capacity = config, capacity
        self.keys, self.values = np.zeros((2, capacity, config.n_kv_heads, config.head_dim), np.float32)
        folded = reference.fold_rope_attention(config, weights)
        self._packed = dict(packed or {})
        self._arrays = {k: floats(array) for k, array in folded.items() if k != "d2t" and k not in self._packed}
        self._team = _c_team(team)
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
        """Run cache row `row` from a token id and a state [H]: of `encode`, or state_out of the row before."""
        c, state = self.config, floats(state)
        require(state.shape == (c.hidden_size,), f"step: state {state.shape}, need [{c.hidden_size}]")
        require(row >= 0, f"step: row {row} is negative")
        logits, h, out = (np.empty(n, dtype=np.float32) for n in (c.draft_vocab_size, c.hidden_size, c.hidden_size))
        weights = np.empty((c.n_heads, row + 1), dtype=np.float32) if attention else None
        status = lib.rs_eagle3_step(
            to_c(logits), to_c(h), to_c(out), to_c(self.keys), to_c(self.values),
            ffi.NULL if weights is None else to_c(weights), to_c(self._scratch), self._config, self._weights, token,
            to_c(state), row, row,
        )  # fmt: skip
        require(status != lib.RS_BAD_TOKEN, f"step: token {token} leaves the vocabulary of {c.vocab_size}")
        require(status != lib.RS_CACHE_FULL, f"step: row {row} is outside the cache of {self.capacity} rows")
        return StepResult(logits, h, out, weights)

    def _make_config(self) -> Any:
        c = self.config
        return ffi.new("rs_eagle3_config *", {
            "hidden": c.hidden_size, "target_hidden": c.target_hidden_size, "n_states": c.n_states,
            "n_heads": c.n_heads, "n_kv_heads": c.n_kv_heads, "head_dim": c.head_dim,
            "intermediate": c.intermediate_size, "vocab": c.vocab_size, "draft_vocab": c.draft_vocab_size,
            "capacity": self.capacity, "rope_theta": c.rope_theta, "rms_eps": c.rms_eps,
            "rope_style": list(reference.RopeStyle).index(c.rope_style),
            "feature_norm": list(FeatureNorm).index(c.feature_norm),
            "feedback": list(reference.Feedback).index(c.feedback),
            "residual": list(reference.Residual).index(c.residual),
            "head_norm": int(c.head_norm), "qk_norm": int(c.qk_norm), "team": self._team,
        })  # fmt: skip

    def _make_weights(self) -> Any:
        struct = ffi.new("rs_eagle3_weights *")
        self._pointers = {name: to_c(array) for name, array in self._arrays.items()}
        self._bytes = {name: ffi.from_buffer(matrix.data) for name, matrix in self._packed.items()}
        for name in _MATRICES:
            matrix = getattr(struct, name)
            if name in self._packed:
                held = self._packed[name]
                matrix.data, matrix.row_bytes = self._bytes[name], held.data.shape[1]
                for field in ("dot", "pack", "unpack"):
                    setattr(matrix, field, ffi.cast(ffi.typeof(getattr(matrix, field)), getattr(held, field)))
            else:
                matrix.data, matrix.row_bytes = self._pointers[name], 4 * self._arrays[name].shape[1]
        for name in _VECTORS:
            setattr(struct, name, self._pointers.get(name, ffi.NULL))
        for name in BIASED:
            setattr(struct, f"{name}_bias", self._pointers.get(f"{name}.bias", ffi.NULL))
        if self.config.feature_norm is FeatureNorm.PER_STATE:
            norms = [self._pointers[f"fc_norm.{i}"] for i in range(self.config.n_states)]
            self._per_state = struct.fc_norm_state = ffi.new("float *[]", norms)
        return struct


class Eagle3Chain(Eagle3Rows):
    """Eagle3Rows with what chains of draft tokens need; each method is the function of that name in native/eagle3.c."""

    def __init__(
        self, config: DrafterConfig, weights: Weights, capacity: int, packed: Mapping[str, PackedMatrix] | None = None,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, weights, capacity, packed, team)
        # [D] target id of each draft id; None: they are the same
        self.draft_ids = np.asarray(weights["d2t"], np.int32) if "d2t" in weights else None
        sizes = {"logits": config.draft_vocab_size, "state": config.hidden_size}
        self._outputs = {
            f"{row}_{name}": np.zeros(n, np.float32) for row in ("true", "drafted") for name, n in sizes.items()
        }
        self.c = c = ffi.new("rs_eagle3_chain *")
        c.config, c.weights, c.scratch = self._config, self._weights, to_c(self._scratch)
        c.k_cache, c.v_cache = to_c(self.keys), to_c(self.values)
        for name, array in self._outputs.items():
            setattr(c, name, to_c(array))
        c.d2t = ffi.NULL if self.draft_ids is None else to_c(self.draft_ids)
        self._kept = [c.scratch, c.k_cache, c.v_cache, c.d2t]  # cffi fields do not keep what they point to alive
        self._penalized = np.empty(config.draft_vocab_size, np.float32)
        c.penalized = self._penalized_pointer = to_c(self._penalized)
        self._under: tuple[Any, ...] = ()
        self._floats, self._ids, self._buffer = ffi.typeof("float[]"), ffi.typeof("int32_t[]"), ffi.from_buffer
        self._extend, self._follow, self._draft = lib.rs_eagle3_extend, lib.rs_eagle3_follow, lib.rs_eagle3_draft

    def extend(self, tokens: npt.NDArray[np.int32], features: Array, first: int) -> int:
        """`rs_eagle3_extend` with tokens [T] and features [T, n_states*Ht], both contiguous: its status."""
        ids, states = self._buffer(self._ids, tokens), self._buffer(self._floats, features)
        return int(self._extend(self.c, ids, states, len(tokens), first))

    def survey(self, tokens: npt.NDArray[np.int32], features: Array, first: int) -> tuple[int, float]:
        """`rs_eagle3_survey` of tokens [T] and features [T, n_states*Ht], contiguous: status, mean log-probability."""
        mean, ids, states = ffi.new("double *"), self._buffer(self._ids, tokens), self._buffer(self._floats, features)
        return lib.rs_eagle3_survey(self.c, mean, ids, states, len(tokens), first), mean[0]

    def under(self, penalties: ChainPenalties | None) -> None:
        """Choose drafts under these penalties from now on; each draft needs `decide` before it."""
        held = (ffi.NULL, ffi.NULL, ffi.NULL)
        if penalties is not None:
            held = penalties.penalizer.c, ffi.from_buffer("int32_t[]", penalties.tokens), to_c(penalties.row)
        self._under = (*held, penalties)
        self.c.penalties, self.c.history, self.c.row = held
        self.c.counted_from = 0 if penalties is None else penalties.first

    def decide(self, tokens: int) -> None:
        """The number of tokens before the next draft: the output's, and any drafted after it."""
        self.c.decided = tokens

    def restart(self) -> None:
        """Continue after the last true row, without the chained ones."""
        self.c.logits, self.c.state = self.c.true_logits, self.c.true_state

    def draft(self, tokens: npt.NDArray[np.int32], confidence: Array, first: int) -> int:
        """`rs_eagle3_draft` into tokens [k] and confidence [k]: its status."""
        ids, probabilities = self._buffer(self._ids, tokens), self._buffer(self._floats, confidence)
        return int(self._draft(self.c, ids, probabilities, len(tokens), first))

    def follow(self, token: int, row: int) -> int:
        """`rs_eagle3_follow`: its status."""
        return int(self._follow(self.c, token, row))

    def logits(self) -> Array:
        """[D] of the row that drafting continues after; overwritten by the next call."""
        return self._outputs["true_logits" if self.c.logits == self.c.true_logits else "drafted_logits"]

    def state(self) -> Array:
        """[H] the state that this row hands to the next one; overwritten by the next call."""
        return self._outputs["true_state" if self.c.state == self.c.true_state else "drafted_state"]


def _c_team(team: Team | None) -> Any:
    if team is None:
        return ffi.NULL
    struct = ffi.new("rs_team *", {"threads": team.threads})
    for name in ("parallel", "rank", "size"):
        setattr(struct, name, ffi.cast(ffi.typeof(getattr(struct, name)), getattr(team, name)))
    return struct
