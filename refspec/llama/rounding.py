"""Does what a row computes depend on the rows beside it? Looked at before a text is promised to be exact.

Not a proof: a look at the kernels that this file, this llama.cpp and this processor select. llama.cpp multiplies one
row by other kernels than several, and from eight rows on by others again; in between it computed each row alike for
every type of weights looked at on x86 (F32, F16, BF16, Q8_0, Q5_0, Q4_1, Q4_0, K- and I-quants, as stored; not laid out
anew). So with single rows run in pairs and at most MOST_ROWS rows to verify, plain and speculative decoding see the
same bits, whatever the weights.

Looked at is what every layer's attention gives, and the logits. Logits alone would not do: quantized weights round what
they multiply, and that hides nearly every difference of the attention before it, until one is not hidden and changes
the text a hundred tokens later. It is done once for a file, its settings, a build and a processor; the answer is kept
in the user's cache directory.
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

MOST_ROWS = 7
BATCHES = ((7,), (6, 1), (5, 2), (4, 3))  # of the same 7 rows, each after the same prompt
# tokens: from 256 on llama.cpp shares a single row's attention out among threads, sums in parts and adds these
PROMPT = 300
ATTENTION = b"kqv_out-"  # and the layer: llama.cpp's name of what attention gives, before its output projection

# Tokens [T] at positions from `first` on, which forgets what it held from there on -> everything each row computed.
Rows = Callable[[Sequence[int], int], list[bytes]]


def first_unlike(rows: Rows, n_vocab: int) -> int | None:
    """The smallest batch in which a row computes other bits than alone, None if there is none."""
    ids = [(5 + 37 * i) % n_vocab for i in range(PROMPT + MOST_ROWS)]

    rows(ids[:PROMPT], 0)

    def after_the_prompt(sizes: Sequence[int]) -> list[tuple[int, bytes]]:
        """(size of its batch, what it computed) of each row."""
        found, start = [], PROMPT
        for size in sizes:
            found += [(size, row) for row in rows(ids[start : start + size], start)]
            start += size
        return found

    alone = after_the_prompt((1,) * MOST_ROWS)
    unlike = [
        size
        for sizes in BATCHES
        for (size, row), (_, mine) in zip(after_the_prompt(sizes), alone, strict=True)
        if row != mine
    ]
    return min(unlike, default=None)


class Looker:
    """A small context of a model, with the settings of the one that will be used, which remembers what each row
    computed.
    """

    def __init__(self, model: Model, **settings: Any) -> None:
        """`settings` are `Context`'s. Raises what that raises."""
        ggml = api.ggml_library()
        size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._name = prototype(ggml, "ggml_get_name", ctypes.c_char_p, pointer)
        self._nbytes = prototype(ggml, "ggml_nbytes", size_t, pointer)
        self._read = prototype(ggml, "ggml_backend_tensor_get", None, pointer, pointer, size_t, size_t)
        self._seen: list[bytes] = []  # tensors of the last decode, whole
        self._problem: BaseException | None = None
        self._n_vocab, self._path = model.n_vocab, model.info.path
        size = PROMPT + MOST_ROWS + 1
        self.context = Context(
            model, n_ctx=size, n_batch=size, n_ubatch=size, eval_callback=api.EvalCallback(self._on_node), **settings
        )  # fmt: skip
        self._batch = RowBatch(size)

    def rows(self, tokens: Sequence[int], first: int) -> list[bytes]:
        """`Rows`: a single one beside a copy of itself.

        Raises BackendError where llama.cpp fails or shows no attention.
        """
        n = max(len(tokens), 2)
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
            raise BackendError(f"{self._path}: the attention of this architecture cannot be looked at")
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
