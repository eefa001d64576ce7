"""A Hugging Face Llama directory -> a target GGUF that stock llama.cpp runs.

Rows of q and k are reordered from half-split to interleaved RoPE pairs, as llama.cpp's llama architecture wants them.
Tied embeddings write no output tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refspec.convert.files import read_tensors
from refspec.convert.names import BLOCK
from refspec.convert.report import Report, Resolved
from refspec.convert.rope import rope_settings
from refspec.convert.rope_out import kept_scaling
from refspec.convert.safetensors_io import StoredTensor, read_json, whole_number
from refspec.convert.tokenizer import tokenizer_metadata
from refspec.errors import CheckpointError, reads_file
from refspec.gguf.header import FilePath
from refspec.gguf.io import FILE_TYPES, TensorOut, interleave_rows, outtype_for, write_gguf
from refspec.gguf.recommended_sampling import from_generation_config, recommended

ARCHITECTURES = ("LlamaForCausalLM",)
# checkpoint name -> GGUF name of the tensors in every layer
LAYER = {theirs: ours for theirs, ours in BLOCK.items() if ours not in ("hidden_norm", "q_norm", "k_norm")}


def target_names(n_layers: int, *, tied: bool) -> dict[str, str]:
    """Checkpoint name -> GGUF name for every tensor a Llama of this size has."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not tied:
        names["lm_head.weight"] = "output.weight"
    for i in range(n_layers):
        for theirs, ours in LAYER.items():
            names[f"model.layers.{i}.{theirs}.weight"] = f"blk.{i}.{ours}.weight"
    return names


def _shape(name: str, s: Mapping[str, int]) -> tuple[int, ...]:
    """The shape a GGUF tensor must have, rows = outputs."""
    q, kv, h, f, v = s["n_heads"] * s["head_dim"], s["n_kv_heads"] * s["head_dim"], s["hidden"], s["ffn"], s["vocab"]
    kind = name.split(".")[-2]
    shapes = {"token_embd": (v, h), "output": (v, h), "attn_q": (q, h), "attn_k": (kv, h), "attn_v": (kv, h),
              "attn_output": (h, q), "ffn_gate": (f, h), "ffn_up": (f, h), "ffn_down": (h, f)}  # fmt: skip
    return shapes.get(kind, (h,))


def _loader(tensor: StoredTensor, gguf_name: str, head_dim: int) -> Callable[[], np.ndarray]:
    if gguf_name.endswith(("attn_q.weight", "attn_k.weight")):
        return lambda: interleave_rows(tensor.load(), head_dim)
    return tensor.load


@reads_file
def convert_target(
    directory: FilePath,
    out: FilePath,
    outtype: str = "f16",
    *,
    types: Mapping[str, str] | None = None,
    name: str | None = None,
    pre: str | None = None,
    add_bos: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Report:
    """Convert a Llama directory to GGUF; matrices become `outtype` (f32 f16 bf16 q8_0 q4_0), norms stay f32.

    `types` maps GGUF name patterns ("token_embd.weight", "blk.*.ffn_down.weight") to another type; `pre` and `add_bos`
    override what the tokenizer files say; `metadata` adds keys. Raises `CheckpointError`.
    """
    directory, config_path = Path(directory), Path(directory) / "config.json"
    config, stored = read_json(config_path), read_tensors(directory)
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{config_path}: architecture {architecture!r}; for all but Llama use llama.cpp's convert_hf_to_gguf.py"
        )

    def size(key: str, default: int | None = None) -> int:
        return whole_number(config, key, str(config_path), default)

    n_heads, hidden = size("num_attention_heads"), size("hidden_size")
    sizes = {
        "hidden": hidden, "n_heads": n_heads, "n_layers": size("num_hidden_layers"),
        "n_kv_heads": size("num_key_value_heads", n_heads),
        "head_dim": size("head_dim", hidden // n_heads),
        "ffn": size("intermediate_size"), "vocab": size("vocab_size"),
    }  # fmt: skip
    tied = bool(config.get("tie_word_embeddings", False))
    rope = rope_settings(config, sizes["head_dim"], str(config_path))
    theta, divisors, scaling = rope.theta, rope.divisors, rope.words
    if rope.attention_factor != 1.0:
        raise CheckpointError(f"{config_path}: yarn is not supported in targets; use llama.cpp's convert_hf_to_gguf.py")
    names = target_names(sizes["n_layers"], tied=tied)
    notes = []
    if tied and "lm_head.weight" in stored:  # some writers save the tied copy too
        if not np.array_equal(stored["lm_head.weight"].load(), stored["model.embed_tokens.weight"].load()):
            raise CheckpointError(f"{directory}: tie_word_embeddings is true but lm_head.weight differs; set it false")
        notes.append("lm_head.weight equals the embedding and is not written")
    if missing := sorted(names.keys() - stored.keys()):
        raise CheckpointError(f"{directory}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    ignored = {k for k in stored if k.endswith("rotary_emb.inv_freq") or (tied and k == "lm_head.weight")}
    if unknown := sorted(stored.keys() - names.keys() - ignored):
        raise CheckpointError(f"{directory}: tensor {unknown[0]!r} has no place in a Llama GGUF ({len(unknown)} such)")
    tensors = []
    for theirs, ours in names.items():
        shape = _shape(ours, sizes)
        if stored[theirs].shape != shape:
            held = list(stored[theirs].shape)
            raise CheckpointError(f"{directory}: {theirs} is {held}, config.json says {list(shape)}")
        wanted = next((t for pattern, t in (types or {}).items() if fnmatchcase(ours, pattern)), outtype)
        load = _loader(stored[theirs], ours, sizes["head_dim"])
        tensors.append(TensorOut(ours, shape, outtype_for(shape, wanted), load))
    if divisors is not None:
        tensors.append(TensorOut("rope_freqs.weight", divisors.shape, "f32", lambda: divisors))
    tokens = tokenizer_metadata(directory, config, pre=pre, add_bos=add_bos)
    generation = directory / "generation_config.json"
    sampling = from_generation_config(read_json(generation), str(generation)) if generation.is_file() else {}
    values = {
        "general.name": name or directory.resolve().name, "general.file_type": FILE_TYPES[outtype],
        "general.quantization_version": 2,
        "llama.context_length": size("max_position_embeddings"),
        "llama.embedding_length": hidden, "llama.block_count": sizes["n_layers"],
        "llama.feed_forward_length": sizes["ffn"], "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": sizes["n_kv_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "llama.attention.key_length": sizes["head_dim"], "llama.attention.value_length": sizes["head_dim"],
        "llama.rope.freq_base": theta, "llama.rope.dimension_count": sizes["head_dim"],
        "llama.vocab_size": sizes["vocab"], **kept_scaling(rope), **tokens, **sampling, **(metadata or {}),
    }  # fmt: skip
    path = write_gguf(out, "llama", values, tensors)
    report = Report(path, "llama", len(tensors), path.stat().st_size, notes=notes)
    bos_source = "tokenizer files" if add_bos is None else "argument"
    report.resolved = {
        "weights": Resolved(outtype, "argument"),
        "rope": Resolved(f"theta {theta:g}, {scaling}", "config.json"),
        "output head": Resolved("tied to the embedding" if tied else "own", "config.json tie_word_embeddings"),
        "pre-tokenizer": Resolved(tokens["tokenizer.ggml.pre"], "argument" if pre else "tokenizer.json"),
        "add BOS": Resolved(tokens["tokenizer.ggml.add_bos_token"], bos_source),
        "chat template": Resolved("yes" if "tokenizer.chat_template" in tokens else "no", "directory"),
    }
    if sampling:
        said = str(recommended(sampling, str(generation)))
        report.resolved["recommended sampling"] = Resolved(said, generation.name)
    return report
