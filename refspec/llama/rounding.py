"""Whether what a token computes depends on its neighbours in a batch: `--reproducible exact` checks it first.

This is no proof, but a check of the kernels that this file, this llama.cpp and this processor select. llama.cpp
multiplies one token by other kernels than several, and from eight tokens on by others again. In between, every type of
weights tried on x86 gave each token the same bits (F32, F16, BF16, Q8_0, Q5_0, Q4_1, Q4_0, K- and I-quants; as stored,
not repacked). So with single tokens run in pairs, and at most MOST_TOKENS of them verified at once, plain and
speculative decoding see the same bits.

Compared are the attention output of every layer and the logits. Logits alone would not do: quantized weights round what
they multiply, which hides nearly every difference of the attention before them, until one is not hidden and changes the
output a hundred tokens later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from refspec.errors import BackendError
from refspec.llama import api
from refspec.llama.capture import prototype
from refspec.llama.context import Context, RowBatch
from refspec.llama.model import Model

MOST_TOKENS = 7
SPLITS = ((7,), (6, 1), (5, 2), (4, 3))  # batches of the same 7 tokens, each split after the same prompt
# tokens: from 256 on llama.cpp divides one token's attention among threads, and adds partial sums
PROMPT = 300
ATTENTION = b"kqv_out-"  # and the layer: llama.cpp's name of the attention's output, before its projection

# Tokens [T] at positions from `first` on, in place of what was there -> all that each token computed.
Run = Callable[[Sequence[int], int], list[bytes]]


def smallest_differing_batch(run: Run, n_vocab: int) -> int | None:
    """The size of the smallest batch in which a token computes other bits than alone, None if there is none."""
    ids = [(5 + 37 * i) % n_vocab for i in range(PROMPT + MOST_TOKENS)]
    run(ids[:PROMPT], 0)

    def after_the_prompt(sizes: Sequence[int]) -> list[tuple[int, bytes]]:
        """(size of its batch, what it computed) of each token."""
        found, start = [], PROMPT
        for size in sizes:
            found += [(size, computed) for computed in run(ids[start : start + size], start)]
            start += size
        return found

    alone = after_the_prompt((1,) * MOST_TOKENS)
    differing = [
        size
        for sizes in SPLITS
        for (size, computed), (_, wanted) in zip(after_the_prompt(sizes), alone, strict=True)
        if computed != wanted
    ]
    return min(differing, default=None)


class BatchProbe:
    """A small context of a model, with the settings of the one to be used, that shows what each token computes."""

    def __init__(self, model: Model, **settings: Any) -> None:
        """`settings` are `Context`'s. Raises what that raises."""
        ggml = api.ggml_library()
        size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._name = prototype(ggml, "ggml_get_name", ctypes.c_char_p, pointer)
        self._nbytes = prototype(ggml, "ggml_nbytes", size_t, pointer)
        self._read = prototype(ggml, "ggml_backend_tensor_get", None, pointer, pointer, size_t, size_t)
        self._seen: list[bytes] = []  # whole tensors of the last decode
        self._problem: BaseException | None = None
        self._n_vocab, self._path = model.n_vocab, model.info.path
        size = PROMPT + MOST_TOKENS + 1
        callback = api.EvalCallback(self._on_node)
        self.context = Context(model, n_ctx=size, n_batch=size, n_ubatch=size, eval_callback=callback, **settings)
        self._batch = RowBatch(size)

    def run(self, tokens: Sequence[int], first: int, *, paired: bool = True) -> list[bytes]:
        """`Run`; `paired` runs a single token beside a copy. BackendError where llama.cpp shows no attention."""
        n = max(len(tokens), 1 + paired)
        self.context.keep(first)
        self._seen = []
        if not self._batch.put([*tokens, *tokens][:n]):
            raise BackendError(f"{self._path}: tokens must be ids")
        api.forget_errors()
        code = api.decode(self.context.alive(), self._batch.prepare(n, first, "all"))
        if self._problem is not None:  # llama.cpp cannot carry a Python exception, so it was kept for here
            raise self._problem
        if code:
            raise self.context.failure(code, f"run {n} tokens at position {first}")
        if not self._seen:
            raise BackendError(f"{self._path}: llama.cpp does not show the attention here; leave --reproducible out")
        logits = ctypes.string_at(api.get_logits_ith(self.context.handle, -n), 4 * n * self._n_vocab)
        whole = [*self._seen, logits]
        return [
            b"".join(part[i * len(part) // n : (i + 1) * len(part) // n] for part in whole) for i in range(len(tokens))
        ]

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def _on_node(self, tensor: int, ask: bool, _user: int | None) -> bool:
        try:
            if not self._name(tensor).startswith(ATTENTION):
                return not ask
            if not ask:
                buffer = ctypes.create_string_buffer(self._nbytes(tensor))
                self._read(tensor, buffer, 0, len(buffer))
                self._seen.append(buffer.raw)
            return True
        except BaseException as error:  # also KeyboardInterrupt: an exception here would stop the computation unnoticed
            self._problem = self._problem or error
            return True
