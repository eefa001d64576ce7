"""LlamaTarget: any GGUF that llama.cpp loads, with the hidden states a drafter wants.

Not a sampler: it gives logits and states, `verify.py` decides. Shape legend: T rows of the last decode, V vocabulary,
N captured states, Ht target width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec.decoding.target import Penalized, Verifier
from refspec.errors import BackendError, CheckpointError, ShapeError, UsageError
from refspec.gguf.header import GgufSource
from refspec.gguf.io import read_gguf_header
from refspec.gguf.target_checks import STAGED_ARCHS, check_boundaries, check_target
from refspec.llama import api, weights
from refspec.llama.capture import CallbackCapture, Capture, StagedCapture, Views
from refspec.llama.context import Context, RowBatch, default_threads
from refspec.llama.decoded_rows import DecodedRows
from refspec.llama.model import Model
from refspec.llama.native_calls import NativeTarget, possible
from refspec.llama.probe_cache import ask_once
from refspec.llama.rounding import BatchProbe, smallest_differing_batch
from refspec.llama.verifier import LlamaVerifier
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

DEFAULT_N_CTX = 8192  # cap of n_ctx = 0: models trained for 128k positions would ask for gigabytes of memory
MAX_REWIND = 16  # positions a recurrent (hybrid) model can be asked to take back; it keeps one state for each


class LlamaTarget:
    """One GGUF in llama.cpp as a Target; `context` may be lent to a drafter, which must be closed first."""

    def __init__(
        self, path: GgufSource, *, n_ctx: int = 0, n_threads: int | None = None, n_threads_batch: int | None = None,
        n_gpu_layers: int = 0, n_batch: int = 512, n_ubatch: int = 512, kv_type: str = "f16", flash_attn: str = "auto",
        capture_layers: Sequence[int] = (), capture: str = "auto", n_seq_max: int = 1, rewind: bool | None = None,
        repack: bool = True, panels: bool = True, pair_rows: bool = False,
    ) -> None:  # fmt: skip
        """Load a model; n_ctx 0 is what it was trained for, at most 8192; n_seq_max > 1 is for trees.

        capture_layers are boundaries: k is the residual stream entering layer k; `capture` is auto, staged or callback.
        `rewind`: rows will be taken back (None: with a drafter that captures). `panels`: refspec's kernels multiply
        where they can; `repack`: llama.cpp may repack weights. Raises CheckpointError (file), ShapeError
        (capture_layers), UsageError (settings), BackendError (llama.cpp refused).
        """
        self.info = read_gguf_header(path)
        check_target(self.info)
        self.path, self.arch, self.metadata = self.info.path, self.info.arch, self.info.metadata
        self.model = weights.load(self.info, n_gpu_layers=n_gpu_layers, panels=panels, repack=repack)
        self._check_kind()
        self.n_layer, self.hidden_size, self.n_vocab = self.model.n_layer, self.model.hidden_size, self.model.n_vocab
        self.end_tokens, self.bos, self.add_bos = self.model.end_tokens, self.model.bos, self.model.add_bos
        self.capture_layers = tuple(int(k) for k in capture_layers)
        self._views = Views()
        if n_ctx == 0:
            n_ctx = min(self.model.n_ctx_train, DEFAULT_N_CTX)
        self._capture = self._choose_capture(capture, min(n_batch, n_ctx))
        rewind = bool(self.capture_layers) if rewind is None else rewind
        recurrent = api.model_is_recurrent(self.model.handle) or api.model_is_hybrid(self.model.handle)
        # llama.cpp multiplies one row by other kernels than several; with a second row beside it, thrown away, a row
        # has the same bits in every batch (`llama/rounding.py`), and of some weights two rows cost less than one. A
        # recurrent state could not take the second row back.
        self.pair_rows = pair_rows and not recurrent
        self._recurrent = recurrent
        # other places of weights are other kernels
        self._placed = {
            "n_gpu_layers": n_gpu_layers,
            "repack": self.model.repack,
            "panels": self.model.packed.nbytes if self.model.packed else 0,
        }
        self._settings: dict[str, Any] = dict(
            n_threads=n_threads, n_threads_batch=n_threads_batch, kv_type=kv_type, flash_attn=flash_attn,
            n_seq_max=n_seq_max,
        )  # fmt: skip
        self.context = Context(
            self.model, n_ctx=n_ctx + self.pair_rows, n_batch=n_batch, n_ubatch=n_ubatch,
            n_rs_seq=MAX_REWIND if recurrent and rewind else 0, **self._settings,
            eval_callback=self._capture.callback if self._capture else None,
            eval_data=self._capture.callback_data if self._capture else 0,
        )  # fmt: skip
        if recurrent and rewind and api.context_n_rs_seq(self.context.handle) == 0:
            self.close()
            raise BackendError(
                f"{self.path}: {self.arch!r} keeps a recurrent state llama.cpp cannot take back; use no drafter"
            )
        if self._capture is not None:
            self._capture.switch(self.context.handle, True)
        self.n_ctx = self.context.n_ctx - self.pair_rows  # the second row of the last position needs a place, too
        self._batch = RowBatch(self.context.n_batch)
        self._rows = DecodedRows(
            self.context, self._batch, self._capture, self._views, states=len(self.capture_layers),
            width=self.hidden_size, vocab=self.n_vocab,
        )  # fmt: skip
        if possible() and not isinstance(self._capture, CallbackCapture):
            self._rows.native = NativeTarget(
                self.context, self._batch, self.capture_layers, width=self.hidden_size, vocab=self.n_vocab
            )

    @property
    def n_past(self) -> int:
        """Positions held."""
        return self._rows.n_past

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Tokens [n_past] of the positions held: a view."""
        return self._rows.text[: self._rows.n_past]

    @property
    def restores(self) -> int:
        """The first position whose state `rollback` brings back, 0 but for recurrent architectures."""
        return self._rows.restores if self._recurrent else 0

    @property
    def seconds(self) -> float:
        """Time inside llama.cpp only: what refspec does around it is refspec's own time."""
        return self._rows.seconds

    def decode(self, tokens: Sequence[int] | Ids, *, logits: str = "all") -> int:
        """Append tokens [T] in batches; logits for "all" (T <= n_batch), the "last" or "none" of them.

        ShapeError where they do not fit, BackendError for a failure or logits not finite; what was held before stays
        held.
        """
        if not self.pair_rows or len(tokens) != 1 or logits != "all" or self.n_past >= self.n_ctx:
            return self._decode(tokens, logits)
        self._decode([tokens[0], tokens[0]], logits, spare=1)
        self.rollback(self.n_past - 1)
        self._rows.n = 1
        return 1

    def smallest_differing_batch(self) -> int | None:
        """The smallest batch, up to `rounding.MOST_TOKENS`, in which a token has other bits than in a pair, or None.

        Tried once (`ask_once`). BackendError where single tokens cannot run in pairs, or the attention is not shown.
        """
        if not self.pair_rows:
            raise BackendError(f"{self.path}: single rows are not run in pairs here, as a recurrent state forbids")
        state = os.stat(self.path)
        about = [
            os.path.realpath(self.path), state.st_size, state.st_mtime_ns,
            sorted((self._settings | self._placed).items()), default_threads(),
        ]  # fmt: skip
        return ask_once("exact", about, self._look, int) or None

    def _look(self) -> int:
        looker = BatchProbe(self.model, **self._settings)
        try:
            return smallest_differing_batch(looker.run, self.n_vocab) or 0
        finally:
            looker.close()

    def _decode(self, tokens: Sequence[int] | Ids, logits: str, spare: int = 0) -> int:
        rows, start, n, size = self._rows, self._rows.n_past, len(tokens), len(self._batch.tokens)
        if n == 0 or n > self.n_ctx + spare - start:
            raise ShapeError(
                f"{self.path}: {n} tokens after {start} do not fit into a context of {self.n_ctx}; give 1 to"
                f" {self.n_ctx - start} or a larger context"
            )
        if logits not in ("all", "last", "none") or (logits == "all" and n > size):
            raise UsageError(f"decode: logits = {logits!r} for {n} rows; choose all (at most {size} rows), last, none")
        rows.begin(n)
        try:
            if rows.native is not None and logits == "all":
                rows.put(tokens, start)
                rows.check_native(rows.native.run(n, start), n)
                rows.end_native(n, start + n)
                return n
            for i in range(0, n, size):
                part = tokens[i : i + size]
                rows.put(part, start + i)
                struct = self._batch.prepare(len(part), start + i, logits if i + size >= n else "none")
                if code := rows.run(struct, len(part), i):
                    raise rows.failure(code, len(part), start + i)
            rows.end(n, start + n, {"all": n, "last": 1, "none": 0}[logits])
            if logits != "none":
                rows.check_finite(n - 1, start + n - 1)
        except BaseException:
            rows.back_to(start)
            raise
        return n

    def verifier(self, sampler: Sampler, seed: int, penalties: Penalized | None = None) -> Verifier | None:
        """`verifier.MatchVerifier` in one call of C, under penalties if given; None where C cannot."""
        if self._rows.native is None:
            return None
        return LlamaVerifier(self, self._rows, sampler, seed, penalties, pair_rows=self.pair_rows)

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """Logits [V] of token i of the last decode: a view into llama.cpp's buffer, valid until the next decode."""
        return self._rows.logits(i)

    @property
    def capturing(self) -> bool:
        """Whether decodes keep hidden states; off, plain decoding costs what it costs without a drafter."""
        return self._rows.capturing

    @capturing.setter
    def capturing(self, wanted: bool) -> None:
        self._rows.switch(wanted)

    def features(self) -> Array:
        """Captured states [T, N*Ht] of the last decode, valid until the next; ShapeError unless `capturing`."""
        return self._rows.features()

    def rollback(self, n: int) -> None:
        """Keep positions 0..n-1; ShapeError for more than are held, BackendError where a recurrent state is gone."""
        if not 0 <= n <= self.n_past:
            raise ShapeError(f"{self.path}: cannot roll back to {n} positions, it holds {self.n_past}")
        if n == self.n_past:
            return
        self.context.alive()
        if not self.context.keep(n):
            raise BackendError(
                f"{self.path}: architecture {self.arch!r} keeps a recurrent state and cannot take back"
                f" {self.n_past - n} tokens; run it without speculation"
            )
        self._rows.n_past = self._rows.restores = n

    def reset(self) -> None:
        """Forget every position and the time spent."""
        self._rows.reset()

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a string (what is not UTF-8 becomes U+FFFD); BackendError when the file has no tokenizer."""
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
            raise ShapeError(f"{self.path}: layer 0 (embeddings) cannot be captured by callback; use capture = 'auto'")
        return CallbackCapture(self.capture_layers, self.hidden_size, capacity, self.path)


def check_kind(model: Model) -> None:
    """CheckpointError for an architecture that does not generate left to right."""
    handle, info = model.handle, model.info
    if api.model_has_encoder(handle) or not api.model_has_decoder(handle) or api.model_is_diffusion(handle):
        raise CheckpointError(f"{info.path}: architecture {info.arch!r} does not generate left to right; use a decoder")
