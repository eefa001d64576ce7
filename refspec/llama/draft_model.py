"""LlamaModelDrafter: any small GGUF with the target's vocabulary drafts for it.

It reads tokens, not the target's states: features are ignored and rows may come late. `extend` only notes tokens;
`draft` brings the cache up to date with what it does not hold yet. Drafted tokens that were accepted are in the cache
already, so after a cycle with m of k accepted one row is new (two when all were: the last drafted token was never run).
A long backlog, a prompt, runs at once. Shape legend: T rows, V target vocabulary, C ids both vocabularies share.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from refspec import native
from refspec.errors import BackendError, ShapeError
from refspec.gguf.header import GgufSource
from refspec.gguf.io import read_gguf_header
from refspec.gguf.target_checks import check_target
from refspec.llama import api, weights
from refspec.llama.capture import Views
from refspec.llama.context import Context, RowBatch
from refspec.llama.eagle3 import MARGIN
from refspec.llama.pair_checks import Lender
from refspec.llama.vocabulary import check_vocabulary
from refspec.reference.chain import ChainDrafter
from refspec.reference.ops import Array, Ids

BATCH = 512
BACKLOG = 64  # tokens noted before they run by themselves: more than a cycle leaves, less than a prompt


class LlamaModelDrafter(ChainDrafter):
    """The Drafter of a stand-alone draft model on llama.cpp."""

    capture_layers: tuple[int, ...] = ()

    def __init__(
        self, path: GgufSource, target: Lender, *, n_threads: int | None = None, n_threads_batch: int | None = None,
        n_gpu_layers: int = 0, kv_type: str = "f16", flash_attn: str = "auto", panels: bool = True,
    ) -> None:  # fmt: skip
        """Load it; CheckpointError or ShapeError (file, another vocabulary), BackendError."""
        self.info = read_gguf_header(path)
        self.path = self.info.path
        check_target(self.info)  # what may run as a target may run as a draft model
        self.model = weights.load(self.info, n_gpu_layers=n_gpu_layers, panels=panels)
        self.n_vocab = target.n_vocab
        self._common = check_vocabulary(self.info, target.info, self.model.n_vocab, target.n_vocab)
        handle = self.model.handle
        kinds = api.model_has_encoder, api.model_is_recurrent, api.model_is_hybrid, api.model_is_diffusion
        if any(is_one(handle) for is_one in kinds):
            raise BackendError(
                f"{self.path}: architecture {self.info.arch!r} cannot take tokens back; use one with a plain KV cache"
            )
        self.context = Context(
            self.model, n_ctx=min(target.n_ctx + MARGIN, max(self.model.n_ctx_train, 2)), n_batch=BATCH, n_ubatch=BATCH,
            n_threads=n_threads, n_threads_batch=n_threads_batch, kv_type=kv_type, flash_attn=flash_attn,
        )  # fmt: skip
        self.n_ctx = self.context.n_ctx
        self._batch = RowBatch(min(BATCH, self.context.n_batch))
        self._views = Views()
        self.vocab_size, self.width, self.logit_ids = target.n_vocab, self._common, None
        self.draft_ids: Ids = np.arange(self._common)
        self.choose = native
        self.seconds = 0.0  # inside llama.cpp only
        self._text: list[int] = []  # the tokens decided
        self._held: list[int] = []  # what the cache holds: a prefix of these, then drafted tokens
        self._agreed = 0  # tokens of the cache known to be the decided ones
        self._first = 0  # 1 when x_0 is one of them
        self._logits = 0  # address of the last row's logits, 0 when they are gone

    @property
    def n_rows(self) -> int:
        """True rows committed: the tokens after x_0."""
        return len(self._text) - self._first

    def begin(self, token: int) -> None:
        """Take x_0; raises ShapeError once a token has come."""
        if self._text:
            raise ShapeError(f"{self.path}: the first token comes before every row; reset first")
        self._text, self._first = [int(token)], 1

    def extend(self, tokens: Ids, features: Array) -> None:
        """Note tokens [T]; the features are ignored. Raises ShapeError for ids outside the vocabulary."""
        self.context.alive()
        ids = np.asarray(tokens)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_vocab:
            raise ShapeError(f"{self.path}: token ids {ids.min()}..{ids.max()} outside 0..{self.n_vocab - 1}")
        self._text += np.where(ids < self._common, ids, 0).tolist()  # padding the draft model has no row for
        if len(self._text) - len(self._held) > BACKLOG and self._fits():
            self._catch_up("none")

    def begin_chain(self, k: int) -> int:
        """See `ChainDrafter`; fewer where the tokens have outgrown the context the model was trained for."""
        self.context.alive()
        k = min(k, self.n_ctx - len(self._text) + 1) if self.n_rows and self._fits() else 0
        if k:
            self._catch_up("last")
        return k

    def logits(self) -> Array:
        """Logits [C] of the newest row: a view."""
        row: Array = self._views.at(self._logits, 1, self._common)[0]
        return row

    def advance(self, token: int) -> None:
        """Run the token just drafted."""
        self._run([token], "last")

    def damaged(self) -> BackendError:
        """The error for logits that are not finite."""
        return BackendError(f"{self.path}: the draft model's logits are not finite; its weights are damaged")

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows rows; ShapeError unless 0 <= n_rows <= self.n_rows."""
        if not 0 <= n_rows <= self.n_rows:
            raise ShapeError(f"{self.path}: cannot roll back to {n_rows} rows, the drafter holds {self.n_rows}")
        self.context.alive()
        del self._text[self._first + n_rows :]
        self._agreed = min(self._agreed, len(self._text))

    def reset(self) -> None:
        """Forget every token and the time spent."""
        self.context.clear()
        self.grammar = None  # it was that of one output
        self._text, self._held, self._agreed, self._first, self._logits, self.seconds = [], [], 0, 0, 0, 0.0

    def close(self) -> None:
        """Free the model; calling it twice is harmless."""
        self.context.close()
        self.model.close()

    def _fits(self) -> bool:
        return len(self._text) <= self.n_ctx

    def _catch_up(self, outputs: str) -> None:
        """Drop what is not decided from the cache, then run what it lacks, with the last row's logits for "last"."""
        held, text, same = self._held, self._text, self._agreed
        while same < min(len(held), len(text)) and held[same] == text[same]:
            same += 1
        self._agreed = len(text)
        if outputs == "last" and same == len(self._text):
            if len(self._held) == same and self._logits:
                return  # drafting again after a draft that ran nothing
            same -= 1  # its row is there, its logits are gone
        if same < len(self._held):
            self.context.keep(same)
            del self._held[same:]
        missing = self._text[same:]
        for i in range(0, len(missing), len(self._batch.tokens)):
            part = missing[i : i + len(self._batch.tokens)]
            self._run(part, outputs if i + len(part) == len(missing) else "none")

    def _run(self, tokens: list[int], outputs: str) -> None:
        handle, first = self.context.handle, len(self._held)
        self._batch.put(tokens)
        self._logits = 0
        api.forget_errors()
        struct = self._batch.prepare(len(tokens), first, outputs)
        began = perf_counter()
        code = api.decode(handle, struct)
        self.seconds += perf_counter() - began
        if code:
            self.context.keep(first)
            self._agreed = min(self._agreed, first)
            raise self.context.failure(code, f"run {len(tokens)} tokens of the draft model at position {first}")
        self._held += tokens
        if outputs == "last":
            self._logits = self.context.logits(-1)
