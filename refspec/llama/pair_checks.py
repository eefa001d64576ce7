"""What must be true of a drafter, alone and with its target, before llama.cpp may run it.

`drafter_meta` reads what the file declares. These are the rules llama.cpp does not check itself: each violation is an
abort or a silently wrong result there (llama.cpp 0c1e57098).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from refspec.errors import BackendError, CheckpointError, RefspecError, ShapeError
from refspec.gguf import drafter_meta
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_tensor
from refspec.gguf.target_checks import check_boundaries, check_sizes, check_tensor_types
from refspec.llama.context import Context
from refspec.reference.config import DrafterConfig, FeatureNorm, weight_shapes


class Lender(Protocol):
    """What a drafter needs to know of its target, and the context it may borrow embedding and head from."""

    info: GgufInfo
    hidden_size: int
    n_vocab: int
    n_layer: int
    n_ctx: int
    context: Context


def drafter_config(info: GgufInfo, *, in_graph: bool = True) -> DrafterConfig:
    """The checked configuration of an eagle3 GGUF; with `in_graph`, BackendError where llama.cpp cannot compute it."""
    check_tensor_types(info)
    if info.arch in drafter_meta.ARCHS:
        check_sizes(info, drafter_meta.STOCK_ARCH)
    try:
        config = drafter_meta.from_metadata(info)
    except RefspecError as error:
        text = str(error)
        raise error if str(info.path) in text else type(error)(f"{info.path}: {text}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{info.path}: a metadata value of the wrong kind ({error}); convert it again") from None
    if in_graph and (reasons := drafter_meta.graph_reasons(config)):
        raise BackendError(
            f"{info.path}: llama.cpp cannot run it: {'; '.join(reasons)}; refspec can (drafter kernels: auto)"
        )
    _check_flags(info, config)
    _check_tensors(info, config)
    return config


def _check_flags(info: GgufInfo, config: DrafterConfig) -> None:
    """Flags that llama.cpp and refspec store under keys of their own, and values computed from metadata."""
    expected = drafter_meta.to_metadata(config)
    for key in ("eagle3.norm_before_fc", "eagle3.norm_before_residual"):
        if (info.metadata.get(key, False) is True) != expected[key]:
            raise CheckpointError(f"{info.path}: {key} contradicts the refspec.* keys; convert the drafter again")
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and info.metadata.get("tokenizer.ggml.model") != "none" and len(tokens) != config.vocab_size:
        raise ShapeError(
            f"{info.path}: {len(tokens)} tokenizer entries, but a vocabulary of {config.vocab_size}; convert it again"
        )
    if config.feature_norm is FeatureNorm.PER_STATE:
        for name, values in drafter_meta.fc_norm_values(info, config).items():
            if not np.isfinite(np.asarray(values, np.float32)).all():
                raise CheckpointError(f"{info.path}: refspec.{name} holds NaN or infinite values; the file is damaged")


def _check_tensors(info: GgufInfo, config: DrafterConfig) -> None:
    """Names and shapes, and the values of the one tensor llama.cpp indexes with: d2t."""
    required, optional = weight_shapes(config)
    shapes = {drafter_meta.TENSORS[n]: s for n, s in (required | optional).items() if n in drafter_meta.TENSORS}
    lent = {drafter_meta.TENSORS[n] for n in drafter_meta.SHARED}
    for name in required:
        gguf_name = drafter_meta.TENSORS.get(name)
        if gguf_name is not None and gguf_name not in info.tensors and gguf_name not in lent:
            raise CheckpointError(f"{info.path}: tensor {gguf_name!r} is missing; convert the drafter again")
    for name, tensor in info.tensors.items():
        if name not in shapes:
            raise CheckpointError(f"{info.path}: tensor {name!r} is not part of this drafter; llama.cpp refuses extras")
        if tuple(tensor.shape) != shapes[name]:
            raise ShapeError(
                f"{info.path}: tensor {name!r} is {list(tensor.shape)}, not {list(shapes[name])} as declared"
            )
    if "d2t" not in info.tensors:
        return
    if info.tensors["d2t"].type != "I64":
        raise CheckpointError(
            f"{info.path}: d2t is {info.tensors['d2t'].type}, but llama.cpp aborts unless it is I64; convert the"
            " drafter again"
        )
    if "output.weight" not in info.tensors:
        raise CheckpointError(f"{info.path}: has d2t but no output.weight for its vocabulary; convert it again")
    ids = read_tensor(info, "d2t")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise CheckpointError(
            f"{info.path}: d2t holds {ids.min()}..{ids.max()}, not ids in 0..{config.vocab_size - 1}; convert it again"
        )
    if len(np.unique(ids)) != len(ids):
        raise CheckpointError(f"{info.path}: d2t names a target id twice, as stored offsets do; convert it again")


def check_pair(
    drafter: GgufInfo, config: DrafterConfig, target: GgufInfo, hidden_size: int, n_vocab: int, n_layer: int
) -> None:
    """ShapeError or CheckpointError unless the drafter's sizes, layers and token strings are those of this target."""
    for what, mine, its in (
        ("eagle3.target_hidden_size", config.target_hidden_size, hidden_size),
        ("the vocabulary", config.vocab_size, n_vocab),
    ):
        if mine != its:
            raise ShapeError(f"{drafter.path}: {what} is {mine}, but {target.path} has {its}; it is for another target")
    check_boundaries(drafter.path, target.arch, n_layer, config.capture_layers)
    lent = [name for name in ("token_embd.weight", "output.weight") if name not in drafter.tensors]
    if lent and config.hidden_size != hidden_size:
        raise ShapeError(
            f"{drafter.path}: has no {lent[0]} and cannot use the target's: drafter width {config.hidden_size}, target"
            f" {hidden_size}; convert it with its own"
        )
    for name in lent:
        if name not in target.tensors and "token_embd.weight" not in target.tensors:
            raise CheckpointError(f"{drafter.path}: has no {name}, nor has {target.path}; convert it with its own")
    if "output.weight" in lent and "output.weight" not in target.tensors:
        shape = target.tensors["token_embd.weight"].shape  # tied: llama.cpp uses the embedding as the head
        if shape[0] != config.vocab_size:
            raise ShapeError(
                f"{target.path}: its head has {shape[0]} tokens, not {config.vocab_size}; it is for another target"
            )
    ours, theirs = (i.metadata.get("tokenizer.ggml.tokens") for i in (drafter, target))
    if ours is not None and theirs is not None and ours != theirs:
        # lengths were compared above
        first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise CheckpointError(
            f"{drafter.path}: token {first} is {ours[first]!r}, in {target.path} {theirs[first]!r}; another target's"
        )
