"""A teacher-forced prefix and a chain of forced tokens, by the reference, by C, and by llama.cpp, from one drafter
GGUF.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from refspec import native
from refspec.gguf.io import read_drafter
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.target import LlamaTarget
from refspec.reference.eagle3 import Eagle3Drafter

ATOL = 1e-4
Golden = Mapping[str, Any]
Chain = tuple[np.ndarray, np.ndarray]  # logits [D] after the prefix, [K, D] after each forced token


def write_target_for(directory: Path, golden: Golden, layers: int = 8, vocab: int = 300) -> Path:
    """A Llama target with the oracle's width and embedding: llama.cpp needs one beside a drafter."""
    width = golden["features"].shape[1] // 3
    rng = np.random.default_rng(5)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    embedding = golden["embed_tokens"] if "embed_tokens" in golden else matrix(vocab, width)
    if embedding.shape != (vocab, width):
        embedding = matrix(vocab, width)
    path = directory / "target.gguf"
    w = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "context_length": 256, "embedding_length": width, "block_count": layers, "feed_forward_length": 32,
        "attention.head_count": 4, "attention.head_count_kv": 4, "rope.dimension_count": width // 4,
        "vocab_size": vocab,
    }.items():  # fmt: skip
        w.add_uint32(f"llama.{key}", value)
    w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    w.add_string("tokenizer.ggml.model", "none")
    w.add_tensor("token_embd.weight", np.asarray(embedding, np.float32))
    w.add_tensor("output.weight", matrix(vocab, width))
    w.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(layers):
        for name, shape in {
            "attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width), "attn_output": (width, width),
            "ffn_gate": (32, width), "ffn_up": (32, width), "ffn_down": (width, 32),
        }.items():  # fmt: skip
            w.add_tensor(f"blk.{i}.{name}.weight", matrix(*shape))
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def chain_by_reference(path: Path, target: Path | None, golden: Golden) -> Chain:
    drafter = Eagle3Drafter(*read_drafter(path))
    rows = drafter.forward_rows(golden["prefix_tokens"], golden["features"], is_target_feature=True)
    prefix, state, chain = rows.logits[-1], rows.state_out[-1:], []
    for token in golden["chain_tokens"]:
        rows = drafter.forward_rows(np.array([token]), state, is_target_feature=False)
        chain.append(rows.logits[0])
        state = rows.state_out
    return prefix, np.array(chain)


def chain_in_c(path: Path, target: Path | None, golden: Golden) -> Chain:
    config, weights = read_drafter(path)
    tokens, features = golden["prefix_tokens"].tolist(), golden["features"]
    rows = native.Eagle3Rows(config, weights, len(tokens) + len(golden["chain_tokens"]))
    for i, token in enumerate(tokens):
        step = rows.step(token, rows.encode(features[i]), i)
    prefix, chain = step.logits, []
    for i, token in enumerate(golden["chain_tokens"].tolist()):
        step = rows.step(token, step.state_out, len(tokens) + i)
        chain.append(step.logits)
    return prefix, np.array(chain)


class _Forced:
    """Stands where a drafter picks its likeliest token, and picks the golden chain."""

    def __init__(self, drafter: LlamaEagle3Drafter, tokens: list[int]) -> None:
        self.drafter, self.tokens = drafter, iter([*tokens, 0])

    def __call__(self, drafted: Sequence[int]) -> tuple[int, float]:
        self.drafter.logits()  # the probe sees them
        return next(self.tokens), 1.0


def chain_by_llama(path: Path, target: Path, golden: Golden) -> Chain:
    strict: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
    lender = LlamaTarget(target, n_ctx=64, **strict)
    drafter = LlamaEagle3Drafter(path, lender, **strict)
    seen: list[np.ndarray] = []
    drafter.probe = lambda depth, logits, state: seen.append(logits)
    drafter.likeliest = _Forced(drafter, golden["chain_tokens"].tolist())  # type: ignore[method-assign]
    try:
        drafter.extend(golden["prefix_tokens"].astype(np.int32), np.ascontiguousarray(golden["features"], np.float32))
        drafter.draft(len(golden["chain_tokens"]) + 1)
        ids = drafter.draft_ids
    finally:
        drafter.close()
        lender.close()
    return seen[0][ids], np.array(seen[1:])[:, ids]
