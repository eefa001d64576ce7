"""Which drafter a file is, and how target and drafter are opened.

The header decides: architecture eagle3 or refspec-eagle3 is a trained drafter of the target's states, any other that
may run as a target is a draft model with the target's vocabulary. Every function takes a file, or its header where that
has been read already.
"""

from __future__ import annotations

from typing import Any

from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.drafter import Drafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.tree_lookup import TreeLookupDrafter
from refspec.errors import UsageError
from refspec.gguf import drafter_meta
from refspec.gguf.header import GgufSource
from refspec.gguf.io import read_gguf_header
from refspec.llama.draft_model import LlamaModelDrafter
from refspec.llama.eagle3_tree import LlamaEagle3TreeDrafter
from refspec.llama.native_eagle3 import Kernels, open_drafter
from refspec.llama.pair_checks import drafter_config
from refspec.llama.target import LlamaTarget
from refspec.llama.tree_target import LlamaTreeTarget
from refspec.reference.tree import TreeShape


def is_eagle3(source: GgufSource) -> bool:
    """Whether a GGUF file is an EAGLE-3 drafter; CheckpointError when it cannot be read."""
    return read_gguf_header(source).arch in drafter_meta.ARCHS


def capture_layers(source: GgufSource | None) -> tuple[int, ...]:
    """Boundaries of the target that a drafter asks for; none for a draft model, or without a drafter."""
    if source is None or not is_eagle3(source):
        return ()
    return drafter_config(read_gguf_header(source), in_graph=False).capture_layers


def check_grower(source: GgufSource | None, tree: TreeShape | None) -> None:
    """UsageError for trees that this drafter cannot grow."""
    if tree is not None and (source is None or not is_eagle3(source)):
        what = "there is no drafter" if source is None else f"{read_gguf_header(source).path} is a draft model"
        raise UsageError(f"tree = {tree}: {what}; trees are grown by an EAGLE-3 drafter")


def make_target(source: GgufSource, *, tree: TreeShape | None, **settings: Any) -> LlamaTarget:
    """The target of a file, able to run trees of a shape if one is given. Errors: LlamaTarget, LlamaTreeTarget."""
    return LlamaTarget(source, **settings) if tree is None else LlamaTreeTarget(source, leaves=tree.nodes, **settings)


def make_drafter(
    source: GgufSource | None, target: Any, *, lookup: bool, tree: TreeShape | None = None,
    kernels: Kernels | None = None, **settings: Any,
) -> Drafter | None:  # fmt: skip
    """The drafter of a file, prompt lookup, or the first falling back on the second; None for neither.

    CheckpointError, ShapeError (other target or vocabulary), BackendError, UsageError (nothing can grow the tree).
    """
    check_grower(source, tree)
    if source is None:
        return LookupDrafter() if lookup else None
    if tree is not None:
        grower = LlamaEagle3TreeDrafter(source, target, top_k=tree.top_k, **settings)
        return TreeLookupDrafter(grower) if lookup else grower
    trained: Drafter = (
        open_drafter(source, target, kernels=kernels, **settings)
        if is_eagle3(source)
        else LlamaModelDrafter(source, target, **settings)
    )
    return FallbackDrafter(trained) if lookup else trained


def describe(drafter: Drafter | None) -> str:
    """The kind in words, for statistics and benchmarks."""
    if drafter is None:
        return "plain"
    if isinstance(drafter, (FallbackDrafter, TreeLookupDrafter)):
        return f"{describe(drafter.trained)} + lookup"
    if isinstance(drafter, LookupDrafter):
        return "lookup"
    return "eagle3" if drafter.capture_layers else "model"


def lookups(drafter: Drafter | None) -> int:
    """How many drafts of the last output came from prompt lookup in place of a trained drafter."""
    inner = drafter.inner if isinstance(drafter, DeferredDrafter) else drafter
    return inner.lookups if isinstance(inner, FallbackDrafter) else 0


def notes(target: object, drafter: Drafter | None) -> list[str]:
    """What a user should be told of how the models run, where it is not what they would expect."""
    model = getattr(target, "model", None)
    said = [getattr(model, "note", None)]
    if model is not None and 0 < model.n_ctx_train < (asked := getattr(target, "n_ctx", 0)):
        said.append(f"the context of {asked} tokens is longer than the {model.n_ctx_train} the model was trained for")
    said.append(getattr(getattr(drafter, "trained", drafter), "note", None))
    return [str(line) for line in said if line]
