"""Tiny GGUF files for the engine tests: targets of two architectures and eagle3 drafters, random weights, written with
`gguf`.

Written without refspec's own writer on purpose: these files are what llama.cpp defines, not what refspec would make of
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

V, D, HT, H, N_LAYER, FF = 288, 120, 32, 24, 5, 48
N_HEAD, N_KV, HEAD = 4, 2, 8
LAYERS = [1, 2, 4]
EPS, THETA = 1e-5, 10000.0


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _matrix(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)


def _norm(rng: np.random.Generator, n: int) -> np.ndarray:
    return (1 + 0.3 * rng.standard_normal(n)).astype(np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def write(
    path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray], quantize: str = "F32"
) -> Path:
    """One GGUF; matrices whose rows fill whole blocks become `quantize`, vectors stay as they are."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, array in tensors.items():
        kind = gguf.GGMLQuantizationType[quantize]
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if quantize != "F32" and array.ndim == 2 and array.dtype == np.float32 and array.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer(n: int | None = None) -> dict[str, Any]:
    """A byte-level SPM vocabulary: unk, bos, eos, then letters, then byte tokens (all of them if n >= 286)."""
    n = V if n is None else n
    tokens = ["<unk>", "<s>", "</s>", *[chr(97 + i) for i in range(26)], "\u2581"]
    types = [2, 3, 3, *[1] * 27]
    for b in range(min(256, n - len(tokens))):
        tokens.append(f"<0x{b:02X}>")
        types.append(6)
    while len(tokens) < n:
        tokens.append(f"word{len(tokens)}")
        types.append(1)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(n)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def target_parts(
    arch: str = "llama", *, seed: int = 0, with_tokenizer: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(metadata, tensors) of a target;

    arch llama, qwen3 (staged capture), lfm2 (the same, hybrid), qwen2 or gemma3 (by callback; a sliding window).
    """
    rng = _rng(seed)
    meta: dict[str, Any] = {
        f"{arch}.context_length": 512,
        f"{arch}.embedding_length": HT,
        f"{arch}.block_count": N_LAYER,
        f"{arch}.feed_forward_length": FF,
        f"{arch}.attention.head_count": N_HEAD,
        f"{arch}.attention.head_count_kv": N_KV,
        f"{arch}.attention.layer_norm_rms_epsilon": EPS,
        f"{arch}.rope.freq_base": THETA,
        f"{arch}.rope.dimension_count": HEAD,
    }
    meta |= tokenizer() if with_tokenizer else {"tokenizer.ggml.model": "none", f"{arch}.vocab_size": V}
    if arch == "gemma3":
        lengths = ("attention.key_length", HEAD), ("attention.value_length", HEAD), ("attention.sliding_window", 16)
        meta |= {f"gemma3.{name}": value for name, value in lengths}
    recurrent = [0, 2] if arch == "lfm2" else []
    if arch == "lfm2":
        kv = [0 if i in recurrent else N_KV for i in range(N_LAYER)]
        meta |= {"lfm2.shortconv.l_cache": 3, "lfm2.attention.head_count_kv": kv}
    t = {
        "token_embd.weight": _matrix(rng, V, HT) * 4,
        "output_norm.weight": _norm(rng, HT),
        "output.weight": _matrix(rng, V, HT) * 3,
    }
    for i in range(N_LAYER):
        b = f"blk.{i}."
        t |= {
            b + "attn_norm.weight": _norm(rng, HT),
            b + "ffn_norm.weight": _norm(rng, HT),
            b + "attn_q.weight": _matrix(rng, N_HEAD * HEAD, HT),
            b + "attn_k.weight": _matrix(rng, N_KV * HEAD, HT),
            b + "attn_v.weight": _matrix(rng, N_KV * HEAD, HT),
            b + "attn_output.weight": _matrix(rng, HT, N_HEAD * HEAD),
            b + "ffn_gate.weight": _matrix(rng, FF, HT),
            b + "ffn_up.weight": _matrix(rng, FF, HT),
            b + "ffn_down.weight": _matrix(rng, HT, FF),
        }
        if arch == "qwen2":
            t |= {b + f"attn_{n}.bias": _norm(rng, s * HEAD) for n, s in (("q", N_HEAD), ("k", N_KV), ("v", N_KV))}
        if arch == "gemma3":
            t |= {b + "post_attention_norm.weight": _norm(rng, HT), b + "post_ffw_norm.weight": _norm(rng, HT)}
        if arch in ("qwen3", "lfm2", "gemma3"):
            t |= {b + "attn_q_norm.weight": _norm(rng, HEAD), b + "attn_k_norm.weight": _norm(rng, HEAD)}
        if i in recurrent:
            t = {name: a for name, a in t.items() if not name.startswith(b + "attn_") or name == b + "attn_norm.weight"}
            t |= {
                b + "shortconv.conv.weight": _matrix(rng, HT, 3),
                b + "shortconv.in_proj.weight": _matrix(rng, 3 * HT, HT),
            }
            t[b + "shortconv.out_proj.weight"] = _matrix(rng, HT, HT)
    if arch == "lfm2":
        t["token_embd_norm.weight"] = t.pop("output_norm.weight")
    return meta, t


def target(
    path: Path, arch: str = "llama", *, seed: int = 0, with_tokenizer: bool = True, quantize: str = "F32"
) -> Path:
    """A target GGUF."""
    return write(path, arch, *target_parts(arch, seed=seed, with_tokenizer=with_tokenizer), quantize)


def drafter_parts(
    *,
    feature_norm: str = "none",
    feedback: str = "pre_norm",
    residual: str = "raw",
    draft_vocab: int = D,
    shared: bool = False,
    width: int = H,
    seed: int = 1,
    layers: list[int] | None = None,
) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """(architecture, metadata, tensors) of a drafter; `shared` leaves embedding and head to the target."""
    rng = _rng(seed)
    layers = LAYERS if layers is None else layers
    stock = feature_norm != "per_state" and feedback == "pre_norm"
    meta: dict[str, Any] = {
        "eagle3.context_length": 512, "eagle3.embedding_length": width, "eagle3.block_count": 1,
        "eagle3.feed_forward_length": FF, "eagle3.attention.head_count": N_HEAD, "eagle3.attention.head_count_kv": N_KV,
        "eagle3.attention.layer_norm_rms_epsilon": EPS, "eagle3.attention.key_length": HEAD,
        "eagle3.attention.value_length": HEAD, "eagle3.rope.freq_base": THETA, "eagle3.rope.dimension_count": HEAD,
        "eagle3.vocab_size": V, "eagle3.target_layers": layers, "eagle3.target_hidden_size": HT,
        "eagle3.norm_before_residual": residual == "normed", "eagle3.norm_before_fc": feature_norm == "concat",
        "tokenizer.ggml.model": "none", "refspec.feature_norm": feature_norm, "refspec.feedback": feedback,
        "refspec.residual": residual, "refspec.head_norm": True, "refspec.qk_norm": False,
        "refspec.draft_vocab_size": V if shared else draft_vocab,
    }  # fmt: skip
    t = {
        "fc.weight": _matrix(rng, width, 3 * HT),
        "output_norm.weight": _norm(rng, width),
        "blk.0.attn_norm.weight": _norm(rng, width),
        "blk.0.attn_norm_2.weight": _norm(rng, width),
        "blk.0.ffn_norm.weight": _norm(rng, width),
        "blk.0.attn_q.weight": _matrix(rng, N_HEAD * HEAD, 2 * width),
        "blk.0.attn_k.weight": _matrix(rng, N_KV * HEAD, 2 * width),
        "blk.0.attn_v.weight": _matrix(rng, N_KV * HEAD, 2 * width),
        "blk.0.attn_output.weight": _matrix(rng, width, N_HEAD * HEAD),
        "blk.0.ffn_gate.weight": _matrix(rng, FF, width),
        "blk.0.ffn_up.weight": _matrix(rng, FF, width),
        "blk.0.ffn_down.weight": _matrix(rng, width, FF),
    }
    if not shared:
        t |= {"token_embd.weight": _matrix(rng, V, width) * 4, "output.weight": _matrix(rng, draft_vocab, width) * 3}
        if draft_vocab != V:
            t["d2t"] = np.sort(rng.permutation(V)[:draft_vocab]).astype(np.int64)
    if feature_norm == "concat":
        t["enc.output_norm.weight"] = _norm(rng, 3 * HT)
    if feature_norm == "per_state":
        meta |= {f"refspec.fc_norm.{i}": _norm(rng, HT).tolist() for i in range(3)}
    return "eagle3" if stock else "refspec-eagle3", meta, t


def drafter(path: Path, *, quantize: str = "F32", **switches: Any) -> Path:
    """A drafter GGUF."""
    return write(path, *drafter_parts(**switches), quantize)
