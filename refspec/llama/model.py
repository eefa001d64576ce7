"""One GGUF loaded into llama.cpp, and its vocabulary.

Not a context: no memory, no computation. Tokenizer calls on a file without a tokenizer end the process inside
llama.cpp, so every one of them is refused here first.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from refspec.errors import BackendError, CheckpointError, ShapeError
from refspec.gguf.header import GgufInfo
from refspec.llama import api
from refspec.llama.matmul_hook import PackedMatrices, register, unregister


class Weights(NamedTuple):
    """How a model's weights are held; `weights.choose` decides it, `Model` obeys."""

    repack: bool = False  # llama.cpp may repack quantized weights
    packed: int = 0  # bytes of the matrices that refspec's kernels multiply with, 0 for none
    note: str | None = None  # what a user should know of it


AS_STORED = Weights()
MAX_TEXT = 1 << 30  # bytes; llama.cpp counts in 32 bits
SHALLOW = 1000  # characters any thread's stack has room for
STACK_PER_CHARACTER, MIN_STACK, MAX_STACK = 1024, 16 << 20, 1 << 30
_NO_VOCAB = 0  # LLAMA_VOCAB_TYPE_NONE


class Model:
    """Weights and vocabulary of one file; freed when the last context on them is gone, or by `close`."""

    def __init__(
        self, info: GgufInfo, *, n_gpu_layers: int = 0, arch_override: str | None = None, held: Weights = AS_STORED
    ) -> None:
        """Load `info.path` and check every weight for NaN and infinity; CheckpointError with llama.cpp's reason."""
        self.info = info
        self.note = held.note  # what a user should know of how the weights are held
        self.repack = held.repack
        self.on_processor = n_gpu_layers == 0  # and in the machine's memory
        params, keep = api.model_params(
            n_gpu_layers=n_gpu_layers, check_tensors=True, arch_override=arch_override, repack=held.repack
        )
        with api.loading(params):
            handle: int = api.load_model(os.fsencode(info.path), params) or 0
            why = api.reason()
            self.packed: PackedMatrices | None = register(info, handle) if handle and held.packed else None
            self._finalizer = weakref.finalize(self, _free, handle, self.packed)
        del keep
        if not handle:
            raise CheckpointError(f"{info.path}: llama.cpp cannot load it: {_readable(why)}")
        self.handle = handle
        if self.packed:
            self.note = self.packed.note(info)
        self.vocab: int = api.model_vocab(handle)
        self.n_vocab: int = api.vocab_size(self.vocab)
        self.n_layer: int = api.model_n_layer(handle)
        self.n_head: int = api.model_n_head(handle)
        self.hidden_size: int = api.model_n_embd(handle)
        self.n_ctx_train: int = api.model_n_ctx_train(handle)
        self._no_tokenizer = "" if api.vocab_type(self.vocab) != _NO_VOCAB else "the file has none"
        self.bos: int | None = None
        self.add_bos = False
        self.end_tokens: frozenset[int] = frozenset()
        if not self._no_tokenizer:
            self._no_tokenizer = _missing_byte(info)
            self.add_bos = bool(api.vocab_add_bos(self.vocab))
            bos = api.vocab_bos(self.vocab)
            self.bos = bos if bos >= 0 else None
            is_end, vocab = api.vocab_is_eog, self.vocab
            self.end_tokens = frozenset(t for t in range(self.n_vocab) if is_end(vocab, t))
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def tokenize(self, text: str | bytes, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a string; bytes that are not UTF-8 count as U+FFFD, as llama.cpp would end the process."""
        self._need_tokenizer()
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        clean = raw.decode("utf-8", "replace")
        tokens = _with_stack(_longest_run(clean), partial(self._tokenize, clean.encode(), add_special, parse_special))
        if tokens is None:
            raise BackendError(f"{self.info.path}: llama.cpp cannot tokenize {len(raw)} bytes; give a shorter one")
        return tokens

    def _tokenize(self, raw: bytes, add_special: bool, parse_special: bool) -> list[int] | None:
        if len(raw) > MAX_TEXT:
            return None
        room = len(raw) + 16  # no tokenizer makes more tokens than bytes plus the special ones
        for _ in range(2):
            out = np.empty(room, np.int32)
            n = api.tokenize(self.vocab, raw, len(raw), out.ctypes.data, room, add_special, parse_special)
            if n >= 0:
                return [int(t) for t in out[:n]]
            room = -n
        return None

    def token_to_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token, possibly part of a UTF-8 character; control tokens are empty unless `special`."""
        piece = self._pieces.get((token, special))
        if piece is None:
            self._need_tokenizer()
            if not 0 <= token < self.n_vocab:
                raise ShapeError(f"{self.info.path}: token id {token} is outside 0..{self.n_vocab - 1}")
            piece = self._pieces[token, special] = self._piece(token, special)
        return piece

    def _piece(self, token: int, special: bool) -> bytes:
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            n: int = api.token_to_piece(self.vocab, token, ctypes.addressof(buffer), room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n
        raise BackendError(f"{self.info.path}: llama.cpp has no text for token {token}")

    def close(self) -> None:
        """Free the weights now; every context on them must be closed. Calling it twice is harmless."""
        self.handle = 0
        self._finalizer()

    def _need_tokenizer(self) -> None:
        if not self.handle:
            raise BackendError(f"{self.info.path}: already closed; load it again")
        if self._no_tokenizer:
            raise BackendError(f"{self.info.path}: no usable tokenizer: {self._no_tokenizer}; use another file")


def _free(handle: int, packed: PackedMatrices | None) -> None:
    if handle and not api.forked_from:  # a forked process has the memory, but not the threads to join
        unregister(packed)
        api.free_model(handle)


def _longest_run(text: str) -> int:
    """Twice the longest run without a change between space and non-space: a pre-tokenizer matches two at most."""
    return 2 * max((m.end() - m.start() for m in re.finditer(r"\s+|\S+", text)), default=0)


def _with_stack(run: int, call: Callable[[], list[int] | None]) -> list[int] | None:
    """`call()` with stack enough for std::regex on `run` characters (325 bytes each seen); None beyond MAX_STACK."""
    if run <= SHALLOW:
        return call()
    if run * STACK_PER_CHARACTER > MAX_STACK:
        return None
    result: list[list[int] | None] = []
    before = threading.stack_size(MIN_STACK + run * STACK_PER_CHARACTER)
    try:
        thread = threading.Thread(target=lambda: result.append(call()))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return result[0] if result else None


def _missing_byte(info: GgufInfo) -> str:
    """Which byte a SentencePiece vocabulary has no token for: llama.cpp ends the process when it meets it."""
    if info.metadata.get("tokenizer.ggml.model") != "llama":
        return ""
    tokens = set(info.metadata.get("tokenizer.ggml.tokens") or ())
    for byte in range(256):
        if f"<0x{byte:02X}>" not in tokens and (byte >= 128 or chr(byte) not in tokens):
            return f"tokenizer.ggml.tokens lacks '<0x{byte:02X}>'"
    return ""


def _readable(reason: str) -> str:
    """llama.cpp's reason as one short line, with what to do where that is known."""
    reason = " ".join(reason.split())
    if "unknown model architecture" in reason:
        return f"{reason}; update llama-cpp-python or use another model"
    if "invalid data" in reason:
        return f"{reason} (NaN or infinite values); the file is damaged"
    return reason[:300]
