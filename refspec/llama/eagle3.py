"""LlamaEagle3Drafter: an eagle3 GGUF run by llama.cpp, normalized by refspec where llama.cpp is not.

llama.cpp's eagle3 graph feeds back the pre-norm state and knows no norm per captured state. Both act on buffers the
host sees: the captured features before ENCODE (`fc_norm`), and the returned state before it is fed back
(`output_norm`). So the same graph runs EAGLE-3 and EAGLE 3.1. A norm over the concatenation is in the graph itself
(`norm_before_fc`).

Rows and alignment: `base.py`. Shape legend: T rows, H drafter width, Ht target width, N captured states, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.decoding.draft_penalties import DraftPenalties
from refspec.errors import BackendError, ShapeError
from refspec.gguf import drafter_meta
from refspec.gguf.header import GgufSource
from refspec.gguf.io import read_gguf_header, read_tensor
from refspec.llama import api, weights
from refspec.llama.capture import Floats, Views
from refspec.llama.context import Context, RowBatch
from refspec.llama.host_ops import PerStateNorm, argmax_prob, copy_rows, post_norm, pre_norm
from refspec.llama.model import Model
from refspec.llama.native_calls import NativeChain, possible
from refspec.llama.pair_checks import Lender, check_pair, drafter_config
from refspec.reference.config import FeatureNorm, Feedback
from refspec.reference.draft import Draft, Stop, check_draft_arguments
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

ONE_PASS = 32  # rows up to which all logits are computed to keep those of the last; above it, the last row goes alone
OUTPUT_FLOATS = 1 << 24  # llama.cpp reserves logits for every encoded row: 64 MiB at most
MARGIN = 64  # positions beyond the target's context, for drafts at its end


class LlamaEagle3Drafter:
    """The Drafter on llama.cpp; borrows the target's embedding and head when its file has none."""

    def __init__(
        self,
        path: GgufSource,
        target: Lender,
        *,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_gpu_layers: int = 0,
        kv_type: str = "f16",
        flash_attn: str = "auto",
        panels: bool = True,
        n_seq_max: int = 1,
    ) -> None:
        """Load a drafter made for `target`; n_seq_max > 1 is for trees, `panels` as for the target.

        Raises CheckpointError (file), ShapeError (for another target), BackendError.
        """
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
        self.model = Model(
            info,
            n_gpu_layers=n_gpu_layers,
            arch_override=override,
            held=weights.choose(info, n_gpu_layers=n_gpu_layers, panels=panels),
        )
        settings: dict[str, Any] = {
            "n_batch": rows, "n_ubatch": rows, "n_threads": n_threads, "n_threads_batch": n_threads_batch, "kv_type": kv_type,
            "flash_attn": flash_attn, "lender": target.context if borrows else None,
        }  # fmt: skip
        self.context = Context(self.model, n_ctx=target.n_ctx + MARGIN, n_seq_max=n_seq_max, **settings)
        # ENCODE in a context of its own: llama.cpp builds a graph anew whenever a context's call differs from the one
        # before.
        self._encoder = Context(self.model, n_ctx=rows, **settings)
        api.set_nextn(self.context.handle, True, True)
        api.set_nextn(self._encoder.handle, True, True)
        self._rows = min(rows, self.context.n_ubatch, self._encoder.n_ubatch)
        self._features = RowBatch(self._rows, width=c.n_states * c.target_hidden_size, with_tokens=False)
        self._steps = RowBatch(self._rows, width=c.hidden_size)
        self._norm_features: Callable[[Floats, Floats], None] = copy_rows
        fc_norm = output_norm = None
        if c.feature_norm is FeatureNorm.PER_STATE:
            # [N, Ht]
            fc_norm = np.array([v for _, v in sorted(drafter_meta.fc_norm_values(info, c).items())], np.float32)
            self._norm_features = PerStateNorm(fc_norm, c.rms_eps, self._rows)
        self._feed_back: Callable[[int, Floats], None] = pre_norm(c.hidden_size)
        if c.feedback is Feedback.POST_NORM:
            output_norm = read_tensor(info, drafter_meta.TENSORS["output_norm"])
            self._feed_back = post_norm(output_norm, c.rms_eps)
        self._best = argmax_prob(c.vocab_size)
        self._views = Views()
        self._last_g = np.empty((1, c.hidden_size), np.float32)  # state of the last true row, to run it again
        self._last_token = 0
        self._chain: NativeChain | None = None
        if possible():
            self._chain = NativeChain(
                self._encoder, self.context, self._features, self._steps, self._last_g[0], fc_norm=fc_norm,
                output_norm=output_norm, n_states=c.n_states, vocab=c.vocab_size, eps=c.rms_eps,
            )  # fmt: skip
        self._logits = self._state = 0  # addresses of the newest row's outputs; 0 when they are gone
        self._held = 0  # rows in the cache, drafted ones included
        self.penalties: DraftPenalties | None = None
        self.n_rows = 0
        self.seconds = 0.0  # inside llama.cpp only: what refspec does around it is refspec's own time
        self._draft_ids = read_tensor(info, "d2t") if "d2t" in info.tensors else np.arange(c.vocab_size)  # [D]
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
            raise ShapeError(
                f"{self.path}: {n} rows after {self.n_rows} exceed the drafter's context of {self.context.n_ctx}"
            )
        self._drop_drafted()
        # Outputs: all rows or none, because the eagle3 graph ignores which rows are marked and returns the first ones.
        silent = n if n <= ONE_PASS and n <= self._rows else n - 1
        start = self.n_rows
        try:
            if silent == n:
                if n and self._chain is not None:
                    self._true_rows_c(self._chain, tokens, features)
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
        """The same, and the mean log probability of the likeliest token after each of these rows, penalties left out.

        nan without a row, and for more rows than run in one pass, whose logits are not computed.
        """
        self.extend(tokens, features)
        n, total = len(tokens), 0.0
        if not 0 < n <= min(ONE_PASS, self._rows):
            return math.nan
        for i in range(n):
            token, confidence = self._best(api.get_logits_ith(self.context.handle, i))
            if token < 0:
                raise self._not_finite()
            total += math.log(confidence)
        return total / n

    def draft(
        self,
        k: int,
        *,
        coins: npt.NDArray[np.float64] | None = None,
        sampler: Sampler | None = None,
        stop: Stop | None = None,
    ) -> Draft:
        """Chain up to k draft tokens after the last true row: argmax, or by coins [k] from the sampler's law; `stop`
        may end it.

        Fewer when there is no row to start from or the context is full. BackendError when the logits are not finite.
        """
        check_draft_arguments(k, coins, sampler)
        self.context.alive()
        k = min(k, self.context.n_ctx - self.n_rows + 1) if self.n_rows else 0
        if sampler is not None and self._forbids_all(sampler):
            k = 0
        tokens = np.empty(k, np.int32)
        confidence = np.empty(k, np.float32)
        q_draft = None if sampler is None else np.zeros((k, self.config.vocab_size))
        if k and (self._held != self.n_rows or not self._logits):
            self._run_last_again()
        position = self.n_rows
        if (
            self._chain is not None
            and sampler is None
            and self.probe is None
            and stop is None
            and self.penalties is None
        ):
            self._draft_c(self._chain, tokens, confidence)
            return Draft(tokens, None, confidence)
        for i in range(k):
            if self.probe is not None:
                self._tell(i)
            if sampler is None or coins is None or q_draft is None:
                token, confidence[i] = self._best(self._address(tokens[:i]))
                if token < 0:
                    raise self._not_finite()
                if stop is not None and stop(i, float(confidence[i])):
                    return Draft(tokens[:i], None, confidence[:i])
            else:
                q_draft[i] = q = native.p_target(
                    self._views.at(self._address(tokens[:i]), 1, self.config.vocab_size)[0], sampler
                )
                if stop is not None and stop(i, float(q.max())):  # before the coin: see `base.Stop`
                    return Draft(tokens[:i], q_draft[:i], confidence[:i])
                token = native.invert_cdf(q, float(coins[i]))
                confidence[i] = q[token]
            tokens[i] = token
            if i + 1 < k:  # the last draft token needs no row of its own
                self._feed_back(self._state, self._steps.states)
                self._steps.tokens[0] = token
                self._decode(1, position, "all")
                position += 1
        return Draft(tokens, q_draft, confidence)

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

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""
        self._chain = None
        self._encoder.close()
        self.context.close()
        self.model.close()

    def _address(self, drafted: npt.NDArray[np.int32]) -> int:
        """Of the newest row's logits [V], as they are or under the penalties."""
        if self.penalties is None:
            return self._logits
        row = self._views.at(self._logits, 1, self.config.vocab_size)[0]
        self._penalized: Array = self.penalties(row, drafted.tolist())  # kept while its address is in use
        return int(self._penalized.ctypes.data)

    def _drop_drafted(self) -> None:
        if self._held != self.n_rows:
            self.context.keep(self.n_rows)
            self._held = self.n_rows
            self._logits = self._state = 0

    def _true_rows(self, tokens: Ids, features: Array, outputs: str) -> None:
        """ENCODE rows to states g, then DECODE (token, g) at the next positions."""
        n = len(tokens)
        if (
            not self._steps.put(tokens)
            or self._steps.tokens[:n].min() < 0
            or self._steps.tokens[:n].max() >= self.config.vocab_size
        ):
            raise self._bad_token(tokens)  # llama.cpp reads -1 as "no token" and computes on
        if not math.isfinite(features.sum(dtype=np.float64)):  # llama.cpp would compute on and return nonsense
            raise self._bad_states()
        self._norm_features(features, self._features.states)
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

    def _draft_c(self, chain: NativeChain, tokens: npt.NDArray[np.int32], confidence: Floats) -> None:
        """The argmax chain in one call of C, into tokens and confidence [k]."""
        if not len(tokens):
            return
        api.forget_errors()
        # before the call: whatever interrupts it, these rows are dropped later
        self._held = self.n_rows + len(tokens) - 1
        status = chain.draft(tokens, confidence, self.n_rows)
        self.seconds += chain.take_seconds()
        self._logits, self._state = chain.outputs()
        if status == native.lib.RS_NOT_FINITE:
            raise self._not_finite()
        if status:
            raise self.context.failure(chain.c.code, f"draft {len(tokens)} tokens at row {self.n_rows}")

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
            self._logits = api.get_logits_ith(handle, -1)
            self._state = api.get_nextn(handle) + 4 * (n - 1) * self.config.hidden_size
            if not self._logits:
                raise BackendError(f"{self.path}: llama.cpp returned no logits: {api.reason()}")
            if self._chain is not None:
                self._chain.resume(self._logits, self._state)

    def _run_last_again(self) -> None:
        """The outputs of the last true row, after drafting has overwritten them."""
        if self._last_token < 0:
            raise BackendError(
                f"{self.path}: extend the drafter after a rollback before drafting; its last state was not kept"
            )
        self.context.keep(self.n_rows - 1)
        self._steps.states[0], self._steps.tokens[0] = self._last_g[0], self._last_token
        self._decode(1, self.n_rows - 1, "all")

    def _bad_token(self, tokens: Ids) -> ShapeError:
        low, high = min(int(t) for t in tokens), max(int(t) for t in tokens)
        return ShapeError(f"{self.path}: token ids {low}..{high} leave the vocabulary of {self.config.vocab_size}")

    def _bad_states(self) -> BackendError:
        return BackendError(
            f"{self.path}: the target's states from row {self.n_rows} on are not finite; check the target"
        )

    def _not_finite(self) -> BackendError:
        return BackendError(f"{self.path}: the drafter's logits are not finite; its weights are damaged")

    def _forbids_all(self, sampler: Sampler) -> bool:
        """Whether the logit bias leaves nothing of the draft vocabulary to sample."""
        forbidden = sampler.bias_ids[np.isneginf(sampler.bias_values)]
        return len(forbidden) >= len(self._draft_ids) and bool(np.isin(self._draft_ids, forbidden).all())

    def _tell(self, depth: int) -> None:
        assert self.probe is not None
        logits = self._views.at(self._logits, 1, self.config.vocab_size)[0]
        self.probe(depth, logits.copy(), self._views.at(self._state, 1, self.config.hidden_size)[0].copy())
