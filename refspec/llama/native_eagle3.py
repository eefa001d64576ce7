"""An EAGLE-3 GGUF on refspec's own kernels: drafters that llama.cpp's graph cannot compute, or that are too small.

Query and key norms, biases, other counts of captured states, no norm before the head: none of them acts on a buffer the
host sees, so no norm around the graph can add it. And a drafter of a few megabytes is computed in less time than
llama.cpp takes to prepare its graph, several times per verify step. The forward pass is `eagle3_forward.py` in C
(native/eagle3.c), large matrices on the threads of llama.cpp, each in the type its file stores, multiplied by ggml's
own function for that type; llama.cpp runs the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.decoding.draft_penalties import DraftPenalties
from refspec.decoding.drafter import Coins, Drafter
from refspec.errors import BackendError, CheckpointError, ShapeError, UsageError
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import GgufInfo, GgufSource
from refspec.gguf.io import read_drafter, read_gguf_header, read_tensor
from refspec.llama.context import check_threads
from refspec.llama.eagle3 import MARGIN, LlamaEagle3Drafter
from refspec.llama.openmp import team
from refspec.llama.pair_checks import Lender, check_pair, drafter_config
from refspec.llama.vec_dot import functions, packed_matrix
from refspec.reference.chain import ChainDrafter
from refspec.reference.config import BIASED, DrafterConfig
from refspec.reference.draft import Draft, Stop
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

Kernels = Literal["auto", "llama", "own"]
KERNELS: tuple[Kernels, ...] = ("auto", "llama", "own")
SMALL = 8_000_000  # bytes of a drafter up to which C takes less time than calls of llama.cpp on several


class NativeEagle3Drafter(ChainDrafter):
    """The Drafter of a GGUF in C, without llama.cpp; `note` says so, and why, in one line."""

    def __init__(self, path: GgufSource, target: Lender, *, n_threads: int | None = 1) -> None:
        """Load it; CheckpointError (file), ShapeError (for another target), BackendError without C."""
        info, config, weights = _read_for(path, target)
        self.path, self.config, self.capture_layers = info.path, config, config.capture_layers
        files = {name: file for name in ("token_embd", *BIASED) if (file := _holder(name, info, target.info))}
        packed = {name: matrix for name, (file, tensor) in files.items() if (matrix := packed_matrix(file, tensor))}
        if config.rope_attention_factor != 1.0:
            packed.pop("attn_q", None)  # the factor is folded into it
        try:
            self._chain = native.Eagle3Chain(config, weights, target.n_ctx + MARGIN, packed, shared := team(n_threads))
        except CheckpointError as error:
            raise CheckpointError(f"{info.path}: {error}") from None
        ids = self._chain.draft_ids
        self.vocab_size, self.width = config.vocab_size, config.draft_vocab_size
        self.logit_ids = None if ids is None else ids.astype(np.int64)  # [D]
        self.draft_ids: Ids = np.arange(config.vocab_size) if self.logit_ids is None else self.logit_ids
        self.choose = native
        self._feature_width = config.n_states * config.target_hidden_size
        self._token, self._confidence = np.empty(1, np.int32), np.empty(1, np.float32)  # where C leaves a choice
        self._drafted = 0  # rows drafted after the last true one
        self.n_rows = 0
        self.seconds = 0.0
        self._penalties: DraftPenalties | None = None
        self._resumes = False  # the outputs of the last true row are held
        # (depth, state fed to the next row [H]) before each drafted token
        self.probe: Callable[[int, Array], None] | None = None
        held = sum(matrix.data.nbytes for matrix in packed.values())
        held += sum(array.nbytes for name, array in weights.items() if name not in packed)
        reasons = "; ".join(meta.graph_reasons(config))
        why = f"as llama.cpp cannot run it: {reasons}" if reasons else "which is faster for its size"
        threads = "one thread" if shared is None else f"{shared.threads} threads"
        self.note = f"drafter ({held / 1e6:.0f} MB, {threads}) runs inside refspec, {why}"

    @property  # type: ignore[override]
    def penalties(self) -> DraftPenalties | None:
        """What chains are drafted under."""
        return self._penalties

    @penalties.setter
    def penalties(self, penalties: DraftPenalties | None) -> None:
        self._penalties = penalties
        self._chain.under(penalties)

    def extend(self, tokens: Ids, features: Array) -> None:
        """Drop drafted rows, then append true rows from tokens [T] and target features [T, N*Ht].

        Raises ShapeError for shapes, ids or a full cache, BackendError for features that are not finite.
        """
        self._append(tokens, features, self._chain.extend)

    def survey(self, tokens: Ids, features: Array) -> float:
        """The same, and the mean log probability of the likeliest token after each of these rows; nan without a row."""
        mean = math.nan

        def survey(ids: npt.NDArray[np.int32], features: Array, first: int) -> int:
            nonlocal mean
            status, mean = self._chain.survey(ids, features, first)
            return status

        self._append(tokens, features, survey)
        return mean

    def _append(self, tokens: Ids, features: Array, run: Callable[[npt.NDArray[np.int32], Array, int], int]) -> None:
        n = len(tokens)
        if features.shape != (n, self._feature_width):
            wanted = [n, self._feature_width]
            raise ShapeError(f"{self.path}: features {list(features.shape)} for {n} tokens, need {wanted}")
        if not n:
            return
        ids = _int32(tokens)
        began = perf_counter()
        status = run(ids, np.ascontiguousarray(features, np.float32), self.n_rows)
        self.seconds += perf_counter() - began
        if status == native.lib.RS_BAD_TOKEN:
            raise ShapeError(
                f"{self.path}: token ids {min(tokens)}..{max(tokens)} leave the vocabulary of {self.config.vocab_size}"
            )
        if status == native.lib.RS_CACHE_FULL:
            raise ShapeError(f"{self.path}: {n} rows after {self.n_rows} exceed the context of {self._chain.capacity}")
        if status:
            raise BackendError(f"{self.path}: the target's states from row {self.n_rows} on are not finite; check it")
        self.n_rows += n
        self._resumes = True

    def draft(
        self, k: int, *, coins: Coins | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """See `ChainDrafter`; fewer where the cache is full, or the tokens that penalties look at."""
        began = perf_counter()
        try:
            return super().draft(k, coins=coins, sampler=sampler, stop=stop)
        finally:
            self.seconds += perf_counter() - began

    def begin_chain(self, k: int) -> int:
        """See `ChainDrafter`."""
        k = min(k, self._chain.capacity - self.n_rows + 1) if self.n_rows else 0
        if k and not self._resumes:
            raise BackendError(f"{self.path}: extend the drafter after a rollback before drafting; the state is gone")
        self._chain.restart()
        self._drafted = 0
        if self._penalties is not None:
            k = min(k, len(self._penalties.tokens) - self._penalties.decided)  # C writes drafted tokens there
            self._chain.decide(self._penalties.decided)
        return k

    def whole_chain(self, k: int) -> Draft | None:
        """The argmax chain in one call of C."""
        if self.probe is not None:
            return None
        tokens, confidence = np.empty(k, np.int32), np.empty(k, np.float32)
        if k:
            self._checked(self._chain.draft(tokens, confidence, self.n_rows))
        return Draft(tokens, None, confidence)

    def likeliest(self, drafted: Sequence[int]) -> tuple[int, float]:
        """See `ChainDrafter`; chosen in C, penalties included."""
        if self.probe is not None:
            self.probe(self._drafted, self._chain.state().copy())
        if self._penalties is not None:
            self._chain.decide(self._penalties.decided + len(drafted))
        self._checked(self._chain.draft(self._token, self._confidence, 0))
        return int(self._token[0]), float(self._confidence[0])

    def logits(self) -> Array:
        """Logits [D] of the newest row: overwritten by the next one."""
        return self._chain.logits()

    def advance(self, token: int) -> None:
        """One more row."""
        self._checked(self._chain.follow(token, self.n_rows + self._drafted))
        self._drafted += 1

    def damaged(self) -> BackendError:
        """The error for logits that are not finite."""
        return BackendError(f"{self.path}: {super().damaged()}")

    def rollback(self, n_rows: int) -> None:
        """Keep the first n_rows true rows and no drafted row; ShapeError unless 0 <= n_rows <= self.n_rows."""
        if not 0 <= n_rows <= self.n_rows:
            raise ShapeError(f"{self.path}: cannot roll back to {n_rows} rows, the drafter holds {self.n_rows}")
        self._resumes = self._resumes and n_rows == self.n_rows
        self.n_rows = n_rows

    def reset(self) -> None:
        """Forget every row and the time spent."""
        self.n_rows, self._resumes, self.seconds = 0, False, 0.0
        self.penalties = self.grammar = None  # they were those of one output

    def close(self) -> None:
        """Nothing is held that Python does not free."""
        self.reset()

    def _checked(self, status: int) -> None:
        if status:
            raise self.damaged()


class NumpyEagle3Drafter(Eagle3Drafter):
    """The reference as the Drafter of a GGUF, where C is not built; `note` says so, and why, in one line."""

    def __init__(self, path: GgufSource, target: Lender) -> None:
        """Load a drafter made for `target`. Raises CheckpointError (file), ShapeError (for another target)."""
        info, config, weights = _read_for(path, target)
        super().__init__(config, weights)
        self.path = info.path
        held = sum(array.nbytes for array in self.weights.values())
        self.note = f"drafter ({held / 1e6:.0f} MB) runs on NumPy, slowly: refspec's C module is not built"


def _read_for(path: GgufSource, target: Lender) -> tuple[GgufInfo, DrafterConfig, dict[str, np.ndarray]]:
    info = read_gguf_header(path)
    config = drafter_config(info, in_graph=False)
    check_pair(info, config, target.info, target.hidden_size, target.n_vocab, target.n_layer)
    return info, *complete_weights(info, target.info)


def _holder(name: str, info: GgufInfo, target: GgufInfo) -> tuple[GgufInfo, str] | None:
    """The file and the name there of a matrix of the drafter's or, where it has none, the target's."""
    own = meta.TENSORS[name]
    if own in info.tensors:
        return info, own
    if name not in meta.SHARED:
        return None
    return target, own if own in target.tensors else meta.TENSORS["token_embd"]


def complete_weights(info: GgufInfo, target: GgufInfo) -> tuple[DrafterConfig, dict[str, np.ndarray]]:
    """Configuration and float32 weights of a drafter GGUF, what it leaves to the target filled in from there."""
    config, weights = read_drafter(info)
    for name in meta.SHARED:
        if name not in weights and (held := _holder(name, info, target)):
            weights[name] = read_tensor(*held)
    return config, weights


def _is_small(info: GgufInfo) -> bool:
    """At most SMALL bytes, in types whose rows C can multiply as they are stored."""
    tensors = info.tensors.values()
    return sum(t.nbytes for t in tensors) <= SMALL and all(
        t.type == "F32" or functions(t.type_id) for t in tensors if len(t.shape) == 2
    )


def _int32(tokens: Ids) -> npt.NDArray[np.int32]:
    """Ids as C wants them; one that does not fit becomes -1, which C refuses."""
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.int32:
        return np.ascontiguousarray(tokens)
    wide = np.asarray(tokens, np.int64)
    return np.where((wide < 0) | (wide > np.iinfo(np.int32).max), -1, wide).astype(np.int32)


def open_drafter(path: GgufSource, target: Lender, *, kernels: Kernels | None = None, **settings: Any) -> Drafter:
    """The drafter at `path` on llama.cpp, or on refspec's own kernels where llama.cpp's graph does not compute it.

    `kernels` "auto" takes the own ones for a drafter of at most SMALL bytes on the processor too, "llama" and "own"
    insist. Raises CheckpointError, ShapeError, BackendError, UsageError (kernels).
    """
    if kernels is not None and kernels not in KERNELS:
        raise UsageError(f"drafter kernels {kernels!r}: one of {', '.join(KERNELS)}")
    info = read_gguf_header(path)
    beyond = bool(meta.graph_reasons(drafter_config(info, in_graph=False)))
    if kernels == "own" and native.lib is None:
        raise BackendError("--drafter-kernels own: the C module is not built; build it: python native/build_ffi.py")
    small = kernels == "auto" and native.lib is not None and _is_small(info) and not settings.get("n_gpu_layers")
    if kernels == "llama" or not (beyond or kernels == "own" or small):
        return LlamaEagle3Drafter(info, target, **settings)
    check_threads(**{name: settings.get(name) for name in ("n_threads", "n_threads_batch")})
    if native.lib is None:
        return NumpyEagle3Drafter(info, target)
    return NativeEagle3Drafter(info, target, n_threads=settings.get("n_threads_batch") or settings.get("n_threads"))
