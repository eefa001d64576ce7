"""Which drafter a file is, and how it is made: EAGLE-3, a stand-alone draft model, prompt lookup, or one falling back
on the other.

Not a loader of targets (`api.load`). The header decides: architecture eagle3 or refspec-eagle3 is a trained drafter of
the target's states, any other that may run as a target is a draft model with the target's vocabulary.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from refspec.decoding.drafter import Drafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.tree_lookup import TreeLookupDrafter
from refspec.errors import UsageError
from refspec.gguf import drafter_meta
from refspec.gguf.io import read_gguf_header
from refspec.llama.pair_checks import drafter_config
from refspec.reference.tree import TreeShape

if TYPE_CHECKING:
    from refspec.llama.native_eagle3 import Kernels
    from refspec.llama.target import LlamaTarget


def is_eagle3(path: str | os.PathLike[str]) -> bool:
    """Whether a GGUF file is an EAGLE-3 drafter; CheckpointError when it cannot be read."""
    return read_gguf_header(path).arch in drafter_meta.ARCHS


def capture_layers(path: str | os.PathLike[str] | None) -> tuple[int, ...]:
    """Boundaries of the target that a drafter's file asks for; none for a draft model, or without a file."""
    if path is None or not is_eagle3(path):
        return ()
    return drafter_config(read_gguf_header(path), in_graph=False).capture_layers


def make_target(path: str | os.PathLike[str], *, tree: TreeShape | None, **settings: Any) -> LlamaTarget:
    """The target of a file, able to run trees of a shape if one is given. Errors: LlamaTarget, LlamaTreeTarget."""
    from refspec.llama.target import LlamaTarget
    from refspec.llama.tree_target import LlamaTreeTarget

    return LlamaTarget(path, **settings) if tree is None else LlamaTreeTarget(path, leaves=tree.nodes, **settings)


def make_drafter(
    path: str | os.PathLike[str] | None,
    target: Any,
    *,
    lookup: bool,
    tree: TreeShape | None = None,
    kernels: Kernels | None = None,
    **settings: Any,
) -> Drafter | None:
    """The drafter of a file, of the text itself (`lookup`), or both; None for neither. `settings` are the engine's.

    What runs an EAGLE-3 drafter is `open_drafter`'s choice unless `kernels` makes it; `note` says when it is not
    llama.cpp.

    Raises CheckpointError or ShapeError for a drafter of another target or vocabulary, BackendError when llama.cpp
    refuses, UsageError for a tree that nothing can grow.
    """
    # Imported here: lookup needs no llama.cpp.
    from refspec.llama.draft_model import LlamaModelDrafter
    from refspec.llama.eagle3_tree import LlamaEagle3TreeDrafter
    from refspec.llama.native_eagle3 import open_drafter

    if tree is not None:
        if path is None or not is_eagle3(path):
            what = "there is no drafter" if path is None else f"{path} is a draft model"
            raise UsageError(f"tree = {str(tree)!r}: {what}; trees are grown by an EAGLE-3 drafter")
        if kernels == "own":
            raise UsageError(
                f"tree = {str(tree)!r}: trees are grown by llama.cpp's drafter; leave the kernels to auto or llama"
            )
        grower = LlamaEagle3TreeDrafter(path, target, top_k=tree.top_k, **settings)
        return TreeLookupDrafter(grower) if lookup else grower
    if path is None:
        return LookupDrafter() if lookup else None
    trained: Drafter = (
        open_drafter(path, target, kernels=kernels, **settings)
        if is_eagle3(path)
        else LlamaModelDrafter(path, target, **settings)
    )
    return FallbackDrafter(trained) if lookup else trained


def describe(drafter: Drafter | None) -> str:
    """The kind in words, for statistics and benchmarks."""
    if drafter is None:
        return "plain"
    inner = getattr(drafter, "inner", drafter)
    if isinstance(inner, (FallbackDrafter, TreeLookupDrafter)):
        return f"{describe(inner.trained)} + lookup"
    if isinstance(inner, LookupDrafter):
        return "lookup"
    return "eagle3" if inner.capture_layers else "model"


def lookups(drafter: Drafter | None) -> int:
    """Drafts of the last text that were the text's own continuation in place of a trained drafter's."""
    inner = getattr(drafter, "inner", drafter)
    return inner.lookups if isinstance(inner, FallbackDrafter) else 0


def notes(target: object, drafter: Drafter | None) -> list[str]:
    """What a user should be told of how the models run, where it is not what they would expect."""
    inner = getattr(drafter, "inner", drafter)
    drafter = getattr(inner, "trained", inner)
    said = [getattr(getattr(target, "model", None), "note", None), getattr(drafter, "note", None)]
    return [str(line) for line in said if line]
