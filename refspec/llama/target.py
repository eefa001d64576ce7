"""LlamaTarget: any GGUF that llama.cpp loads, with the hidden states a drafter wants.

Not a sampler: it gives logits and states, `verify.py` decides. Shape legend: T rows of the last decode, V vocabulary,
N captured states, Ht target width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.decoding.target import Judge, Penalized
from refspec.errors import BackendError, CheckpointError, ShapeError, UsageError
from refspec.gguf.io import read_gguf_header
from refspec.gguf.target_checks import STAGED_ARCHS, check_boundaries, check_target
from refspec.llama import api, weights
from refspec.llama.capture import CallbackCapture, Capture, StagedCapture, Views
from refspec.llama.context import Context, RowBatch, default_threads
from refspec.llama.judge import LlamaJudge
from refspec.llama.model import Model
from refspec.llama.native_calls import NativeTarget, possible
from refspec.llama.probe_cache import ask_once
from refspec.llama.rounding import BatchProbe, smallest_differing_batch
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

DEFAULT_N_CTX = 8192  # cap of n_ctx = 0: models trained for 128k positions would ask for gigabytes of memory
MAX_REWIND = 16  # positions a recurrent (hybrid) model can be asked to take back; it keeps one state for each


class LlamaTarget:
    """One GGUF in llama.cpp as a Target; `context` may be lent to a drafter, which must be closed first."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int = 0,
        n_batch: int = 512,
        n_ubatch: int = 512,
        kv_type: str = "f16",
        flash_attn: str = "auto",
        capture_layers: Sequence[int] = (),
        capture: str = "auto",
        n_seq_max: int = 1,
        rewind: bool | None = None,
        repack: bool = True,
        panels: bool = True,
        pair_rows: bool = False,
    ) -> None:
        """Load a model; n_ctx 0 is what it was trained for, at most 8192. `capture` is auto, staged or callback;
        n_seq_max > 1 is for trees.

        capture_layers are boundaries: k is the residual stream entering layer k. `rewind`: rows will be taken back, as
        with any drafter (None: with one that captures). `panels` has refspec's kernels multiply where they can
        (`llama/matmul_hook.py`), `repack` lets llama.cpp lay out quantized weights anew. Verify batches run on
        n_threads_batch. Raises CheckpointError (file), ShapeError (capture_layers), UsageError (settings), BackendError
        (llama.cpp refused).
        """
        self.info = read_gguf_header(path)
        check_target(self.info)
        self.path, self.arch, self.metadata = self.info.path, self.info.arch, self.info.metadata
        self.model = Model(
            self.info,
            n_gpu_layers=n_gpu_layers,
            held=weights.choose(self.info, n_gpu_layers=n_gpu_layers, repack=repack, panels=panels),
        )
        self._check_kind()
        self.n_layer, self.hidden_size, self.n_vocab = self.model.n_layer, self.model.hidden_size, self.model.n_vocab
        self.end_tokens, self.bos, self.add_bos = self.model.end_tokens, self.model.bos, self.model.add_bos
        self.capture_layers = tuple(int(k) for k in capture_layers)
        self._views = Views()
        if n_ctx == 0:
            n_ctx = min(self.model.n_ctx_train, DEFAULT_N_CTX)
        self._capture = self._choose_capture(capture, min(n_batch, n_ctx))
        self._capturing = self._capture is not None
        rewind = bool(self.capture_layers) if rewind is None else rewind
        recurrent = api.model_is_recurrent(self.model.handle) or api.model_is_hybrid(self.model.handle)
        # llama.cpp multiplies one row by other kernels than several; with a second row beside it, thrown away, a row
        # has the same bits in every batch (`llama/rounding.py`), and of some weights two rows cost less than one. A
        # recurrent state could not take the second row back.
        self.pair_rows = pair_rows and not recurrent
        # other places of weights are other kernels
        self._placed = {
            "n_gpu_layers": n_gpu_layers,
            "repack": self.model.repack,
            "panels": self.model.packed is not None,
        }
        self._settings: dict[str, Any] = dict(
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            kv_type=kv_type,
            flash_attn=flash_attn,
            n_seq_max=n_seq_max,
        )
        self.context = Context(
            self.model, n_ctx=n_ctx + self.pair_rows, n_batch=n_batch, n_ubatch=n_ubatch,
            n_rs_seq=MAX_REWIND if recurrent and rewind else 0, **self._settings,
            eval_callback=self._capture.callback if self._capture else None,
            eval_data=self._capture.callback_data if self._capture else 0,
        )  # fmt: skip
        if recurrent and rewind and api.context_n_rs_seq(self.context.handle) == 0:
            self.close()
            raise BackendError(
                f"{self.path}: architecture {self.arch!r} keeps a recurrent state llama.cpp cannot take back; run it without a drafter"
            )
        if self._capture is not None:
            self._capture.attach(self.context.handle)
        self.n_ctx = self.context.n_ctx - self.pair_rows  # the second row of the last position needs a place, too
        self.n_past = 0
        self.seconds = 0.0  # inside llama.cpp only: what refspec does around it is refspec's own time
        self._batch = RowBatch(self.context.n_batch)
        self._fast: NativeTarget | None = None
        if possible() and not isinstance(self._capture, CallbackCapture):
            self._fast = NativeTarget(
                self.context, self._batch, self.capture_layers, width=self.hidden_size, vocab=self.n_vocab
            )
        self._features = np.empty((0, len(self.capture_layers), self.hidden_size), np.float32)  # [>=T, N, Ht]
        self._n_rows = 0  # rows of the last decode
        self._first_logits = 0  # the first of them that has logits
        self._logits: Array = np.empty((0, self.n_vocab), np.float32)  # view of llama.cpp's buffer

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """Append rows for tokens [T], in batches of n_batch; logits for "all" (T <= n_batch), the "last" or "none" of
        them.

        Raises ShapeError when they do not fit into the context or the vocabulary, BackendError for a failed computation
        or logits that are not finite; the positions held before stay held.
        """
        if not self.pair_rows or len(tokens) != 1 or logits != "all" or self.n_past >= self.n_ctx:
            return self._decode(tokens, logits)
        self._decode([tokens[0], tokens[0]], logits, spare=1)
        self.rollback(self.n_past - 1)
        self._n_rows = 1
        return 1

    def smallest_differing_batch(self) -> int | None:
        """The smallest batch, up to `rounding.MOST_TOKENS`, in which a row computes other bits than in a pair; None if
        there is none.

        Looked at in a small context of its own, once (`ask_once`). Raises BackendError where rows cannot be run in
        pairs, or attention not be looked at.
        """
        if not self.pair_rows:
            raise BackendError(f"{self.path}: single rows are not run in pairs here, as a recurrent state forbids")
        state = os.stat(self.path)
        about = [
            os.path.realpath(self.path),
            state.st_size,
            state.st_mtime_ns,
            sorted((self._settings | self._placed).items()),
            default_threads(),
        ]
        return ask_once("exact", about, self._look, int) or None

    def _look(self) -> int:
        looker = BatchProbe(self.model, **self._settings)
        try:
            return smallest_differing_batch(looker.run, self.n_vocab) or 0
        finally:
            looker.close()

    def _decode(self, tokens: Sequence[int] | Ids, logits: str, spare: int = 0) -> int:
        handle, n = self.context.alive(), len(tokens)
        if n == 0 or n > self.n_ctx + spare - self.n_past:
            raise ShapeError(
                f"{self.path}: {n} tokens after {self.n_past} do not fit into a context of {self.n_ctx}; give 1 to"
                f" {self.n_ctx - self.n_past} or a larger context"
            )
        size, start = len(self._batch.tokens), self.n_past
        if logits not in ("all", "last", "none") or (logits == "all" and n > size):
            raise UsageError(
                f"decode: logits = {logits!r} for {n} rows; choose all (at most {size} rows), last or none"
            )
        if self._capturing and len(self._features) < n:
            self._features = np.empty((n, *self._features.shape[1:]), np.float32)
        self._n_rows = 0  # nothing to read until this call has succeeded
        try:
            if self._fast is not None and logits == "all":
                return self._decode_c(self._fast, tokens, start)
            for i in range(0, n, size):
                part = tokens[i : i + size]
                outputs = logits if i + size >= n else "none"
                self._run(handle, part, start + i, outputs)
                if self._capturing and self._capture is not None:
                    self._capture.collect(handle, self._features[i : i + len(part)])
        except BaseException:
            self._back_to(start)
            raise
        self.n_past = start + n
        if logits != "none":
            wanted = n if logits == "all" else 1
            address = api.get_logits_ith(handle, -wanted)
            if not address:
                raise BackendError(f"{self.path}: llama.cpp returned no logits: {api.reason()}")
            self._logits = self._views.at(address, wanted, self.n_vocab)
            self._first_logits = n - wanted
            if not math.isfinite(self._logits[-1].max()):  # NaN wins every max; -inf entries alone are legal
                self.rollback(start)
                raise self._not_finite(start + n - 1)
        else:
            self._first_logits = n
        self._n_rows = n
        return n

    def _decode_c(self, fast: NativeTarget, tokens: Sequence[int] | Ids, start: int) -> int:
        """`decode` with logits "all" in one call of C."""
        n = len(tokens)
        if not self._batch.put(tokens):
            raise self._bad_token()
        api.forget_errors()
        fast.keep_states(self._features if self._capturing else None)
        status = fast.run(n, start)
        self.seconds += fast.take_seconds()
        if status:
            raise self._not_run(status, fast, n, start)
        self._ran(fast, n, start + n)
        return n

    def _ran(self, fast: NativeTarget, rows: int, n_past: int) -> None:
        """Make the rows of a run in C those of the last decode, n_past positions of them and of before being held."""
        self._logits = self._views.at(fast.logits(), rows, self.n_vocab)
        self.n_past, self._first_logits, self._n_rows = n_past, 0, rows

    def _not_run(self, status: int, fast: NativeTarget, rows: int, start: int) -> Exception:
        return (
            self._not_finite(start + rows - 1)
            if status == native.lib.RS_NOT_FINITE
            else self._failure(fast.c.code, rows, start)
        )

    def judge(self, sampler: Sampler, seed: int, penalties: Penalized | None = None) -> Judge | None:
        """`decode`, `penalties`, `verify_deterministic` with the coins of `seed`, and `rollback` as one function;

        None where C cannot run them.
        """
        return None if self._fast is None else LlamaJudge(self, self._fast, sampler, seed, penalties)

    def _back_to(self, n: int) -> None:
        """Hold n positions, or none: a recurrent state cannot always go back."""
        if not self.context.keep(n):
            self.context.clear()
            self.n_past = 0

    def _run(self, handle: int, tokens: Sequence[int] | Ids, first: int, outputs: str) -> None:
        batch, n = self._batch, len(tokens)
        if not batch.put(tokens):
            raise self._bad_token()
        if self._capturing and self._capture is not None:
            self._capture.begin()
        api.forget_errors()
        struct = batch.prepare(n, first, outputs)
        began = perf_counter()
        code = api.decode(handle, struct)
        self.seconds += perf_counter() - began
        if code:
            raise self._failure(code, n, first)

    def _failure(self, code: int, n: int, first: int) -> Exception:
        outside = [t for t in self._batch.tokens[:n].tolist() if not 0 <= t < self.n_vocab]
        if outside:  # llama.cpp has refused them; here they get a name
            return ShapeError(f"{self.path}: token id {outside[0]} is outside 0..{self.n_vocab - 1}")
        return self.context.failure(code, f"run {n} tokens at position {first}")

    def _bad_token(self) -> ShapeError:
        return ShapeError(f"{self.path}: tokens must be ids in 0..{self.n_vocab - 1}")

    def _not_finite(self, position: int) -> BackendError:
        return BackendError(f"{self.path}: the logits at position {position} are not finite; the weights are damaged")

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """Logits [V] of row i of the last decode: a view into llama.cpp's buffer, valid until the next decode."""
        row = i - self._first_logits
        if not 0 <= row < self._n_rows - self._first_logits:
            raise ShapeError(
                f"{self.path}: row {i} of the last decode has no logits; rows {self._first_logits}..{self._n_rows - 1} do"
            )
        view: Array = self._logits[row]
        return view

    def logits_pointer(self, i: int) -> int:
        """Address of logits(i), for C."""
        return int(self.logits(i).ctypes.data)

    @property
    def capturing(self) -> bool:
        """Whether decodes keep hidden states; off, plain decoding costs what it costs without a drafter."""
        return self._capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        wanted = wanted and self._capture is not None
        if wanted != self._capturing and self._capture is not None:
            self._capture.switch(self.context.alive(), wanted)
            self._capturing, self._n_rows = wanted, 0

    def features(self) -> Array:
        """Captured states [T, N*Ht] of all rows of the last decode; the buffer is reused by the next one.

        Raises ShapeError while `capturing` is off.
        """
        if not self._capturing and self._capture is not None:
            raise ShapeError(f"{self.path}: the last decode kept no states; set capturing before it")
        return self._features[: self._n_rows].reshape(self._n_rows, -1)

    def rollback(self, n: int) -> None:
        """Keep positions 0..n-1; ShapeError for more than are held, BackendError where a recurrent state is gone."""
        if not 0 <= n <= self.n_past:
            raise ShapeError(f"{self.path}: cannot roll back to {n} positions, it holds {self.n_past}")
        if n == self.n_past:
            return
        self.context.alive()
        if not self.context.keep(n):
            raise BackendError(
                f"{self.path}: architecture {self.arch!r} keeps a recurrent state and cannot take back {self.n_past - n} tokens;"
                " run it without speculation"
            )
        self.n_past = n

    def reset(self) -> None:
        """Forget every position and the time spent."""
        self.context.clear()
        self.n_past, self._n_rows, self.seconds = 0, 0, 0.0

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text (bytes that are not UTF-8 become U+FFFD); BackendError when the file has no tokenizer."""
        return self.model.tokenize(text, add_special, parse_special)

    def token_to_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens are empty unless `special`."""
        return self.model.token_to_bytes(token, special)

    def close(self) -> None:
        """Free the model and its memory, and close every drafter that borrows from it; twice is harmless."""
        self.context.close()
        self.model.close()

    def _check_kind(self) -> None:
        check_kind(self.model)

    def _choose_capture(self, how: str, capacity: int) -> Capture | None:
        check_boundaries(self.path, self.arch, self.n_layer, self.capture_layers)
        if how not in ("auto", "staged", "callback"):
            raise UsageError(f"capture = {how!r} is not one of auto, staged, callback")
        if not self.capture_layers:
            return None
        staged = self.arch in STAGED_ARCHS and api.set_layer_input is not None and api.get_layer_input is not None
        if how == "staged" and not staged:
            raise UsageError(f"{self.path}: capture = 'staged' is not possible on architecture {self.arch!r}; use auto")
        if staged and how != "callback":
            return StagedCapture(self.capture_layers, self._views)
        if 0 in self.capture_layers:
            raise ShapeError(
                f"{self.path}: capture layer 0 (embeddings) cannot be captured by callback; use capture = 'auto'"
            )
        return CallbackCapture(self.capture_layers, self.hidden_size, capacity, self.path)


def check_kind(model: Model) -> None:
    """CheckpointError for an architecture that does not generate left to right."""
    handle, info = model.handle, model.info
    if api.model_has_encoder(handle) or not api.model_has_decoder(handle) or api.model_is_diffusion(handle):
        raise CheckpointError(
            f"{info.path}: architecture {info.arch!r} does not generate left to right; use a decoder model"
        )
