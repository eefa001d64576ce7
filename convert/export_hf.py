"""A Llama target GGUF -> its Hugging Face directory: config.json, model.safetensors, tokenizer.json, chat template.

The inverse of `target.py` and `tokenizer.py`. A GGUF has only the name of its pre-tokenizer; the regular expression
comes from the table in `tokenizer.py`, and a name that is not there is an error.
"""

from __future__ import annotations

from typing import Any

from refspec.convert import checkpoint_out as to
from refspec.convert.export import DTYPES, Exported, loader, rounded, specials
from refspec.convert.export_config import TORCH
from refspec.convert.rope_out import rope_keys, scaling_in
from refspec.convert.target import LAYER, target_names
from refspec.convert.tokenizer import CONTROL, PRE_TOKENIZERS, UNUSED, USER_DEFINED
from refspec.errors import CheckpointError, UsageError, reads_file
from refspec.gguf.drafter_meta import decimal
from refspec.gguf.header import FilePath
from refspec.gguf.io import GgufInfo, read_gguf_header, rope_divisors
from refspec.gguf.recommended_sampling import to_generation_config

_TOP = {ours: theirs for theirs, ours in target_names(0, tied=False).items()}
_BLOCK = {ours: theirs for theirs, ours in LAYER.items()}


@reads_file
def export_target(path: FilePath, out: FilePath, *, dtype: str = "auto") -> Exported:
    """Write the Llama GGUF at `path` as a Hugging Face directory `out`; `dtype` auto is the smallest exact one.

    Raises `CheckpointError` for another architecture or tokenizer, `UsageError` if `out` holds a checkpoint already.
    """
    if dtype not in DTYPES:
        raise UsageError(f"{dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    info = read_gguf_header(path)
    if info.arch != "llama":
        raise CheckpointError(f"{info.path}: architecture {info.arch!r}; only llama has a Hugging Face export")
    heads, hidden = info.need("llama.attention.head_count", int), info.need("llama.embedding_length", int)
    head_dim = info.optional("llama.attention.key_length", int, hidden // max(heads, 1))
    entries = []
    for name, tensor in info.tensors.items():
        if name != "rope_freqs.weight":
            load = loader(info, name, head_dim, rotated=name.endswith(("attn_q.weight", "attn_k.weight")))
            entries.append(to.Entry(_name(info, name), tensor.shape, "float", load))
    tokenizer = _tokenizer(info)
    directory = to.new_directory(out)
    kind = to.exact_dtype(entries) if dtype == "auto" else dtype
    to.write_safetensors(directory / "model.safetensors", entries, kind)
    to.write_json(directory / "tokenizer.json", tokenizer)
    to.write_json(directory / "tokenizer_config.json", _tokenizer_config(info))
    if isinstance(template := info.metadata.get("tokenizer.chat_template"), str):
        to.write_text(directory / "chat_template.jinja", template)
    to.write_json(directory / "config.json", _config(info, head_dim, kind))
    if generation := to_generation_config(info.metadata):
        to.write_json(directory / "generation_config.json", generation)
    return Exported(directory, "Hugging Face Llama", kind, len(entries), rounded(info))


def _name(info: GgufInfo, name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match name.split("."):
        case ["blk", layer, kind, "weight"] if kind in _BLOCK:
            return f"model.layers.{layer}.{_BLOCK[kind]}.weight"
    raise CheckpointError(f"{info.path}: tensor {name!r} has no place in a Hugging Face Llama")


def _config(info: GgufInfo, head_dim: int, dtype: str) -> dict[str, Any]:
    def whole(key: str) -> int:
        return int(info.need(f"llama.{key}", int))

    theta = decimal(info.optional("llama.rope.freq_base", float, 10000.0))
    divisors = rope_divisors(info, "llama", head_dim)
    attention = decimal(info.optional("llama.rope.scaling.attn_factor", float, 1.0))
    heads, context = whole("attention.head_count"), whole("context_length")
    scaling = scaling_in(info, divisors, theta, head_dim, context, attention)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": whole("embedding_length"), "num_hidden_layers": whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": info.optional("llama.attention.head_count_kv", int, heads), "head_dim": head_dim,
        "intermediate_size": whole("feed_forward_length"), "vocab_size": info.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": context,
        "rms_norm_eps": decimal(info.need("llama.attention.layer_norm_rms_epsilon", float)),
        "tie_word_embeddings": "output.weight" not in info.tensors, "attention_bias": False, "mlp_bias": False,
        **rope_keys(theta, scaling), "torch_dtype": TORCH[dtype], "dtype": TORCH[dtype], **specials(info),
    }  # fmt: skip


def _tokenizer(info: GgufInfo) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE; `CheckpointError` where the GGUF has another kind."""
    kind, pre = info.metadata.get("tokenizer.ggml.model"), info.metadata.get("tokenizer.ggml.pre")
    patterns = {name: pattern for pattern, name in PRE_TOKENIZERS.items()}
    if kind != "gpt2" or (pre != "gpt-2" and pre not in patterns):
        known = ", ".join(["gpt-2", *patterns])
        raise CheckpointError(f"{info.path}: tokenizer {kind!r} ({pre!r}) cannot be written; known: BPE with {known}")
    tokens = info.need("tokenizer.ggml.tokens", list)
    types = info.optional("tokenizer.ggml.token_type", list, [1] * len(tokens))
    vocab: dict[str, int] = {}
    added = []
    for i, (token, type_) in enumerate(zip(tokens, types, strict=True)):
        if type_ in (CONTROL, USER_DEFINED):
            added.append({"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": type_ == CONTROL})  # fmt: skip
        if type_ != UNUSED:
            vocab[token] = i
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre == "gpt-2"}
    split = {"type": "Split", "pattern": {"Regex": patterns.get(str(pre))}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level if pre == "gpt-2" else steps, "post_processor": _post_processor(info, tokens),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe",
            "vocab": vocab, "merges": [m.split(" ") for m in info.optional("tokenizer.ggml.merges", list, [])],
        },
    }  # fmt: skip


def _post_processor(info: GgufInfo, tokens: list[str]) -> dict[str, Any] | None:
    bos = info.metadata.get("tokenizer.ggml.bos_token_id")
    if not info.metadata.get("tokenizer.ggml.add_bos_token") or type(bos) is not int:
        return None
    first = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"SpecialToken": {"id": tokens[bos], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, *second],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }  # fmt: skip


def _tokenizer_config(info: GgufInfo) -> dict[str, Any]:
    tokens, config = info.need("tokenizer.ggml.tokens", list), {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key, name in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        if type(i := info.metadata.get(f"tokenizer.ggml.{name}_token_id")) is int and i < len(tokens):
            config[key] = tokens[i]
    if isinstance(add := info.metadata.get("tokenizer.ggml.add_bos_token"), bool):
        config["add_bos_token"] = add  # type: ignore[assignment]
    if isinstance(template := info.metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return config
