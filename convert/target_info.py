"""What a drafter conversion needs to know about the target, from a GGUF or a Hugging Face directory alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refspec.convert.files import read_tensors
from refspec.convert.safetensors_io import read_json
from refspec.convert.tokenizer import tokenizer_metadata
from refspec.errors import CheckpointError, reads_file
from refspec.gguf.drafter_meta import ARCHS
from refspec.gguf.header import FilePath
from refspec.gguf.io import copy_metadata, read_gguf_header, tensor_rows
from refspec.gguf.lazy import Lazy


@dataclass(frozen=True)
class TargetFacts:
    """Sizes of a target, its tokenizer metadata, and its `token_embd` / `output` as `matrix(name)`, row by row."""

    path: Path
    hidden_size: int
    n_layer: int
    vocab_size: int
    tokenizer: Callable[[], dict[str, Any]]
    matrix: Callable[[str], Lazy]


@reads_file
def target_facts(path: FilePath) -> TargetFacts:
    """Read the facts of the target at `path`; `CheckpointError` if it is neither a GGUF nor a model directory."""
    path = Path(path)
    return _from_directory(path) if path.is_dir() else _from_gguf(path)


def _from_gguf(path: Path) -> TargetFacts:
    info = read_gguf_header(path)
    if info.arch in ARCHS:
        raise CheckpointError(f"{path}: is a drafter ({info.arch}); --target wants the model it drafts for")
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    vocab = info.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in info.tensors else None
    size = vocab or info.metadata.get(f"{info.arch}.vocab_size") or len(tokens or [])

    def matrix(name: str) -> Lazy:
        own = f"{name}.weight"
        return tensor_rows(info, own if own in info.tensors else "token_embd.weight")  # tied

    def tokenizer() -> dict[str, Any]:
        return {**copy_metadata(info, "tokenizer.ggml.")}

    hidden, n_layer = (info.need(f"{info.arch}.{key}", int) for key in ("embedding_length", "block_count"))
    return TargetFacts(path, hidden, n_layer, size, tokenizer, matrix)


def _from_directory(path: Path) -> TargetFacts:
    config, stored = read_json(path / "config.json"), read_tensors(path)
    sizes = [config.get(k) for k in ("hidden_size", "num_hidden_layers", "vocab_size")]
    if not all(type(s) is int and s > 0 for s in sizes):
        raise CheckpointError(f"{path / 'config.json'}: hidden_size, num_hidden_layers, vocab_size are {sizes}")

    def matrix(name: str) -> Lazy:
        embedding = "model.embed_tokens.weight"
        own = {"output": "lm_head.weight", "token_embd": embedding}[name]
        if (tensor := stored.get(own, stored.get(embedding))) is None or len(tensor.shape) != 2:
            raise CheckpointError(f"{path}: matrix {own!r} is missing; the drafter needs the target's")
        return tensor.lazy()

    def tokenizer() -> dict[str, Any]:
        values = tokenizer_metadata(path, config)
        values.pop("tokenizer.chat_template", None)
        return values

    hidden, n_layer, vocab = (int(s) for s in sizes if s is not None)
    return TargetFacts(path, hidden, n_layer, vocab, tokenizer, matrix)
