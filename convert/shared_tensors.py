"""What a drafter checkpoint leaves to its target, and whether the sizes of both and of its tensors fit."""

from __future__ import annotations

import numpy as np

from refspec.convert.names import Names
from refspec.convert.safetensors_io import Config
from refspec.convert.target_info import TargetFacts
from refspec.errors import CheckpointError, ShapeError
from refspec.gguf.drafter_meta import SHARED
from refspec.gguf.lazy import Lazy
from refspec.reference.config import DrafterConfig, weight_shapes

Tensors = dict[str, np.ndarray | Lazy]


def check_target(drafter: DrafterConfig, config: Config, facts: TargetFacts | None, where: str) -> list[str]:
    """Notes on widths; `CheckpointError` or `ShapeError` if the drafter contradicts itself or its target."""
    notes = []
    said, width = config.get("target_hidden_size"), drafter.target_hidden_size
    if said is not None and said != width:
        if width != drafter.hidden_size:  # speculators ignores the key and builds fc for the drafter's own width
            raise CheckpointError(
                f"{where}: target_hidden_size = {said} and {drafter.n_states} captured layers contradict the "
                f"{drafter.n_states * width} columns of fc; give the layers it was trained with (--layer-ids)"
            )
        notes.append(f"target_hidden_size = {said} is not what fc was built for: {width}")
    if facts is None:
        return [*notes, "no target given: the file has no tokenizer and fits only by width and vocabulary size"]
    pairs = (("width of the captured states", drafter.target_hidden_size, facts.hidden_size),
             ("vocabulary", drafter.vocab_size, facts.vocab_size))  # fmt: skip
    for what, ours, theirs in pairs:
        if ours != theirs:
            raise ShapeError(f"{where}: {what} is {ours}, target {facts.path} has {theirs}; it is for another one")
    if max(drafter.capture_layers) > facts.n_layer:
        raise ShapeError(f"{where}: captures layers {drafter.capture_layers}; {facts.path} has {facts.n_layer} layers")
    return notes


def lend(tensors: Tensors, drafter: DrafterConfig, tied: bool, facts: TargetFacts | None, where: str) -> list[str]:
    """Fill in an embedding or head the checkpoint leaves out, from its own embedding if tied, else from the target."""
    notes = []
    embedding, ids = tensors.get("token_embd"), tensors.get("d2t")
    if "output" not in tensors and tied and isinstance(embedding, Lazy) and ids is None:
        tensors["output"] = embedding
        notes.append("output is the checkpoint's own embedding: tie_word_embeddings = true and no lm_head")
    for name, theirs in (("token_embd", "embed_tokens.weight"), ("output", "lm_head.weight")):
        if name in tensors:
            continue
        if facts is None and not (name == "output" and ids is not None):
            notes.append(f"{name} is not in the checkpoint: the GGUF leaves it to the target")
            continue
        if facts is None:
            raise CheckpointError(f"{where}: {theirs} is missing, and its rows are the target's; give --target")
        if facts.hidden_size != drafter.hidden_size:
            raise ShapeError(
                f"{where}: {theirs} is missing, and the target's {facts.hidden_size} columns do not fit a drafter of "
                f"width {drafter.hidden_size}; get a checkpoint that has it"
            )
        rows = facts.matrix(name)
        tensors[name] = rows.take(ids) if name == "output" and isinstance(ids, np.ndarray) else rows
        notes.append(f"{name} copied from the target {facts.path.name}")
    return notes


def check_tensors(c: DrafterConfig, tensors: Tensors, names: Names, where: str) -> None:
    """Raise ShapeError for a shape, CheckpointError for a missing or unused tensor or a vector that is not finite.

    `names`: refspec's name -> the stored one. Values of matrices are checked when they are written.
    """
    required, optional = weight_shapes(c)
    for ours, shape in (required | optional).items():
        if (held := tensors.get(ours)) is None:
            if ours in required and ours not in SHARED:
                raise CheckpointError(f"{where}: no tensor for {ours!r} {list(shape)}; get the checkpoint again")
            continue
        theirs = names.get(ours, ours)
        if held.shape != shape:
            raise ShapeError(f"{where}: tensor {theirs!r} is {list(held.shape)}, config.json says {list(shape)}")
        if isinstance(held, np.ndarray) and held.dtype.kind == "f" and not np.isfinite(held).all():
            raise CheckpointError(f"{where}: tensor {theirs!r} holds NaN or infinite values; the checkpoint is damaged")
    if unused := sorted(tensors.keys() - required.keys() - optional.keys()):
        theirs = names.get(unused[0], unused[0])
        raise CheckpointError(f"{where}: tensor {theirs!r} has no use with these switches; --ignore {theirs} if right")
