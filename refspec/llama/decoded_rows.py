"""DecodedRows: the positions a context holds, and what its last decode left. A target and its verifiers share one.

Not a decoder: who runs tokens says so here (`begin`, then `run` or C, then `end`). Legend: T tokens of the last decode,
V vocabulary, N captured states, Ht target width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from refspec.errors import BackendError, ShapeError
from refspec.llama import api
from refspec.llama.capture import Capture, Floats, Views
from refspec.llama.context import Context, RowBatch
from refspec.llama.native_calls import NativeTarget
from refspec.native import lib
from refspec.reference.ops import Ids


class DecodedRows:
    """Logits and states of the last decode's tokens.

    n_past      positions held
    text        [n_ctx] tokens of the positions held, then of some that no longer are
    restores    the first position that a recurrent state can go back to: it has one copy for each token of the last
                batch, and going back uses them up; llama.cpp goes further back without a word, to a wrong state
    n           T, 0 while there is nothing to read
    capturing   whether decodes keep hidden states
    seconds     time inside llama.cpp
    native      runs tokens in C, where it can
    """

    def __init__(
        self, context: Context, batch: RowBatch, capture: Capture | None, views: Views, *, states: int, width: int,
        vocab: int,
    ) -> None:  # fmt: skip
        self.context, self.batch, self.capture = context, batch, capture
        self.n_vocab, self._views = vocab, views
        self.n_past, self.n, self.seconds = 0, 0, 0.0
        self.restores = 0
        self.text = np.zeros(context.n_ctx + 1, np.int32)
        self.capturing = capture is not None
        self.native: NativeTarget | None = None
        self._states: Floats = np.empty((0, states, width), np.float32)  # [>=T, N, Ht]
        self._flat: Floats = np.empty((0, states * width), np.float32)  # the same memory
        self._logits: Floats | None = None  # view of llama.cpp's buffer; None: where C has left them
        self._first = 0  # the first token of the last decode that has logits

    def begin(self, n: int) -> None:
        """Up to n tokens are about to run: room for their states, and nothing to read until `end`."""
        self.context.alive()
        self.n = 0
        if self.capturing and len(self._states) < n:
            self._states = np.empty((n, *self._states.shape[1:]), np.float32)
            self._flat = self._states.reshape(n, -1)
            self._tell_native()
        api.forget_errors()

    def run(self, struct: Any, n: int, first: int = 0) -> int:
        """Run a batch of n tokens, keeping its states as those of `first` and on of this decode; llama.cpp's code."""
        handle = self.context.alive()
        if self.capturing and self.capture is not None:
            self.capture.begin()
        began = perf_counter()
        code: int = api.decode(handle, struct)
        self.seconds += perf_counter() - began
        if not code and self.capturing and self.capture is not None:
            self.capture.collect(handle, self._states[first : first + n])
        return code

    def end(self, n: int, n_past: int, outputs: int) -> None:
        """n tokens have run, n_past positions are held, and the last `outputs` tokens have logits."""
        if outputs:
            self._logits = self._views.at(self.context.logits(-outputs), outputs, self.n_vocab)
        self._first, self.n, self.n_past = n - outputs, n, n_past

    def check_native(self, status: int, n: int) -> None:
        """Count the time of a run of n tokens in C; BackendError or ShapeError unless it has run them."""
        native = self.native
        assert native is not None
        self.seconds += native.take_seconds()
        if status == lib.RS_NOT_FINITE:
            raise self.not_finite(self.n_past + n - 1)
        if status:
            raise self.failure(native.c.code, n, self.n_past)

    def end_native(self, n: int, n_past: int) -> None:
        """As `end`, after a run in C, which has looked at the newest logits and left those of all n tokens."""
        self._logits, self._first, self.n, self.n_past = None, 0, n, n_past

    def back_to(self, n: int) -> None:
        """After a failure: hold n positions, or none, for a recurrent state cannot always go back."""
        self.n, self.n_past = 0, n
        if not self.context.keep(n):
            self.context.clear()
            self.n_past = 0

    def reset(self) -> None:
        """Forget every position and the time spent."""
        self.context.clear()
        self.n_past, self.n, self.seconds = 0, 0, 0.0

    def switch(self, capturing: bool) -> None:
        """Have decodes keep hidden states, or no longer."""
        if self.capture is not None and capturing != self.capturing:
            self.capture.switch(self.context.alive(), capturing)
            self.capturing, self.n = capturing, 0
            self._tell_native()

    def logits(self, i: int) -> npt.NDArray[np.float32]:
        """Logits [V] of token i of the last decode: a view into llama.cpp's buffer."""
        if not self._first <= i < self.n:
            raise ShapeError(
                f"{self.context.path}: token {i} of the last decode has no logits; {self._first}..{self.n - 1} have"
            )
        if self._logits is None and self.native is not None:
            self._logits = self._views.at(self.native.logits(), self.n, self.n_vocab)
        assert self._logits is not None
        view: npt.NDArray[np.float32] = self._logits[i - self._first]
        return view

    def features(self) -> Floats:
        """Captured states [T, N*Ht] of the last decode; ShapeError while nothing is captured that could be."""
        if not self.capturing and self.capture is not None:
            raise ShapeError(f"{self.context.path}: the last decode kept no states; set capturing before it")
        return self._flat[: self.n]

    def check_finite(self, i: int, position: int) -> None:
        """BackendError unless the logits of token i decide something; `position` is its own."""
        if not math.isfinite(self.logits(i).max()):  # NaN wins every max; -inf entries alone are legal
            raise self.not_finite(position)

    def not_finite(self, position: int) -> BackendError:
        """The error for logits that decide nothing."""
        return BackendError(
            f"{self.context.path}: the logits at position {position} are not finite; the weights are damaged"
        )

    def put(self, tokens: Sequence[int] | Ids, first: int) -> None:
        """Take over token ids [T] into the batch, to run at position `first` and on; ShapeError for what is no id."""
        if not self.batch.put(tokens):
            raise ShapeError(f"{self.context.path}: tokens must be ids in 0..{self.n_vocab - 1}")
        self.text[first : first + len(tokens)] = self.batch.tokens[: len(tokens)]
        self.restores = first + 1

    def failure(self, code: int, n: int, first: int) -> Exception:
        """The error for llama.cpp's answer to the n tokens of the batch."""
        outside = [t for t in self.batch.tokens[:n].tolist() if not 0 <= t < self.n_vocab]
        if outside:  # llama.cpp has refused them; here they get a name
            return ShapeError(f"{self.context.path}: token id {outside[0]} is outside 0..{self.n_vocab - 1}")
        return self.context.failure(code, f"run {n} tokens at position {first}")

    def _tell_native(self) -> None:
        if self.native is not None:
            self.native.keep_states(self._states if self.capturing else None)
