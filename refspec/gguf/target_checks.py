"""What must hold of a target GGUF before llama.cpp may load it: each rule prevents an abort or a wrong result.

Not a reader: `io.read_gguf_header` has already refused files that are missing, truncated or not GGUF. Facts about
llama.cpp 0c1e57098 (llama-cpp-python 0.3.36), found by reading and running it.
"""

from __future__ import annotations

import math
from typing import Any

from refspec.errors import CheckpointError, ShapeError, reads_file
from refspec.gguf import drafter_meta
from refspec.gguf.header import GgufInfo

DRAFTER_ARCHS = (*drafter_meta.ARCHS, "dflash", "gemma4-assistant")

# Architectures whose graph marks the input of every layer 0..n_layer-1; elsewhere llama.cpp's call for it aborts.
STAGED_ARCHS = frozenset({
    "bailingmoe3", "deepseek4", "gemma4", "gpt-oss", "hunyuan_vl", "lfm2", "llama", "mimo2", "minimax-01", "minimax-m2",
    "muse-glimmer", "nanbeige", "nemotron_h", "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
    "qwen4exp",
})  # fmt: skip

# Architectures whose graph asserts that RoPE turns the whole head.
FULL_ROPE_ARCHS = frozenset({
    "baichuan", "deci", "eagle3", "exaone", "exaone4", "falcon", "granite", "hunyuan_vl", "internlm2", "llama",
    "llama4", "minimax-m2", "mistral3", "nemotron", "olmo", "olmo2", "olmoe", "orion", "qwen2", "qwen2moe", "qwen2vl",
    "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "seed_oss", "smollm3", "starcoder2", "xverse",
})  # fmt: skip

# Architectures without RoPE: what a file says of it is not read.
NO_ROPE_ARCHS = frozenset({
    "arwkv7", "bloom", "clip", "gpt2", "gptj", "jais", "jamba", "jina-bert-v2", "kimi-linear", "mamba", "mamba2", "mpt",
    "nemotron_h", "nemotron_h_moe", "refact", "rwkv6", "rwkv6qwen2", "rwkv7", "t5", "t5encoder", "wavtokenizer-dec",
})  # fmt: skip
EXPERT_ARCHS = frozenset({"smallthinker"})  # whose graph asserts that there are experts

MAX_LAYERS, MAX_EXPERTS = 512, 1024  # arrays of this size in llama.cpp
BYTE_TOKEN = 6  # LLAMA_TOKEN_TYPE_BYTE


def check_tensor_types(info: GgufInfo) -> None:
    """Raise CheckpointError for a tensor type that makes llama.cpp abort in a matrix multiplication or a norm."""
    for name, tensor in info.tensors.items():
        integer = tensor.type.startswith("I") and tensor.type[1:].isdigit()
        if tensor.type == "F64":
            raise CheckpointError(f"{info.path}: tensor {name!r} is F64, which llama.cpp cannot run; convert it to F32")
        if integer and name.endswith((".weight", ".bias")):
            raise CheckpointError(f"{info.path}: tensor {name!r} is {tensor.type}; weights must be float or quantized")
        if name.endswith(("conv.weight", "conv1d.weight")) and tensor.type != "F32":
            raise CheckpointError(f"{info.path}: tensor {name!r} is {tensor.type}; convolutions must be F32")
        vector = name.endswith(".bias") or "norm" in name or "rope_f" in name
        if vector and tensor.type != "F32":
            raise CheckpointError(f"{info.path}: tensor {name!r} is {tensor.type}; norms and biases must be F32")


@reads_file
def check_target(info: GgufInfo) -> None:
    """Raise CheckpointError unless the file may be loaded as a target."""
    if info.arch in DRAFTER_ARCHS:
        raise CheckpointError(f"{info.path}: architecture {info.arch!r} is a drafter, not a target; pass it with -d")
    if info.metadata.get("general.type", "model") != "model":
        raise CheckpointError(f"{info.path}: general.type is {str(info.metadata['general.type'])[:40]!r}, not a model")
    if info.metadata.get(f"{info.arch}.attention.causal", True) is not True:
        raise CheckpointError(f"{info.path}: {info.arch}.attention.causal = false: it does not generate left to right")
    check_tensor_types(info)
    check_sizes(info, info.arch)
    _check_vocabulary(info)


def check_sizes(info: GgufInfo, prefix: str) -> None:
    """Raise CheckpointError for a value that llama.cpp asserts, divides by or indexes with; it reports absent keys."""

    def get(key: str) -> Any:
        return info.metadata.get(f"{prefix}.{key}")

    def refuse(key: str, rule: str) -> None:
        value = str(info.metadata.get(key))[:40]
        raise CheckpointError(f"{info.path}: {key} = {value} must be {rule}; convert the model again")

    alignment = info.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8:
        refuse("general.alignment", "at least 8")
    for key in ("block_count", "embedding_length", "context_length"):
        high = MAX_LAYERS if key == "block_count" else (1 << 31) - 1
        value = get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= high):
            refuse(f"{prefix}.{key}", f"an integer in 1..{high}")
    for key in info.metadata:
        value = info.metadata[key]
        if key.endswith("_epsilon") and not (isinstance(value, float) and math.isfinite(value) and value >= 0):
            refuse(key, "a number >= 0")
    if get("rope.scaling.type") not in (None, "none", "linear", "yarn", "longrope"):
        refuse(f"{prefix}.rope.scaling.type", "none, linear, yarn or longrope")
    _check_heads(info, prefix, get("attention.head_count"), get("attention.head_count_kv"))
    experts, used = get("expert_count") or 0, get("expert_used_count") or 0
    numbers = isinstance(experts, int) and isinstance(used, int)
    if numbers and (experts or used) and not 1 <= used <= experts <= MAX_EXPERTS:
        rule = f"1..expert_count, here {experts} (at most {MAX_EXPERTS}), or both absent"
        refuse(f"{prefix}.expert_used_count", rule)
    groups = get("expert_group_count")
    if prefix in EXPERT_ARCHS and not experts:
        refuse(f"{prefix}.expert_count", "at least 1")
    if isinstance(groups, int) and groups and not (numbers and 1 <= groups <= experts):
        refuse(f"{prefix}.expert_group_count", f"0, or 1..expert_count, here {experts}")
    ahead, layers = get("nextn_predict_layers") or 0, get("block_count")
    if isinstance(ahead, int) and isinstance(layers, int) and ahead >= layers:
        refuse(f"{prefix}.nextn_predict_layers", f"below block_count = {layers}")


def _check_heads(info: GgufInfo, prefix: str, heads: Any, kv: Any) -> None:
    if isinstance(heads, int) and isinstance(kv, int) and kv > 0 and heads % kv:
        raise CheckpointError(f"{info.path}: {prefix}: head_count {heads} is no multiple of head_count_kv {kv}")
    width = info.metadata.get(f"{prefix}.embedding_length")
    head_dim = width // heads if isinstance(heads, int) and heads > 0 and isinstance(width, int) else None
    head_dim = info.metadata.get(f"{prefix}.attention.key_length", head_dim)
    rotated = info.metadata.get(f"{prefix}.rope.dimension_count", head_dim)
    for key, value in info.metadata.items():
        # llama.cpp counts the rotated channels down in pairs: from another number it never ends
        bad = type(value) is not int or value < 2 or value % 2
        if bad and key.startswith(f"{prefix}.rope.dimension_count") and prefix not in NO_ROPE_ARCHS:
            raise CheckpointError(f"{info.path}: {key} = {str(value)[:40]} must be even and at least 2")
    if not isinstance(rotated, int) or not isinstance(head_dim, int):
        return
    if prefix in NO_ROPE_ARCHS:
        return
    if rotated < 2 or rotated > head_dim or rotated % 2 or (rotated != head_dim and prefix in FULL_ROPE_ARCHS):
        rule = "equal" if prefix in FULL_ROPE_ARCHS else "even, at least 2 and at most"
        raise CheckpointError(
            f"{info.path}: {prefix}.rope.dimension_count = {rotated} must be {rule} head size {head_dim}; convert again"
        )


def _check_vocabulary(info: GgufInfo) -> None:
    info.optional("tokenizer.chat_template", str, "")
    tokens, model = info.metadata.get("tokenizer.ggml.tokens"), info.metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, list) or model == "none":
        return
    # llama.cpp ends a token at a NUL, and names an empty one by its number
    tokens = [str(token).partition("\0")[0] or i for i, token in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        seen: set[str | int] = set()
        twice = next(t for t in tokens if t in seen or seen.add(t))  # type: ignore[func-returns-value]
        raise CheckpointError(f"{info.path}: tokenizer.ggml.tokens holds {twice!r} twice; convert the model again")
    if model in ("bert", "rwkv") and BYTE_TOKEN in (info.metadata.get("tokenizer.ggml.token_type") or ()):
        raise CheckpointError(f"{info.path}: tokenizer.ggml.token_type has byte tokens, which {model!r} cannot have")


def check_boundaries(path: Any, arch: str, n_layer: int, layers: tuple[int, ...]) -> None:
    """Raise ShapeError unless every boundary can be captured from this architecture."""
    staged = arch in STAGED_ARCHS
    for k in layers:
        if k == n_layer:
            raise ShapeError(
                f"{path}: capture layer {k} is the output of the last layer, which llama.cpp keeps only for output "
                f"rows; use a drafter with layers below {n_layer}"
            )
        if not 0 <= k < n_layer:
            raise ShapeError(f"{path}: capture layer {k} is outside 0..{n_layer - 1}; it is for another target")
        if k == 0 and not staged:
            raise ShapeError(f"{path}: capture layer 0 (embeddings) cannot be captured from architecture {arch!r}")
    if len(set(layers)) != len(layers):
        raise ShapeError(f"{path}: capture layers {list(layers)} name a layer twice")
