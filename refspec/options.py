"""What `load` can be asked for, as values: `ModelOptions` say how the models run, `DraftOptions` how much is drafted.

Options contradict each other before anything is loaded, or not at all. None leaves an option open; `settled` decides it
by what was measured for the pair, else by a default.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from refspec.errors import UsageError
from refspec.reference.tree import TreeShape

DRAFT_MAX = 3  # draft length where nothing measured says better: verification is dear on a CPU
ADAPTIVE_MAX = 8  # the longest draft considered where its length is chosen every step
DRAFT_LIMIT = 64  # more tokens than a hybrid model can take back, and far more than pays
EXACT_LIMIT = 6  # with the pending token the most that are verified alike in every batch, `llama/rounding.py`

Matmul = Literal["auto", "refspec", "repack", "stored"]
Reproducible = Literal["exact", "f32"]
DrafterKernels = Literal["auto", "llama", "own"]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How target and drafter run; UsageError for options that exclude each other.

    n_ctx          positions; 0 is what the model was trained for, at most 8192
    threads        for one token; None is what was measured, else every processor
    threads_batch  for several tokens verified together; None is what was measured, else `threads`
    threads_draft  for the drafter; None is what was measured, else those of the target
    gpu_layers     layers on the GPU, -1 for all
    flash_attn     off, on or auto (off on a processor; llama.cpp decides on a GPU)
    kv_type        of the target's key/value cache: f16, f32 or q8_0
    matmul         who multiplies with the weights
        auto       refspec's kernels where they can, llama.cpp as it likes elsewhere
        refspec    refspec's kernels, or an error that says why they cannot
        repack     llama.cpp, on weights it repacks
        stored     llama.cpp, on weights as the file stores them
    pair_rows      run a single token beside a copy of itself: faster for some weights on some machines
    reproducible   speculative output is the plain output, bit for bit
        exact      with the weights as they are: single tokens run in pairs, llama.cpp repacks nothing, drafts have at
                   most 6 tokens, and whether the kernels here keep the promise is checked first
        f32        all in F32, without flash attention: other weights are recast into the user's cache directory first
    """

    n_ctx: int = 0
    threads: int | None = None
    threads_batch: int | None = None
    threads_draft: int | None = None
    gpu_layers: int = 0
    flash_attn: str | None = None
    kv_type: str | None = None
    matmul: Matmul = "auto"
    pair_rows: bool | None = None
    reproducible: Reproducible | None = None

    def __post_init__(self) -> None:
        _one_of("matmul", self.matmul, get_args(Matmul))
        _one_of("reproducible", self.reproducible, (None, *get_args(Reproducible)))
        if self.exact and self.matmul == "repack":
            raise _exclusive("reproducible = exact", "matmul = repack")
        if self.exact and self.pair_rows is False:
            raise _exclusive("reproducible = exact", "pair_rows = False (--no-pair-rows)")
        if self.matmul == "refspec" and self.gpu_layers:
            raise _exclusive("matmul = refspec", f"gpu_layers = {self.gpu_layers}")

    @property
    def f32(self) -> bool:
        """Whether weights, cache and matrix multiplications are F32."""
        return self.reproducible == "f32"

    @property
    def exact(self) -> bool:
        """Whether output is reproducible with the weights as they are."""
        return self.reproducible == "exact"

    def settled(self, measured: Mapping[str, Any]) -> ModelOptions:
        """Nothing left open but what llama.cpp decides: options given, else `measured` settings, else defaults."""
        matmul = measured.get("matmul", "auto") if self.matmul == "auto" else self.matmul
        names = ("threads", "threads_batch", "threads_draft")
        one, several, drafting = (measured.get(name) if self.threads is None else self.threads for name in names)
        return dataclasses.replace(
            self, threads=one, threads_batch=_first(self.threads_batch, several, one),
            threads_draft=_first(self.threads_draft, drafting),
            flash_attn="off" if self.f32 else self.flash_attn or measured.get("flash_attn", "auto"),
            kv_type="f32" if self.f32 else self.kv_type or measured.get("kv_type", "f16"),
            matmul="stored" if self.exact and matmul == "repack" else matmul,
            pair_rows=self.reproducible is not None or bool(_first(self.pair_rows, measured.get("pair_rows"))),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DraftOptions:
    """What drafts and how much; UsageError for options that exclude each other.

    draft_max        draft tokens per verify step, 0..64; with `adaptive` the most
    tree             draft trees instead: "N", "N:topk" or "N:topk:depth" is N nodes per verify step, at most topk
                     after each and depth on a path
    lookup           draft what followed earlier in the sequence: alone, or where the drafter is unsure; None is what
                     suits the embedded pair, else off
    adaptive         choose the draft length every step (of a tree, how many nodes are verified); None does so for
                     chains where nothing says how much to draft, neither `draft_max` nor what was measured
    drafter_kernels  what runs an EAGLE-3 drafter: "llama", "own" (refspec's), or "auto", which is llama.cpp unless the
                     drafter is tiny or beyond its graph
    tuned            use what `refspec tune` stored for these files, and keep what an adaptive session learns
    """

    draft_max: int | None = None
    tree: str | TreeShape | None = None
    lookup: bool | None = None
    adaptive: bool | None = None
    drafter_kernels: DrafterKernels = "auto"
    tuned: bool = True

    def __post_init__(self) -> None:
        _one_of("drafter_kernels", self.drafter_kernels, get_args(DrafterKernels))
        if self.draft_max is not None:
            draft_length(self.draft_max)
        if self.shape and self.draft_max is not None:
            raise _exclusive(f"tree = {self.shape}", f"draft_max = {self.draft_max}, which is for chains")
        if self.shape and self.drafter_kernels == "own":
            raise _exclusive(f"tree = {self.shape}", "drafter_kernels = own, which drafts chains")

    @property
    def shape(self) -> TreeShape | None:
        """The tree asked for; None for chains."""
        return TreeShape.parse(self.tree) if isinstance(self.tree, str) else self.tree and self.tree.checked()

    @property
    def length(self) -> int:
        """Draft tokens per verify step, or nodes of a tree, of options that are settled."""
        return min(self.shape.nodes, DRAFT_LIMIT) if self.shape else self.draft_max or 0

    def settled(self, measured: Mapping[str, Any], *, drafter: bool, limit: int) -> DraftOptions:
        """Nothing left open: options given, else `measured`, else defaults; UsageError for more than `limit` tokens."""
        shape, lookup = self.shape, bool(_first(self.lookup, measured.get("lookup")))
        known = self.draft_max is not None or "draft_max" in measured
        adaptive = self.adaptive
        if adaptive is None:
            adaptive = (drafter or lookup) and not known and shape is None
        length = self.draft_max
        if length is not None:
            draft_length(length, limit)
        elif shape is None:
            length = min(ADAPTIVE_MAX if adaptive else int(measured.get("draft_max", DRAFT_MAX)), limit)
        return dataclasses.replace(self, draft_max=length, tree=shape, lookup=lookup, adaptive=adaptive)


def gathered(
    how: ModelOptions | None, drafting: DraftOptions | None, keywords: Mapping[str, Any]
) -> tuple[ModelOptions, DraftOptions]:
    """Options with those given by `keywords`, which win; UsageError for an unknown or excluded one."""
    values: list[Any] = [how or ModelOptions(), drafting or DraftOptions()]
    fields = [{field.name for field in dataclasses.fields(value)} for value in values]
    known = sorted(fields[0] | fields[1])
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"load has no option {name!r}; {hint}")
    how, drafting = (
        dataclasses.replace(value, **{name: keywords[name] for name in keywords if name in names})
        for value, names in zip(values, fields, strict=True)
    )
    if how.exact and drafting.shape:
        raise _exclusive("reproducible = exact", f"tree = {drafting.shape}")
    return how, drafting


def draft_length(length: int, limit: int = DRAFT_LIMIT) -> int:
    """A draft length itself; UsageError unless it is 0..limit."""
    if whole("draft_max", length) > limit:
        why = "verifying so many tokens never pays" if limit == DRAFT_LIMIT else "reproducible = exact promises no more"
        raise UsageError(f"draft_max = {length} exceeds {limit}; {why}")
    return length


def whole(name: str, value: int) -> int:
    """A count itself; UsageError unless it is an integer >= 0."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise UsageError(f"{name} = {value!r} is not an integer")
    if value < 0:
        raise UsageError(f"{name} = {value} is negative; use 0 or more")
    return value


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} = {value!r}: choose one of {', '.join(map(str, choices))}")


def _exclusive(one: str, other: str) -> UsageError:
    return UsageError(f"{one} excludes {other}; leave one of them out")


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
