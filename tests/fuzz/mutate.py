"""What is done to sound files: values of every wrong kind where the format has a value, and bytes anywhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.seeds import tiny

NUMBERS = (
    0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 257, 511, 512, 513, 1023, 1025, 4096, 65535, 65536, 1 << 20,
    (1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
)  # fmt: skip
FLOATS = (0.0, -1.0, 1e-30, 1e30, 1.5, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "x", "llama", "none", "bert", "gpt2", "rwkv", "t5", "\0", "a\0b", "\ud800", "é" * 40, "yarn", "longrope",
    "linear", "{% for x in range(99999999) %}{% endfor %}", "{{ 'a' * 3000000000 }}", "{{", "{{ messages[0] }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "default", "llama-bpe", "qwen2", "mamba", "gemma3", "A" * 5000,
)  # fmt: skip
# keys beside those of a file that make llama.cpp take another way
MORE = (
    "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count", "nextn_predict_layers",
    "attention.sliding_window", "attention.sliding_window_pattern", "attention.key_length", "attention.value_length",
    "attention.causal", "attention.q_lora_rank", "attention.kv_lora_rank", "attention.clamp_kqv", "attention.scale",
    "rope.dimension_count", "rope.dimension_sections", "rope.scaling.type", "rope.scaling.factor", "rope.freq_base",
    "rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.freq_base_swa", "ssm.conv_kernel",
    "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "pooling_type", "logit_scale", "residual_scale",
    "embedding_scale", "leading_dense_block_count", "use_parallel_residual", "tensor_data_layout", "vocab_size",
    "attention.group_norm_groups", "attention.layer_norm_epsilon", "attn_logit_softcapping", "decoder_start_token_id",
    "final_logit_softcapping", "attention.shared_kv_layers", "full_attention_interval", "shortconv.l_cache",
    "embedding_length_out", "features_length", "interleave_moe_layer_step", "attention.indexer.head_count",
)  # fmt: skip
TOKENIZER = (
    "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "eot_token_id", "add_bos_token",
    "add_eos_token", "add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap", "pre", "token_type_count",
    "model", "scores", "merges", "token_type", "suffix_token_id", "fim_pre_token_id", "eom_token_id",
)  # fmt: skip
KEYS = (
    "general.alignment", "general.type", "general.architecture", "general.file_type", "general.sampling.temp",
    "split.count", "split.no", "split.tensors.count", "general.quantization_version", "general.sampling.top_k",
    *(f"tokenizer.ggml.{name}" for name in TOKENIZER),
)  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any value a GGUF may hold."""
    kind = rng.randrange(6 if depth == 0 else 4)
    if kind == 0:
        return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.randrange(1 << 32)
    if kind == 1:
        return rng.choice(FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.random() < 0.5
    one = value(rng, 1)
    n = rng.choice((1, 2, 3, 5, tiny.N_LAYER, 40, 288, 4000))
    return [one] * n if rng.random() < 0.7 else [type(one)(value(rng, 1) == 0 or one) for _ in range(n)]


def near(rng: random.Random, old: Any) -> Any:
    """A value of the same kind beside the old one."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return max(0, rng.choice((old + 1, old - 1, old * 2, old // 2, old ^ (1 << rng.randrange(20)))))
    if isinstance(old, float):
        return rng.choice((*FLOATS, -old, old * 1e10))
    if isinstance(old, str):
        return rng.choice((old[:-1], old + "\0", old * 2, old.upper(), rng.choice(TEXTS)))
    if isinstance(old, list) and old:
        new = list(old)
        for _ in range(rng.choice((1, 1, 3, 20))):
            i = rng.randrange(len(new))
            new[i] = (
                rng.choice((near(rng, new[i]), new[rng.randrange(len(new))])) if not isinstance(new[i], list) else 0
            )
        return rng.choice((new, new[:-1], new + new[-1:], new[: len(new) // 2]))
    return value(rng)


def gguf(rng: random.Random, parts: Any, path: Path) -> None:
    """A GGUF with a few of its values, tensors or bytes changed."""
    arch, meta, tensors = parts[0], dict(parts[1]), dict(parts[2])
    raw = rng.random() < 0.25
    for _ in range(0 if raw else rng.choice((1, 1, 1, 2, 4))):
        where = rng.random()
        key = rng.choice(list(meta))
        if where < 0.35:
            meta[key] = near(rng, meta[key])
        elif where < 0.5:
            meta[key] = value(rng)
        elif where < 0.55:
            del meta[key]
        elif where < 0.75:
            prefix = "eagle3" if "eagle3" in arch else arch
            more = rng.choice((f"{prefix}.{rng.choice(MORE)}", rng.choice(KEYS)))
            meta[more] = value(rng)
        elif where < 0.8:
            arch = rng.choice(("llama", "qwen2", "gemma3", "mamba", "deepseek2", "smallthinker", "bert", "t5"))
            meta |= {f"{arch}.{k.partition('.')[2]}": v for k, v in meta.items() if k.startswith(f"{parts[0]}.")}
        else:
            name = rng.choice(list(tensors))
            tensors[name] = tensor(rng, tensors[name])
            if rng.random() < 0.2:
                tensors[rng.choice(list(tensors)) + rng.choice(("", "x", ".bias"))] = tensors[name]
            if rng.random() < 0.2:
                del tensors[name]
    meta.pop("general.architecture", None)
    tiny.write(path, arch, meta, tensors, quantize=rng.choice(("F32", "F32", "Q8_0", "F16")))
    if raw:
        data = bytearray(path.read_bytes())
        head = len(data) - sum(a.nbytes for a in tensors.values())
        path.write_bytes(damaged(rng, data, max(head, 64)))


def tensor(rng: random.Random, a: np.ndarray) -> np.ndarray:
    """An array of another shape, type or content."""
    kind = rng.randrange(7)
    if kind == 0:
        return a[:-1] if len(a) > 1 else a
    if kind == 1:
        return np.concatenate([a, a[:1]])
    if kind == 2:
        return np.ascontiguousarray(a.T)
    if kind == 3:
        return a.astype(rng.choice((np.float16, np.float64, np.int32, np.int8)))
    if kind == 4:
        new = a.copy()
        new.flat[rng.randrange(a.size)] = rng.choice((np.nan, np.inf, 1e38)) if a.dtype.kind == "f" else 1 << 40
        return new
    return a.reshape(-1) if kind == 5 else a.reshape(1, *a.shape)


def damaged(rng: random.Random, data: bytearray, head: int) -> bytes:
    """Bytes changed, above all among the first `head`; or the end cut off."""
    if rng.random() < 0.15:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(head, len(data)) if rng.random() < 0.9 else len(data))
        width = rng.choice((1, 1, 4, 8))
        new = rng.choice((0, 1, 255, (1 << 63) - 1, 1 << 40, rng.getrandbits(64))) & ((1 << 8 * width) - 1)
        data[at : at + width] = new.to_bytes(width, "little")
    return bytes(data)


JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, 1 << 31, 1 << 40, 1 << 70, "", "x", [], {}, [[]], [None], {"a": 1},
    [1, 2, 3], "yarn", ["LlamaForCausalLM"], [-1, 0, 1], "\ud800", "\0", {"rope_type": "yarn", "factor": 2.0},
    {"type": "linear", "factor": 1e-320}, {"rope_type": []}, [1.5, "x"],
)  # fmt: skip


def json_value(rng: random.Random, node: Any) -> Any:
    """A JSON value with one place in it changed."""
    if isinstance(node, dict) and node and rng.random() < 0.85:
        key = rng.choice(list(node))
        new = dict(node)
        if rng.random() < 0.1:
            del new[key]
        elif rng.random() < 0.05:
            new[rng.choice(("x", "medusa_heads", "sliding_window", "layer_types"))] = rng.choice(JSON_VALUES)
        else:
            new[key] = json_value(rng, node[key])
        return new
    if isinstance(node, list) and node and rng.random() < 0.7:
        i = rng.randrange(len(node))
        return [*node[:i], json_value(rng, node[i]), *node[i + 1 :]]
    return rng.choice(JSON_VALUES)


def json_file(rng: random.Random, path: Path) -> None:
    """A JSON file with some of its values changed, or a few of its bytes."""
    if rng.random() < 0.1:
        path.write_bytes(damaged(rng, bytearray(path.read_bytes()), 1 << 20))
        return
    content = json.loads(path.read_text("utf-8"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = json_value(rng, content)
    path.write_text(json.dumps(content), "utf-8")


def checkpoint(rng: random.Random, folder: Path) -> None:
    """A checkpoint's directory with one of its files changed."""
    path = rng.choice(sorted(file for file in folder.iterdir() if file.is_file()))
    if path.suffix == ".json":
        json_file(rng, path)
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(json_value(rng, json.loads(data[8 : 8 + length]))).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    elif path.suffix == ".bin":
        data = bytearray(path.read_bytes())
        at = data.find(b"data.pkl")
        start = at if at > 0 and rng.random() < 0.8 else 0
        path.write_bytes(data[:start] + damaged(rng, data[start:], 3000))
    else:
        path.write_bytes(damaged(rng, bytearray(path.read_bytes()), 4000))
