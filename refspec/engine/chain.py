"""The drafter's part of a decode cycle in C (native/chain.c): builds the struct that C works on.

Not the drafter: `drafters/llama.py` owns rows and errors, and does the same in Python where no C is built or more than the tokens is wanted.
Shape legend: T rows, N captured states, Ht target width, H drafter width, k draft length.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from refspec import native
from refspec.engine import lib
from refspec.engine.capture import Floats
from refspec.engine.context import Context, RowBatch
from refspec.ops import Ids

_FIELDS = {"token": "int32_t *", "embd": "float *", "pos": "int32_t *", "logits": "int8_t *"}


class NativeChain:
    """`rs_chain` for one drafter; what it points to is kept alive here."""

    def __init__(
        self,
        encoder: Context,
        decoder: Context,
        features: RowBatch,
        steps: RowBatch,
        last_g: Floats,
        *,
        fc_norm: Floats | None,
        output_norm: Floats | None,
        n_states: int,
        vocab: int,
        eps: float,
    ) -> None:
        """Batches of equal capacity; fc_norm [N, Ht] or None, output_norm [H] for post-norm feedback or None."""
        ffi = native.ffi
        self._call_extend, self._call_draft = native.lib.rs_chain_extend, native.lib.rs_chain_draft
        self._cast = ffi.cast
        self._tokens = np.empty(len(steps.tokens), np.int32)
        self._floats, self._ids = ffi.typeof("float *"), ffi.typeof("int32_t *")
        self.c = c = ffi.new("rs_chain *")
        for field, function in (("encode", lib.encode), ("decode", lib.decode), ("logits_ith", lib.get_logits_ith), ("states", lib.get_nextn)):
            setattr(c, field, ffi.cast(ffi.typeof(getattr(c, field)), ctypes.cast(function, ctypes.c_void_p).value))
        c.encoder, c.decoder = ffi.cast("void *", encoder.handle), ffi.cast("void *", decoder.handle)
        for mirror, batch in ((c.features, features.prepare(1, 0, "all")), (c.steps, steps.prepare(1, 0, "all"))):
            for field, kind in _FIELDS.items():
                setattr(mirror, field, ffi.cast(kind, getattr(batch, field) or 0))
        norms = [] if fc_norm is None else [ffi.from_buffer("float[]", row) for row in np.ascontiguousarray(fc_norm, np.float32)]
        norm_pointers = ffi.new("float *[]", norms) if norms else ffi.NULL
        sources = ffi.new("float *[]", n_states)
        post = ffi.NULL if output_norm is None else ffi.from_buffer("float[]", np.ascontiguousarray(output_norm, np.float32))
        last = ffi.from_buffer("float[]", last_g)
        c.fc_norm, c.output_norm, c.sources, c.last_g = norm_pointers, post, sources, last
        c.n_states, c.target_width = n_states, features.states.shape[1] // n_states
        c.width, c.vocab, c.capacity, c.eps = steps.states.shape[1], vocab, len(steps.tokens), eps
        self._keep = (encoder, decoder, features, steps, last_g, norms, norm_pointers, sources, post, last)

    @staticmethod
    def possible() -> bool:
        """Whether C is built and its mirror of llama.cpp's batch fits this llama-cpp-python."""
        if native.lib is None:
            return False
        ffi, theirs = native.ffi, lib.api.llama_batch
        names = [name for name, *_ in theirs._fields_]
        return names == [name for name, _ in ffi.typeof("rs_batch").fields] and ffi.sizeof("rs_batch") == ctypes.sizeof(theirs)

    def extend(self, tokens: Ids, features: Floats, first: int) -> int:
        """`rs_chain_extend` for tokens [T] that fit 32 bits and float32 features [T, N*Ht] in rows without gaps: its status."""
        n = len(tokens)
        ids = self._tokens[:n]
        ids[:] = tokens
        status: int = self._call_extend(
            self.c, self._cast(self._ids, ids.ctypes.data), self._cast(self._floats, features.ctypes.data), n, first
        )
        return status

    def draft(self, tokens: Ids, confidence: Floats, first: int) -> int:
        """`rs_chain_draft` into tokens [k] int32 and confidence [k] float32: its status."""
        status: int = self._call_draft(
            self.c, self._cast(self._ids, tokens.ctypes.data), self._cast(self._floats, confidence.ctypes.data), len(tokens), first
        )
        return status

    def take_seconds(self) -> float:
        """Time in llama.cpp since this was last asked."""
        seconds: float = self.c.seconds
        self.c.seconds = 0.0
        return seconds

    def outputs(self) -> tuple[int, int]:
        """Addresses of the newest row's logits and state, 0 when there are none."""
        return int(self._cast("uintptr_t", self.c.logits)), int(self._cast("uintptr_t", self.c.state))

    def resume(self, logits: int, state: int) -> None:
        """Draft from a row that was run outside C."""
        self.c.logits, self.c.state = self._cast(self._floats, logits), self._cast(self._floats, state)
