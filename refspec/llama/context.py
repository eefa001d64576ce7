"""One llama.cpp context: its memory, and the batches that run through it.

One sequence, sequence 0, with contiguous positions from 0; `tree_batch.py` and `sequences.py` use others. Not a
decoding loop. Every limit whose violation ends the process is checked here: the batch size, thread counts, a context
used after it was closed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError, UsageError
from refspec.llama import api
from refspec.llama.memory import available, position_bytes
from refspec.llama.model import Model

MAX_THREADS = 512  # ggml's own limit; above it the process ends
MOST_SCORES = 1 << 30  # bytes of attention scores; more is left to llama.cpp


def default_threads() -> int:
    """The processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(len(affinity(0)) if affinity else os.cpu_count() or 1, MAX_THREADS))


class Context:
    """Memory for `n_ctx` positions of one model; `handle` is the address llama.cpp knows it by, 0 once closed."""

    def __init__(
        self, model: Model, *, n_ctx: int, n_batch: int, n_ubatch: int, n_threads: int | None = None,
        n_threads_batch: int | None = None, kv_type: str = "f16", flash_attn: str = "auto", n_rs_seq: int = 0,
        n_seq_max: int = 1, streams: bool = False, eval_callback: Any = None, eval_data: int = 0,
        lender: Context | None = None,
    ) -> None:  # fmt: skip
        """`streams`: sequences share no positions. flash_attn "auto": llama.cpp decides, but not on a processor.

        There its flash attention reads keys and values once for each head and token: of SmolLM2-135M after 6000 tokens,
        one takes five times as long with it and eight take eleven times as long. Without it scores need memory.
        UsageError for a setting, BackendError when llama.cpp refuses.
        """
        n_threads = default_threads() if n_threads is None else n_threads
        n_threads_batch = n_threads if n_threads_batch is None else n_threads_batch
        _check_settings(n_ctx, n_batch, n_ubatch, n_threads, n_threads_batch, kv_type, flash_attn)
        self.model = model
        self.path: Path = model.info.path
        if n_seq_max > min(n_batch, n_ctx):
            raise UsageError(f"n_ctx = {n_ctx} (-c) is too small for {n_seq_max} sequences (--tree); give {n_seq_max}")
        _check_memory(model, n_ctx, kv_type)
        self._borrowers: weakref.WeakSet[Context] = weakref.WeakSet()
        values: dict[str, Any] = {}
        if eval_callback is not None:
            values = {"cb_eval": eval_callback, "cb_eval_user_data": eval_data}
        if lender is not None:
            values["ctx_other"] = lender.alive()
        # trees: several sequences over the same cells; separate streams would copy the prefix, or abort
        if n_seq_max > 1 and not streams:
            values["kv_unified"] = True
        scores = 4 * model.n_head * n_ctx * min(n_ubatch, n_ctx) // (n_seq_max if streams else 1)
        plain = flash_attn == "auto" and model.on_processor and kv_type != "q8_0" and scores <= MOST_SCORES
        flash = "off" if plain else flash_attn
        params = api.context_params(
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max, n_rs_seq=n_rs_seq,
            n_threads=n_threads, n_threads_batch=n_threads_batch, flash_attn_type=api.FLASH_ATTN[flash],
            type_k=api.KV_TYPES[kv_type], type_v=api.KV_TYPES[kv_type], no_perf=True, swa_full=True, **values,
        )  # fmt: skip
        api.forget_errors()
        with api.delayed_signals():
            handle = api.new_context(model.handle, params)
            # The finalizer keeps all four alive: llama.cpp reads them until the context is freed.
            self._finalizer = weakref.finalize(self, _free, handle, model, lender, eval_callback)
        if not handle:
            why = api.reason("probably too little memory")
            raise BackendError(f"{self.path}: llama.cpp made no context of {n_ctx} positions: {why}")
        self.handle: int = handle
        if lender is not None:
            lender._borrowers.add(self)
        self.memory: int = api.context_memory(handle)
        if not self.memory:
            self.close()
            raise BackendError(f"{self.path}: this architecture has no key/value memory; use a text generation model")
        self.n_ctx = min(n_ctx, int(api.context_n_ctx(handle)))  # llama.cpp rounds up to 256; the caller's limit holds
        self.n_batch = int(api.context_n_batch(handle))
        self.n_ubatch = int(api.context_n_ubatch(handle))

    def keep(self, n: int) -> bool:
        """Drop every position from n on; False when the memory cannot (a recurrent state beyond its history)."""
        return bool(api.memory_seq_rm(self.memory, 0, n, -1))

    def clear(self) -> None:
        """Forget every position."""
        self.alive()
        api.memory_clear(self.memory, False)

    def alive(self) -> int:
        """The handle; BackendError once closed or in a forked process, where llama.cpp would end it or hang."""
        if api.forked_from:
            api.check_process()
        if not self.handle:
            raise BackendError(f"{self.path}: already closed; load it again")
        return self.handle

    def logits(self, i: int) -> int:
        """Address of the logits of token i of the last decode, -1 the last; BackendError when there are none."""
        address: int | None = api.get_logits_ith(self.alive(), i)
        if not address:
            raise BackendError(f"{self.path}: llama.cpp returned no logits: {api.reason()}")
        return address

    def failure(self, code: int, what: str) -> BackendError:
        """The exception for a nonzero return of encode or decode."""
        why = {1: "no free slot in the context", 2: "stopped by a callback"}.get(code, api.reason(f"code {code}"))
        return BackendError(f"{self.path}: llama.cpp failed to {what}: {why}")

    def close(self) -> None:
        """Free the context now, after those that borrow from it; calling it twice is harmless."""
        for borrower in list(self._borrowers):
            borrower.close()
        self.handle = 0
        self._finalizer()


def _free(handle: int, *_keep: object) -> None:
    if handle and not api.forked_from:
        api.free_context(handle)


def _check_settings(
    n_ctx: int, n_batch: int, n_ubatch: int, n_threads: int, n_threads_batch: int, kv_type: str, flash_attn: str
) -> None:
    check_counts(
        n_ctx=(n_ctx, 1 << 30), n_batch=(n_batch, 1 << 20), n_ubatch=(n_ubatch, 1 << 20),
        n_threads=(n_threads, MAX_THREADS), n_threads_batch=(n_threads_batch, MAX_THREADS),
    )  # fmt: skip
    if kv_type not in api.KV_TYPES:
        raise UsageError(f"kv_type = {kv_type!r} is not one of {', '.join(api.KV_TYPES)}")
    if flash_attn not in api.FLASH_ATTN:
        raise UsageError(f"flash_attn = {flash_attn!r} is not one of {', '.join(api.FLASH_ATTN)}")
    if kv_type == "q8_0" and flash_attn == "off":
        raise UsageError("kv_type = 'q8_0' needs flash attention; choose flash_attn 'auto' or 'on', or another kv_type")


def _check_memory(model: Model, n_ctx: int, kv_type: str) -> None:
    """UsageError for more positions than memory has room for: the system would end the process without a word."""
    each, room = position_bytes(model.info, kv_type), available()
    if model.on_processor and room is not None and each * n_ctx > room:
        sizes = f"{each * n_ctx / 2**30:.1f} GiB, and {room / 2**30:.1f} are free"
        raise UsageError(
            f"{model.info.path}: a context of {n_ctx} tokens takes {sizes}; give less than {max(room // each, 1)} (-c)"
        )


def check_counts(**settings: tuple[int, int]) -> None:
    """UsageError unless each setting, given as (value, highest), is an integer from 1 to its highest."""
    for name, (value, high) in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise UsageError(f"{name} = {value!r} is outside 1..{high}")


def check_threads(**threads: int | None) -> None:
    """UsageError unless each is None or a number of threads llama.cpp takes, for drafters that use no context."""
    check_counts(**{name: (count, MAX_THREADS) for name, count in threads.items() if count is not None})


class RowBatch:
    """Preallocated arrays of one `llama_batch` for up to `capacity` tokens of sequence 0; reused by every call."""

    def __init__(self, capacity: int, *, width: int = 0, with_tokens: bool = True) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.states = np.zeros((capacity, width), np.float32)
        self._all = np.ones(capacity, np.int8)
        self._none = np.zeros(capacity, np.int8)
        self._flags = {
            "all": self._all.ctypes.data,
            "none": self._none.ctypes.data,
            "last": 0,
        }  # NULL = last token only
        self._steps = np.arange(capacity, dtype=np.int32)
        self.struct = api.Batch(
            token=self.tokens.ctypes.data if with_tokens else None,
            embd=self.states.ctypes.data if width else None,
            pos=self.positions.ctypes.data,
        )

    def put(self, tokens: Sequence[int] | npt.NDArray[np.integer[Any]]) -> bool:
        """Copy token ids [n]; False when one is not a 32-bit integer, which an assignment would wrap silently."""
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32:
            for t in tokens:
                if not isinstance(t, (int, np.integer)) or not -(1 << 31) <= t < 1 << 31:
                    return False
        self.tokens[: len(tokens)] = tokens
        return True

    def prepare(self, n: int, first: int, outputs: str) -> Any:
        """The struct for n tokens at positions first..first+n-1; outputs are of "all", the "last" or "none" of them."""
        if n == 1:
            self.positions[0] = first
        else:
            np.add(self._steps[:n], first, out=self.positions[:n])
        struct = self.struct
        struct.n_tokens = n
        struct.logits = self._flags[outputs]
        return struct
