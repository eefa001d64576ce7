"""ParallelTarget: one GGUF answering many prompts at once, each in a sequence of its own.

For making data, where tokens per second of all answers together count; not a Target, because nothing is verified here.
One more token in a decode costs much less than a decode, so an answer that ends makes room for the next prompt at once.
Legend: R tokens with logits in one decode, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from time import perf_counter

import numpy as np
import numpy.typing as npt

from refspec.decoding.drafter import Coins
from refspec.decoding.requests import Answer, Request
from refspec.errors import BackendError, ShapeError, UsageError
from refspec.gguf.io import read_gguf_header
from refspec.gguf.target_checks import check_target
from refspec.llama import api, weights
from refspec.llama.capture import Views
from refspec.llama.context import Context
from refspec.llama.sequences import SequenceBatch, drop
from refspec.llama.target import check_kind
from refspec.llama.tree_batch import MAX_SEQUENCES
from refspec.llama.vocabulary import UNUSED
from refspec.native import sample
from refspec.native.penalties import Penalizer
from refspec.reference.ops import Array, Ids
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler

CELLS = 256  # llama.cpp rounds the positions of a sequence up to a multiple of this


class _Slot:
    """A request in progress: `held` positions are in memory, `waiting` tokens follow them and have not been run."""

    def __init__(self, request: Request, prompt: Ids) -> None:
        self.request, self.held, self.waiting = request, 0, prompt
        self.answer: list[int] = []

    def history(self, with_prompt: bool) -> npt.NDArray[np.int32]:
        """The tokens penalties count: the answer so far, after the prompt if that counts."""
        answer = np.array(self.answer, np.int32)
        return np.concatenate([np.asarray(self.request.prompt, np.int32), answer]) if with_prompt else answer


class ParallelTarget:
    """A model with memory for `parallel` sequences of `n_ctx` positions each."""

    def __init__(
        self, path: str | os.PathLike[str], *, parallel: int, n_ctx: int, n_threads: int | None = None,
        n_gpu_layers: int = 0, n_batch: int = 512, kv_type: str = "f16", flash_attn: str = "auto",
        repack: bool = True, panels: bool = True,
    ) -> None:  # fmt: skip
        """Raises CheckpointError (file), UsageError (settings), BackendError (llama.cpp refused)."""
        if not 1 <= parallel <= MAX_SEQUENCES:
            raise UsageError(f"parallel = {parallel} is outside 1..{MAX_SEQUENCES}")
        self.info = read_gguf_header(path)
        check_target(self.info)
        self.path = self.info.path
        self.model = weights.load(self.info, n_gpu_layers=n_gpu_layers, panels=panels, repack=repack)
        check_kind(self.model)
        if not 1 <= n_ctx <= self.model.n_ctx_train:
            limit = self.model.n_ctx_train
            raise UsageError(
                f"{self.path}: {n_ctx} positions of prompt and answer are outside its 1..{limit}; allow shorter ones"
            )
        self.parallel, self.n_ctx = parallel, n_ctx
        self.n_vocab, self.end_tokens = self.model.n_vocab, self.model.end_tokens
        n_batch = max(n_batch, parallel)
        self.context = Context(
            self.model, n_ctx=parallel * -(-n_ctx // CELLS) * CELLS, n_batch=n_batch, n_ubatch=n_batch,
            n_threads=n_threads, kv_type=kv_type, flash_attn=flash_attn, n_seq_max=parallel, streams=True,
        )  # fmt: skip
        self._batch = SequenceBatch(self.context.n_batch, parallel)
        self._views = Views()
        self.seconds = 0.0  # inside llama.cpp

    def answers(
        self, requests: Iterable[Request], *, max_new: int, sampler: Sampler, stop: frozenset[int]
    ) -> Iterator[Answer]:
        """Answer every request, in the order in which they end; a request is taken when there is room for it.

        An answer ends with the first token of `stop`, which it includes, or after `max_new` tokens. Token i is the
        sampler's draw with coin i from the penalized logits, or argmax without coins. Raises ShapeError (prompt),
        BackendError.
        """
        if max_new < 1:
            raise UsageError(f"max_new = {max_new}: give 1 or more")
        penalties = sampler.penalties
        self.context.clear()
        penalizer = self._penalizer(penalties) if penalties.on else None
        queue = iter(requests)
        slots: dict[int, _Slot] = {}
        for sequence in range(self.parallel):
            self._admit(slots, sequence, queue, max_new)
        while slots:
            ready = self._run(slots)
            coins = np.array([_coin(slots[s]) for s in ready])
            logits = self._logits(len(ready))
            if penalizer and ready:
                said = [slots[s].history(penalties.prompt) for s in ready]
                logits = np.stack([penalizer(row, history) for row, history in zip(logits, said, strict=True)])
            for sequence, token in zip(ready, choose(logits, coins, sampler), strict=True):
                slot = slots[sequence]
                slot.answer.append(token)
                if token not in stop and len(slot.answer) < max_new:
                    slot.waiting = np.array([token], np.int32)
                    continue
                drop(self.context.memory, sequence)
                del slots[sequence]
                yield Answer(slot.request, slot.answer)
                self._admit(slots, sequence, queue, max_new)

    def _admit(self, slots: dict[int, _Slot], sequence: int, queue: Iterator[Request], max_new: int) -> None:
        request = next(queue, None)
        if request is None:
            return
        prompt, coins = np.asarray(request.prompt), request.coins
        if len(prompt) < 1 or len(prompt) + max_new > self.n_ctx:
            raise ShapeError(
                f"{self.path}: {len(prompt)} prompt tokens and {max_new} more do not fit into {self.n_ctx} positions"
            )
        if prompt.dtype.kind not in "iu" or prompt.min() < 0 or prompt.max() >= self.n_vocab:
            raise ShapeError(f"{self.path}: tokens must be ids in 0..{self.n_vocab - 1}")
        if coins is not None and len(coins) < max_new:
            raise ShapeError(f"{len(coins)} coins for an answer of up to {max_new} tokens; give one for each")
        slots[sequence] = _Slot(request, prompt)

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token string, without the unused ones that converters fill the head's width with."""
        strings, kinds = (self.info.metadata.get(f"tokenizer.ggml.{name}") or [] for name in ("tokens", "token_type"))
        used = max((i + 1 for i, kind in enumerate(kinds) if kind != UNUSED), default=len(strings))
        return {string: i for i, string in enumerate(strings[:used])}

    def _penalizer(self, penalties: Penalties) -> Penalizer:
        breaks = None
        if penalties.breaking:
            breaks = np.array(
                [penalties.breaks(self.model.token_to_bytes(token)) for token in range(self.n_vocab)], np.int8
            )
        return Penalizer(penalties, self.n_vocab, self.n_ctx, breaks)

    def _run(self, slots: dict[int, _Slot]) -> list[int]:
        """Decode a batch, a token of every sequence and more of the prompts while there is room; which have logits."""
        batch, handle, ready = self._batch, self.context.alive(), []
        batch.clear()
        room = len(batch.tokens) - len(slots)
        for sequence in sorted(slots):
            slot = slots[sequence]
            n = min(len(slot.waiting), 1 + room)
            room -= n - 1
            done = n == len(slot.waiting)
            batch.add(sequence, slot.waiting[:n], slot.held, done)
            slot.held, slot.waiting = slot.held + n, slot.waiting[n:]
            if done:
                ready.append(sequence)
        api.forget_errors()
        began = perf_counter()
        code = api.decode(handle, batch.prepare())
        self.seconds += perf_counter() - began
        if code:
            raise self.context.failure(code, f"run {batch.added} tokens of {len(slots)} sequences")
        return ready

    def _logits(self, rows: int) -> Array:
        """Logits [R, V] of the last decode, in order; a view, valid until the next one."""
        if not rows:
            return np.empty((0, self.n_vocab), np.float32)
        logits = self._views.at(self.context.logits(-rows), rows, self.n_vocab)
        if not np.isfinite(logits.max(1)).all():  # NaN wins every max
            raise BackendError(f"{self.path}: logits are not finite; the weights are damaged, get the file again")
        return logits

    def close(self) -> None:
        """Free the model and its memory; calling it twice is harmless."""
        self.context.close()
        self.model.close()


def _coin(slot: _Slot) -> float:
    """The next token's coin; NaN is argmax."""
    return np.nan if slot.request.coins is None else float(slot.request.coins[len(slot.answer)])


def choose(logits: Array, coins: Coins, sampler: Sampler) -> list[int]:
    """Tokens of logits [R, V]: the sampler's draws with coins [R], argmax where a coin is NaN."""
    return [
        int(row.argmax()) if np.isnan(coin) else sample(row, sampler, float(coin))
        for row, coin in zip(logits, coins, strict=True)
    ]
