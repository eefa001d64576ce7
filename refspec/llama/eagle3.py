"""LlamaEagle3Drafter: an eagle3 GGUF run by llama.cpp, normalized by refspec where llama.cpp is not.

llama.cpp's eagle3 graph feeds back the pre-norm state and knows no norm per captured state. Both act on buffers the
host sees: the captured features before ENCODE (`fc_norm`), and the returned state before it is fed back
(`output_norm`). So the same graph runs EAGLE-3 and EAGLE 3.1. A norm over the concatenation is in the graph itself
(`norm_before_fc`).

Rows and alignment: `decoding/drafter.py`. Shape legend: T rows, H drafter width, Ht target width, N captured states,
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from refspec import native
from refspec.errors import BackendError, ShapeError
from refspec.gguf import drafter_meta
from refspec.gguf.header import GgufSource
from refspec.gguf.io import read_gguf_header, read_tensor
from refspec.llama import api, weights
from refspec.llama.capture import Floats, Views
from refspec.llama.context import Context, RowBatch
from refspec.llama.native_calls import NativeChain, possible
from refspec.llama.pair_checks import Lender, check_pair, drafter_config
from refspec.reference.chain import ChainDrafter
from refspec.reference.config import FeatureNorm, Feedback
from refspec.reference.draft import Draft
from refspec.reference.ops import Array, Ids

ONE_PASS = 32  # rows up to which all logits are computed to keep those of the last; above it, the last row goes alone
OUTPUT_FLOATS = 1 << 24  # llama.cpp reserves logits for every encoded row: 64 MiB at most
MARGIN = 64  # positions beyond the target's context, for drafts at its end


class LlamaEagle3Drafter(ChainDrafter):
    """The Drafter on llama.cpp; borrows the target's embedding and head when its file has none."""

    def __init__(
        self, path: GgufSource, target: Lender, *, n_threads: int | None = None, n_threads_batch: int | None = None,
        n_gpu_layers: int = 0, kv_type: str = "f16", flash_attn: str = "auto", panels: bool = True, n_seq_max: int = 1,
    ) -> None:  # fmt: skip
        """Load it, n_seq_max > 1 for trees; CheckpointError (file), ShapeError (other target), BackendError."""
        info = read_gguf_header(path)
        self.path = info.path
        self.config = c = drafter_config(info)
        check_pair(info, c, target.info, target.hidden_size, target.n_vocab, target.n_layer)
        if api.set_nextn is None or api.get_nextn is None:
            raise BackendError("this llama-cpp-python cannot run EAGLE-3 drafters; install version 0.3.36 or newer")
        self.capture_layers = c.capture_layers
        rows = max(16, min(512, OUTPUT_FLOATS // c.vocab_size))  # ENCODE takes at most n_ubatch rows
        borrows = not {drafter_meta.TENSORS[name] for name in drafter_meta.SHARED} <= info.tensors.keys()
        override = drafter_meta.STOCK_ARCH if info.arch != drafter_meta.STOCK_ARCH else None
        self.model = weights.load(info, n_gpu_layers=n_gpu_layers, panels=panels, arch_override=override)
        settings: dict[str, Any] = {
            "n_batch": rows, "n_ubatch": rows, "n_threads": n_threads, "n_threads_batch": n_threads_batch,
            "kv_type": kv_type, "flash_attn": flash_attn, "lender": target.context if borrows else None,
        }  # fmt: skip
        self.context = Context(self.model, n_ctx=target.n_ctx + MARGIN, n_seq_max=n_seq_max, **settings)
        # ENCODE in a context of its own: llama.cpp builds a new graph whenever a context's call differs from the one
        # before.
        self._encoder = Context(self.model, n_ctx=rows, **settings)
        api.set_nextn(self.context.handle, True, True)
        api.set_nextn(self._encoder.handle, True, True)
        self._rows = min(rows, self.context.n_ubatch, self._encoder.n_ubatch)
        self._features = RowBatch(self._rows, width=c.n_states * c.target_hidden_size, with_tokens=False)
        self._steps = RowBatch(self._rows, width=c.hidden_size)
        self._fc_norm: Floats | None = None  # [N, Ht]
        if c.feature_norm is FeatureNorm.PER_STATE:
            self._fc_norm = np.array([v for _, v in sorted(drafter_meta.fc_norm_values(info, c).items())], np.float32)
        self._output_norm: Floats | None = None  # [H] of the norm a chained state passes
        if c.feedback is Feedback.POST_NORM:
            self._output_norm = read_tensor(info, drafter_meta.TENSORS["output_norm"])
        self._views = Views()
        self._last_g = np.empty((1, c.hidden_size), np.float32)  # state of the last true row, to run it again
        self._last_token = 0
        self._in_c: NativeChain | None = None
        if possible():
            self._in_c = NativeChain(
                self._encoder, self.context, self._features, self._steps, self._last_g[0], fc_norm=self._fc_norm,
                output_norm=self._output_norm, n_states=c.n_states, vocab=c.vocab_size, eps=c.rms_eps,
            )  # fmt: skip
        self._logits = self._state = 0  # addresses of the newest row's outputs; 0 when they are gone
        self._held = 0  # rows in the cache, drafted ones included
        self.n_rows = 0
        self.seconds = 0.0  # inside llama.cpp only: what refspec does around it is refspec's own time
        self.vocab_size = self.width = c.vocab_size  # llama.cpp scatters the draft vocabulary over the target's
        self.logit_ids = None
        self.draft_ids: Ids = read_tensor(info, "d2t") if "d2t" in info.tensors else np.arange(c.vocab_size)
        self.choose = native
        # (depth, logits [V], h [H]) before each drafted token
        self.probe: Callable[[int, Array, Array], None] | None = None

    def extend(self, tokens: Ids, features: Array) -> None:
        """Drop drafted rows, then append true rows from tokens [T] and target features [T, N*Ht].

        Raises ShapeError for shapes, ids or a full context, BackendError for features that are not finite.
        """
        self.context.alive()
        n, width = len(tokens), self.config.n_states * self.config.target_hidden_size
        if features.shape != (n, width):
            raise ShapeError(f"{self.path}: features {list(features.shape)} for {n} tokens, need [{n}, {width}]")
        if self.n_rows + n > self.context.n_ctx:
            raise ShapeError(f"{self.path}: {n} rows after {self.n_rows} exceed the context of {self.context.n_ctx}")
        self._drop_drafted()
        # Outputs: all rows or none, because the eagle3 graph ignores which rows are marked and returns the first ones.
        silent = n if n <= ONE_PASS and n <= self._rows else n - 1
        start = self.n_rows
        try:
            if silent == n:
                if n and self._in_c is not None:
                    self._true_rows_c(self._in_c, tokens, features)
                elif n:
                    self._true_rows(tokens, features, "all")
            else:
                for i in range(0, silent, self._rows):
                    j = min(i + self._rows, silent)
                    self._true_rows(tokens[i:j], features[i:j], "none")
                self._true_rows(tokens[silent:], features[silent:], "all")
        except BaseException:
            self.context.keep(start)
            self._held = self.n_rows = start
            self._logits = self._state = 0
            raise

    def survey(self, tokens: Ids, features: Array) -> float:
        """`Surveys.survey`, penalties left out; nan without a row and for more rows than run in one pass."""
        self.extend(tokens, features)
        n, total = len(tokens), 0.0
        if not 0 < n <= min(ONE_PASS, self._rows):
            return math.nan
        for i in range(n):
            row = self._views.at(api.get_logits_ith(self.context.handle, i), 1, self.vocab_size)[0]
            _, confidence = native.argmax_prob(row)
            if math.isnan(confidence):
                raise self.damaged()
            total += math.log(confidence)
        return total / n

    def begin_chain(self, k: int) -> int:
        """See `ChainDrafter`; fewer where the context is full."""
        self.context.alive()
        k = min(k, self.context.n_ctx - self.n_rows + 1) if self.n_rows else 0
        if k:
            self._last_row()
        return k

    def whole_chain(self, k: int) -> Draft | None:
        """The argmax chain in one call of C."""
        chain = self._in_c
        if chain is None or self.probe is not None or self.penalties is not None:
            return None
        tokens, confidence = np.empty(k, np.int32), np.empty(k, np.float32)
        if k:
            api.forget_errors()
            self._held = self.n_rows + k - 1  # before the call: whatever interrupts it, these rows are dropped later
            status = chain.draft(tokens, confidence, self.n_rows)
            self.seconds += chain.take_seconds()
            self._logits, self._state = chain.outputs()
            if status == native.lib.RS_NOT_FINITE:
                raise self.damaged()
            if status:
                raise self.context.failure(chain.c.code, f"draft {k} tokens at row {self.n_rows}")
        return Draft(tokens, None, confidence)

    def logits(self) -> Array:
        """Logits [V] of the newest row: a view."""
        row: Array = self._views.at(self._logits, 1, self.vocab_size)[0]
        if self.probe is not None:
            state = self._views.at(self._state, 1, self.config.hidden_size)[0]
            self.probe(self._held - self.n_rows, row.copy(), state.copy())
        return row

    def advance(self, token: int) -> None:
        """One more row, from the state the feedback rule hands on."""
        self._steps.states[0] = self._handed_on(self._views.at(self._state, 1, self.config.hidden_size))[0]
        self._steps.tokens[0] = token
        self._decode(1, self._held, "all")

    def damaged(self) -> BackendError:
        """The error for logits that are not finite."""
        return BackendError(f"{self.path}: {super().damaged()}")

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows and no drafted row; ShapeError unless 0 <= n_rows <= self.n_rows."""
        if not 0 <= n_rows <= self.n_rows:
            raise ShapeError(f"{self.path}: cannot roll back to {n_rows} rows, the drafter holds {self.n_rows}")
        self.context.alive()
        if n_rows < self.n_rows:
            self._last_token = -1  # the state of the new last row was not kept
        self.n_rows = n_rows
        self._drop_drafted()

    def reset(self) -> None:
        """Forget every row and the time spent."""
        self.context.clear()
        self._held = self.n_rows = self._logits = self._state = 0
        self.seconds = 0.0
        self.grammar = None  # it was that of one output

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""
        self._in_c = None
        self._encoder.close()
        self.context.close()
        self.model.close()

    def _handed_on(self, h: Floats) -> Floats:
        """The states that rows after rows h [F, H] start from: h itself (EAGLE-3), or its norm (EAGLE 3.1)."""
        return h if self._output_norm is None else native.rms_norm(h, self._output_norm, self.config.rms_eps)

    def _drop_drafted(self) -> None:
        if self._held != self.n_rows:
            self.context.keep(self.n_rows)
            self._held = self.n_rows
            self._logits = self._state = 0

    def _true_rows(self, tokens: Ids, features: Array, outputs: str) -> None:
        """ENCODE rows to states g, then DECODE (token, g) at the next positions."""
        n = len(tokens)
        ids = self._steps.tokens[:n]
        if not self._steps.put(tokens) or ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise self._bad_token(tokens)  # llama.cpp reads -1 as "no token" and computes on
        if not math.isfinite(features.sum(dtype=np.float64)):  # llama.cpp would compute on and return nonsense
            raise self._bad_states()
        if self._fc_norm is None:
            self._features.states[:n] = features
        else:
            c = self.config
            states = features.reshape(n, c.n_states, c.target_hidden_size)  # [T, N, Ht]
            native.gather_features(
                [states[:, i] for i in range(c.n_states)], n, c.target_hidden_size, norms=list(self._fc_norm),
                eps=c.rms_eps, out=self._features.states,
            )  # fmt: skip
        api.forget_errors()
        handle, struct = self._encoder.handle, self._features.prepare(n, 0, "all")
        began = perf_counter()
        code = api.encode(handle, struct)
        self.seconds += perf_counter() - began
        if code:
            raise self._encoder.failure(code, f"encode {n} rows at row {self.n_rows}")
        # llama.cpp's buffer is overwritten by the decode that reads these states
        self._steps.states[:n] = self._views.at(api.get_nextn(handle), n, self.config.hidden_size)
        self._last_g[0] = self._steps.states[n - 1]
        self._last_token = int(tokens[-1])
        self._decode(n, self.n_rows, outputs)
        self.n_rows = self._held

    def _true_rows_c(self, chain: NativeChain, tokens: Ids, features: Array) -> None:
        """`_true_rows` with outputs "all" in one call of C."""
        n, start = len(tokens), self.n_rows
        if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32:
            if not self._steps.put(tokens):
                raise self._bad_token(tokens)
            tokens = self._steps.tokens[:n]
        api.forget_errors()
        self._logits = self._state = 0
        self._held = start + n
        status = chain.extend(tokens, np.ascontiguousarray(features, np.float32), start)
        self.seconds += chain.take_seconds()
        if status == native.lib.RS_BAD_TOKEN:
            raise self._bad_token(tokens)
        if status == native.lib.RS_NOT_FINITE:
            raise self._bad_states()
        if status:
            raise self.context.failure(chain.c.code, f"run {n} drafter rows at row {start}")
        self._logits, self._state = chain.outputs()
        self._last_token = int(tokens[-1])
        self.n_rows = start + n

    def _decode(self, n: int, first: int, outputs: str) -> None:
        handle, struct = self.context.handle, self._steps.prepare(n, first, outputs)
        self._logits = self._state = 0
        self._held = first + n  # before the call: whatever interrupts it, these rows are dropped later
        began = perf_counter()
        code = api.decode(handle, struct)
        self.seconds += perf_counter() - began
        if code:
            raise self.context.failure(code, f"run {n} drafter rows at row {first}")
        if outputs == "all":
            self._logits = self.context.logits(-1)
            self._state = api.get_nextn(handle) + 4 * (n - 1) * self.config.hidden_size
            if self._in_c is not None:
                self._in_c.resume(self._logits, self._state)

    def _last_row(self) -> None:
        """Have the outputs of the last true row, which drafting overwrites: it is run again then."""
        if self._held == self.n_rows and self._logits:
            return
        if self._last_token < 0:
            raise BackendError(f"{self.path}: extend the drafter after a rollback before drafting; the state is gone")
        self.context.keep(self.n_rows - 1)
        self._steps.states[0], self._steps.tokens[0] = self._last_g[0], self._last_token
        self._decode(1, self.n_rows - 1, "all")

    def _bad_token(self, tokens: Ids) -> ShapeError:
        low, high = min(int(t) for t in tokens), max(int(t) for t in tokens)
        return ShapeError(f"{self.path}: token ids {low}..{high} leave the vocabulary of {self.config.vocab_size}")

    def _bad_states(self) -> BackendError:
        return BackendError(f"{self.path}: the target's states from row {self.n_rows} on are not finite; check it")
