"""Bad target files, tokenizers and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bad_tools as tools
import numpy as np
import tiny
from bad_tools import IDS, good, load, plain, raw, registry, run, with_nan

from refspec.gguf.io import read_gguf_header
from refspec.llama.target import LlamaTarget

CASES, case = registry()

# ---- files
# -------------------------------------------------------------------------------------------------------------

case("missing", "CheckpointError", "nowhere.gguf")(lambda: load(tools.home / "nowhere.gguf"))
case("directory", "CheckpointError", "")(lambda: load(tools.home))
case("empty", "CheckpointError", "empty.gguf")(lambda: load(raw("empty.gguf", b"")))
case("not gguf", "CheckpointError", "text.gguf")(lambda: load(raw("text.gguf", b"hello, I am a text\n" * 100)))
case("truncated header", "CheckpointError", "truncated")(
    lambda: load(raw("head.gguf", tiny.target(tools.home / "a.gguf").read_bytes()[:5000]))
)
case("truncated tensors", "CheckpointError", "truncated")(
    lambda: load(raw("tail.gguf", tiny.target(tools.home / "a.gguf").read_bytes()[:-5000]))
)


@case("unknown architecture", "CheckpointError", "nonsense")
def _() -> None:
    run(load(tiny.write(tools.home / "x.gguf", "nonsense", *tiny.target_parts("llama"))))


@case("drafter as target", "CheckpointError", "is a drafter")
def _() -> None:
    load(tiny.drafter(tools.home / "d.gguf"))


@case("damaged quantized block", "CheckpointError", "'blk.0.ffn_up.weight'")
def _() -> None:
    path = tiny.target(tools.home / "x.gguf", quantize="Q8_0")
    data, tensor = bytearray(path.read_bytes()), read_gguf_header(path).tensors["blk.0.ffn_up.weight"]
    data[tensor.offset : tensor.offset + 2] = b"\x00\x7e"  # the float16 scale of the first block becomes NaN
    path.write_bytes(data)
    load(path)


def edited(
    name: str, error: str, words: str, metadata: dict[str, Any], arch: str = "llama", drop: tuple[str, ...] = ()
) -> None:
    """A target whose metadata is changed."""

    def call() -> None:
        meta, tensors = tiny.target_parts(arch)
        run(
            load(
                tiny.write(
                    tools.home / "x.gguf", arch, {k: v for k, v in (meta | metadata).items() if k not in drop}, tensors
                )
            )
        )

    case(name, error, words)(call)


edited("not a model", "CheckpointError", "general.type", {"general.type": "adapter"})
edited("eps negative", "CheckpointError", "layer_norm_rms_epsilon", {"llama.attention.layer_norm_rms_epsilon": -1.0})
edited("eps NaN", "CheckpointError", "layer_norm_rms_epsilon", {"llama.attention.layer_norm_rms_epsilon": float("nan")})
edited("no layers", "CheckpointError", "block_count", {"llama.block_count": 0})
edited("too many layers", "CheckpointError", "block_count", {"llama.block_count": 100000})
edited("heads do not divide", "CheckpointError", "head_count", {"llama.attention.head_count_kv": 3})
edited("rope wider than a head", "CheckpointError", "rope.dimension_count", {"llama.rope.dimension_count": 16})
edited(
    "rope of part of a head", "CheckpointError", "rope.dimension_count", {"qwen2.rope.dimension_count": 2}, arch="qwen2"
)
edited(
    "key length without tensors",
    "CheckpointError",
    "rope.dimension_count",
    {"qwen2.attention.key_length": 16},
    arch="qwen2",
)
for value in (0, 3):
    edited(
        f"rope of {value} channels", "CheckpointError", "rope.dimension_count", {"lfm2.rope.dimension_count": value},
        arch="lfm2",
    )  # fmt: skip
edited("groups without experts", "CheckpointError", "expert_group_count", {"llama.expert_group_count": 4})
edited("rope scaling unknown", "CheckpointError", "rope.scaling.type", {"llama.rope.scaling.type": "x"})
edited("experts without use", "CheckpointError", "expert_used_count", {"llama.expert_count": 8})
edited("use without experts", "CheckpointError", "expert_used_count", {"llama.expert_used_count": 2})
edited("look-ahead layers", "CheckpointError", "nextn_predict_layers", {"llama.nextn_predict_layers": 9})
edited("alignment", "CheckpointError", "general.alignment", {"general.alignment": 1})
edited("not causal", "CheckpointError", "causal", {"llama.attention.causal": False})
edited("missing key", "CheckpointError", "cannot load", {}, drop=("llama.attention.head_count",))
edited("token twice", "CheckpointError", "twice", {"tokenizer.ggml.tokens": ["a"] * tiny.V})
edited(
    "tokens alike up to a NUL", "CheckpointError", "'word286' twice",
    {"tokenizer.ggml.tokens": [*tiny.tokenizer()["tokenizer.ggml.tokens"][:-1], "word286\0x"]},
)  # fmt: skip
edited("a template that is a number", "CheckpointError", "chat_template", {"tokenizer.chat_template": 3})
edited("byte tokens in WordPiece", "CheckpointError", "byte tokens", {"tokenizer.ggml.model": "bert"})
edited("more tokens than rows", "CheckpointError", "cannot load", tiny.tokenizer(tiny.V + 8))


@case("smallthinker without experts", "CheckpointError", "expert_count")
def _() -> None:
    meta, tensors = tiny.target_parts("llama")
    meta = {k.replace("llama.", "smallthinker."): v for k, v in meta.items()} | {"tokenizer.ggml.model": "llama"}
    load(tiny.write(tools.home / "x.gguf", "smallthinker", meta, tensors))


@case("tensors that overlap", "CheckpointError", "overlap")
def _() -> None:
    path = tiny.target(tools.home / "x.gguf")
    info = read_gguf_header(path)
    names = sorted(info.tensors, key=lambda n: info.tensors[n].offset)
    data, second = bytearray(path.read_bytes()), names[1].encode()
    at = data.index(len(second).to_bytes(8, "little") + second) + 8 + len(second)
    at += 4 + 8 * len(info.tensors[names[1]].shape) + 4
    data[at : at + 8] = (32).to_bytes(8, "little")
    path.write_bytes(data)
    load(path)


def weighed(name: str, error: str, words: str, tensor: str, change: Callable[[np.ndarray], Any]) -> None:
    """A target with one tensor changed; None removes it."""

    def call() -> None:
        meta, tensors = tiny.target_parts("llama")
        tensors[tensor] = change(tensors[tensor])
        kept = {k: v for k, v in tensors.items() if v is not None}
        run(load(tiny.write(tools.home / "x.gguf", "llama", meta, kept)))

    case(name, error, words)(call)


weighed("target weight NaN", "CheckpointError", "'blk.1.attn_q.weight'", "blk.1.attn_q.weight", with_nan)
weighed("target norm NaN", "CheckpointError", "'output_norm.weight'", "output_norm.weight", with_nan)
weighed("target overflows", "BackendError", "not finite", "output_norm.weight", lambda a: a * np.float32(1e38))
weighed("target norm F16", "CheckpointError", "F16", "blk.0.attn_norm.weight", lambda a: a.astype(np.float16))
weighed("target weight F64", "CheckpointError", "F64", "blk.0.attn_q.weight", lambda a: a.astype(np.float64))
weighed("target weight integer", "CheckpointError", "I32", "blk.0.attn_q.weight", lambda a: a.astype(np.int32))
weighed("target tensor missing", "CheckpointError", "cannot load", "blk.0.attn_q.weight", lambda a: None)
weighed("target tensor shape", "CheckpointError", "cannot load", "blk.0.attn_q.weight", lambda a: a[:-1])


@case("convolution F16", "CheckpointError", "convolutions must be F32")
def _() -> None:
    meta, tensors = tiny.target_parts("lfm2")
    name = "blk.0.shortconv.conv.weight"
    run(load(tiny.write(tools.home / "x.gguf", "lfm2", meta, tensors | {name: tensors[name].astype(np.float16)})))


# ---- tokenizer
# ---------------------------------------------------------------------------------------------------------


def mute() -> LlamaTarget:
    return load(tiny.target(tools.home / "mute.gguf", with_tokenizer=False))


case("tokenize without tokenizer", "BackendError", "no usable tokenizer")(lambda: mute().tokenize("hello"))
case("text of a token without tokenizer", "BackendError", "no usable tokenizer")(lambda: mute().token_to_bytes(5))
case("text of an id outside", "ShapeError", "outside 0..287")(lambda: good().token_to_bytes(288))


@case("vocabulary without all bytes", "BackendError", "<0x")
def _() -> None:
    meta, tensors = tiny.target_parts("llama")
    meta["tokenizer.ggml.tokens"][40] = "other"
    load(tiny.write(tools.home / "x.gguf", "llama", meta, tensors)).tokenize("hello")


# ---- targets
# -----------------------------------------------------------------------------------------------------------

case("prompt longer than the context", "ShapeError", "context of 64")(lambda: good().decode([5] * 65))
case("no tokens", "ShapeError", "0 tokens")(lambda: good().decode([]))
case("id beyond the vocabulary", "ShapeError", "id 288")(lambda: good().decode([3, 288]))
case("negative id", "ShapeError", "id -1")(lambda: good().decode([-1]))
case("id beyond 32 bits", "ShapeError", "ids in 0..287")(lambda: good().decode([1 << 40]))
case("all logits of more than a batch", "UsageError", "at most 16")(
    lambda: good(n_batch=16, n_ubatch=16).decode([5] * 17)
)
case("rollback beyond", "ShapeError", "roll back")(lambda: good().rollback(1))
case("threads 0", "UsageError", "n_threads")(lambda: good(n_threads=0))
case("threads 513", "UsageError", "n_threads")(lambda: good(n_threads=513))
case("threads for batches 100000", "UsageError", "n_threads_batch")(lambda: good(n_threads_batch=100000))
case("context negative", "UsageError", "n_ctx")(lambda: good(n_ctx=-1))
case("batch 0", "UsageError", "n_batch")(lambda: good(n_batch=0))
case("kv type", "UsageError", "kv_type")(lambda: good(kv_type="f64"))
case("quantized cache without flash attention", "UsageError", "flash")(lambda: good(kv_type="q8_0", flash_attn="off"))
case("capture the output of the last layer", "ShapeError", "output of the last layer")(lambda: plain([1, 5]))
case("capture beyond", "ShapeError", "outside 0..4")(lambda: plain([6]))
case("capture negative", "ShapeError", "outside 0..4")(lambda: plain([-1]))
case("capture twice", "ShapeError", "twice")(lambda: plain([1, 1]))
case("embeddings by callback", "ShapeError", "embeddings")(
    lambda: load(tiny.target(tools.home / "q.gguf", "qwen2"), capture_layers=[0, 1])
)
case("staged where it aborts", "UsageError", "staged")(
    lambda: load(tiny.target(tools.home / "q.gguf", "qwen2"), capture_layers=[1], capture="staged")
)


@case("row without logits", "ShapeError", "no logits")
def _() -> None:
    target = good()
    target.decode(IDS, logits="last")
    target.logits(2)


@case("context full", "ShapeError", "do not fit")
def _() -> None:
    target = good()
    target.decode([5] * 64)
    target.decode([5])


@case("closed target decodes", "BackendError", "already closed")
def _() -> None:
    target = good()
    target.close()
    target.close()
    target.decode(IDS)


@case("closed target tokenizes", "BackendError", "already closed")
def _() -> None:
    target = good()
    target.close()
    target.tokenize("hello")
