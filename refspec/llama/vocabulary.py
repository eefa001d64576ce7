"""Whether a draft model may propose tokens to a target: the same ids must mean the same token strings.

llama.cpp does not check this: a wrong vocabulary would draft nonsense, which verification rejects token by token, and
nobody would learn why speculation loses.
"""

from __future__ import annotations

from refspec.errors import CheckpointError, ShapeError
from refspec.gguf.header import GgufInfo

UNUSED = 5  # LLAMA_TOKEN_TYPE_UNUSED: converters pad a vocabulary to the width of the head with these
NEEDED = "a draft model needs the target's vocabulary"
_TOKENS, _TYPES, _MODEL = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.model"


def check_vocabulary(drafter: GgufInfo, target: GgufInfo, n_drafter: int, n_target: int) -> int:
    """The number of ids both models know; they may differ only by unused padding at the end.

    ShapeError (sizes), CheckpointError (token strings, kinds of tokenizer), naming the first difference.
    """
    for key in (_MODEL, "tokenizer.ggml.pre"):
        ours, theirs = drafter.metadata.get(key), target.metadata.get(key)
        if ours != theirs and None not in (ours, theirs):
            raise CheckpointError(f"{drafter.path}: {key} is {ours!r}, but {theirs!r} in {target.path}; {NEEDED}")
    common = min(n_drafter, n_target)
    for info, n in ((drafter, n_drafter), (target, n_target)):
        kinds = info.metadata.get(_TYPES) or []
        if n != common and (len(kinds) != n or any(kind != UNUSED for kind in kinds[common:])):
            raise ShapeError(f"{drafter.path}: it has {n_drafter} tokens, {target.path} has {n_target}; {NEEDED}")
    ours, theirs = drafter.metadata.get(_TOKENS), target.metadata.get(_TOKENS)
    if (ours is None) != (theirs is None):
        bare, other = (drafter, target) if ours is None else (target, drafter)
        raise CheckpointError(
            f"{bare.path}: has no token strings ({_TOKENS}) to compare with {other.path}; convert it with its tokenizer"
        )
    for i, (a, b) in enumerate(zip((ours or [])[:common], (theirs or [])[:common], strict=False)):
        if a != b:
            raise CheckpointError(f"{drafter.path}: token {i} is {a!r}, but {b!r} in {target.path}; {NEEDED}")
    return common
