"""The calls of a decode cycle in C (native/cycle.c): builds the structs that C works on.

Neither target nor drafter: `llama/target.py` and `llama/eagle3.py` own rows and errors, and do the same in Python where
no C is built or more is asked. Shape legend: T rows, N captured states, Ht target width, H drafter width, V vocabulary,
k draft length.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.decoding.target import Penalized
from refspec.llama import api
from refspec.llama.capture import Floats
from refspec.llama.context import Context, RowBatch
from refspec.reference.ops import Ids
from refspec.reference.sampling import TARGET, Sampler

_FIELDS = {"token": "int32_t *", "embd": "float *", "pos": "int32_t *", "logits": "int8_t *"}


def possible() -> bool:
    """Whether C is built and its mirror of llama.cpp's batch fits this llama-cpp-python."""
    if native.lib is None:
        return False
    ffi, theirs = native.ffi, api.api.llama_batch
    fields = [(name, getattr(theirs, name).offset) for name, *_ in theirs._fields_]
    ours = [(name, field.offset) for name, field in ffi.typeof("rs_batch").fields]
    return fields == ours and bool(ffi.sizeof("rs_batch") == ctypes.sizeof(theirs))


def _set_functions(struct: Any, **functions: Any) -> None:
    for field, function in functions.items():
        address = ctypes.cast(function, ctypes.c_void_p).value if function is not None else 0
        setattr(struct, field, native.ffi.cast(native.ffi.typeof(getattr(struct, field)), address))


def _set_batch(mirror: Any, batch: RowBatch) -> None:
    struct = batch.prepare(1, 0, "all")
    for field, kind in _FIELDS.items():
        setattr(mirror, field, native.ffi.cast(kind, getattr(struct, field) or 0))


def _floats(values: Floats) -> Any:
    return native.ffi.from_buffer("float[]", np.ascontiguousarray(values, np.float32))


class _Timed:
    """A struct of C that counts the time in llama.cpp."""

    c: Any

    def take_seconds(self) -> float:
        """Time in llama.cpp since this was last asked."""
        seconds: float = self.c.seconds
        self.c.seconds = 0.0
        return seconds


class NativeTarget(_Timed):
    """`rs_target` for one target; what it points to is kept alive here."""

    def __init__(self, context: Context, batch: RowBatch, layers: Sequence[int], *, width: int, vocab: int) -> None:
        """Layers [N] are those of the staged layer inputs; none when states are captured otherwise or not at all."""
        ffi = native.ffi
        self.c = c = ffi.new("rs_target *")
        self._run, self._cast = native.lib.rs_target_run, ffi.cast
        self._pointer, self._address = ffi.typeof("float *"), ffi.typeof("uintptr_t")
        _set_functions(c, decode=api.decode, logits_ith=api.get_logits_ith, layer_input=api.get_layer_input)
        c.context = ffi.cast("void *", context.handle)
        _set_batch(c.batch, batch)
        ids = ffi.new("uint32_t[]", list(layers))
        c.layers, c.n_states, c.width, c.vocab, c.capacity = ids, len(layers), width, vocab, len(batch.tokens)
        self._keep = (context, batch, ids)
        self._features: Floats | None = None
        self._states = len(layers)

    def keep_states(self, features: Floats | None) -> None:
        """Where the next runs leave their states: features [>=T, N, Ht], None keeps none."""
        c = self.c
        if features is None:
            c.n_states = 0
        else:
            c.n_states = self._states
            if features is not self._features:  # a buffer that has grown
                self._features = features
                c.features = self._cast(self._pointer, features.ctypes.data)

    def run(self, rows: int, first: int) -> int:
        """Run the first rows of the batch: the status."""
        status: int = self._run(self.c, rows, first)
        return status

    def logits(self) -> int:
        """Address of the logits [T, V] of the last run, 0 when there are none."""
        return int(self._cast(self._address, self.c.logits))


class NativeVerifier:
    """`rs_verifier` for one target, sampler and seed; what it points to is kept alive here."""

    def __init__(
        self, target: NativeTarget, context: Context, sampler: Sampler, seed: int, *, pair_rows: bool,
        penalties: Penalized | None = None,
    ) -> None:  # fmt: skip
        """The penalties' Penalizer has its C struct."""
        ffi, room, vocab = native.ffi, int(target.c.capacity), int(target.c.vocab)
        c_sampler = native.c_sampler(sampler)
        self.c = c = ffi.new("rs_verifier *")
        self._step, self._buffer, self._unpack = native.lib.rs_verify_step, ffi.from_buffer, ffi.unpack
        self._ids = ffi.typeof("int32_t[]")
        _set_functions(c, remove=api.memory_seq_rm)
        rows, coins = ffi.new("float *[]", room), ffi.new("double[]", room)
        p, order, self._tokens = ffi.new("double[]", vocab), ffi.new("int32_t[]", vocab), ffi.new("int32_t[]", room)
        c.target, c.memory, c.sampler = target.c, ffi.cast("void *", context.memory), c_sampler[0]
        c.pair_rows, c.seed, c.stream = pair_rows, seed % 2**64, TARGET
        c.rows, c.coins, c.p, c.order, c.tokens = rows, coins, p, order, self._tokens
        self._keep = (target, context, c_sampler, rows, coins, p, order, penalties)
        if penalties is not None:
            penalizer, history, c.counted_from = penalties
            c.penalties, c.history = penalizer.c, ffi.from_buffer("int32_t[]", history)

    def step(self, pending: int, draft: npt.NDArray[np.int32], first: int, position: int) -> int:
        """`rs_verify_step` for draft [k]: the number accepted, or a status."""
        accepted: int = self._step(self.c, pending, self._buffer(self._ids, draft), len(draft), first, position)
        return accepted

    @property
    def ran(self) -> bool:
        """Whether the tokens of the last step have been run."""
        return bool(self.c.ran)

    def decided(self, n: int) -> list[int]:
        """The first n tokens that the last step decided."""
        tokens: list[int] = self._unpack(self._tokens, n)
        return tokens


class NativeChain(_Timed):
    """`rs_chain` for one drafter; what it points to is kept alive here."""

    def __init__(
        self, encoder: Context, decoder: Context, features: RowBatch, steps: RowBatch, last_g: Floats, *,
        fc_norm: Floats | None, output_norm: Floats | None, n_states: int, vocab: int, eps: float,
    ) -> None:  # fmt: skip
        """Batches of equal capacity; fc_norm [N, Ht] or None, output_norm [H] for post-norm feedback or None."""
        ffi = native.ffi
        self._call_extend, self._call_draft = native.lib.rs_chain_extend, native.lib.rs_chain_draft
        self._cast, self._buffer, self._address = ffi.cast, ffi.from_buffer, ffi.typeof("uintptr_t")
        self._floats, self._ids = ffi.typeof("float[]"), ffi.typeof("int32_t[]")
        self.c = c = ffi.new("rs_chain *")
        _set_functions(c, encode=api.encode, decode=api.decode, logits_ith=api.get_logits_ith, states=api.get_nextn)
        c.encoder, c.decoder = ffi.cast("void *", encoder.handle), ffi.cast("void *", decoder.handle)
        _set_batch(c.features, features)
        _set_batch(c.steps, steps)
        norms = [] if fc_norm is None else [_floats(row) for row in fc_norm]
        norm_pointers = ffi.new("float *[]", norms) if norms else ffi.NULL
        sources = ffi.new("float *[]", n_states)
        post = ffi.NULL if output_norm is None else _floats(output_norm)
        last = ffi.from_buffer("float[]", last_g)
        c.fc_norm, c.output_norm, c.sources, c.last_g = norm_pointers, post, sources, last
        c.n_states, c.target_width = n_states, features.states.shape[1] // n_states
        c.width, c.vocab, c.capacity, c.eps = steps.states.shape[1], vocab, len(steps.tokens), eps
        self._keep = (encoder, decoder, features, steps, last_g, norms, norm_pointers, sources, post, last)

    def extend(self, tokens: Ids, features: Floats, first: int) -> int:
        """`rs_chain_extend` for tokens [T] int32 and features [T, N*Ht] float32, both without gaps: its status."""
        ids, floats = self._buffer(self._ids, tokens), self._buffer(self._floats, features)
        status: int = self._call_extend(self.c, ids, floats, len(tokens), first)
        return status

    def draft(self, tokens: Ids, confidence: Floats, first: int) -> int:
        """`rs_chain_draft` into tokens [k] int32 and confidence [k] float32: its status."""
        ids, floats = self._buffer(self._ids, tokens), self._buffer(self._floats, confidence)
        status: int = self._call_draft(self.c, ids, floats, len(tokens), first)
        return status

    def outputs(self) -> tuple[int, int]:
        """Addresses of the newest row's logits and state, 0 when there are none."""
        return int(self._cast(self._address, self.c.logits)), int(self._cast(self._address, self.c.state))

    def resume(self, logits: int, state: int) -> None:
        """Draft from a row that was run outside C."""
        self.c.logits, self.c.state = self._cast("float *", logits), self._cast("float *", state)
