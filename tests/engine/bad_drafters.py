"""Bad drafter files, drafters for other targets, and calls."""

from __future__ import annotations

from typing import Any

import bad_tools as tools
import numpy as np
import tiny
from bad_tools import drafted, pair, raw, registry, with_nan

from refspec.llama.eagle3 import LlamaEagle3Drafter

CASES, case = registry()

case("target as drafter", "CheckpointError", "drafter")(lambda: pair(tiny.target(tools.home / "a.gguf")))
case("drafter missing", "CheckpointError", "nowhere.gguf")(lambda: pair(tools.home / "nowhere.gguf"))
case("drafter truncated", "CheckpointError", "truncated")(
    lambda: pair(raw("tail.gguf", tiny.drafter(tools.home / "d.gguf").read_bytes()[:-3000]))
)


def redone(
    name: str, error: str, words: str, metadata: dict[str, Any] | None = None, *, tensors: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (), arch: str | None = None, **switches: Any,
) -> None:  # fmt: skip
    """A drafter with metadata or tensors changed; a tensor's change is a function of the old array, or a new array."""

    def call() -> None:
        own, meta, weights = tiny.drafter_parts(**switches)
        for key, change in (tensors or {}).items():
            weights[key] = change(weights[key]) if callable(change) else change
        meta, weights = ({k: v for k, v in d.items() if k not in drop} for d in (meta | (metadata or {}), weights))
        drafted(tiny.write(tools.home / "d.gguf", arch or own, meta, weights))

    case(name, error, words)(call)


redone(
    "another width",
    "ShapeError",
    "target_hidden_size",
    {"eagle3.target_hidden_size": 64},
    tensors={"fc.weight": np.ones((24, 192), np.float32)},
)
redone(
    "another vocabulary",
    "ShapeError",
    "vocabulary",
    {"eagle3.vocab_size": 290},
    tensors={"token_embd.weight": np.ones((290, 24), np.float32)},
)
redone("layers beyond the target", "ShapeError", "outside 0..4", {"eagle3.target_layers": [1, 2, 9]})
redone("the last layer's output", "ShapeError", "output of the last layer", {"eagle3.target_layers": [1, 2, 5]})
redone(
    "two layers",
    "BackendError",
    "exactly 3",
    {"eagle3.target_layers": [1, 2]},
    tensors={"fc.weight": np.ones((24, 64), np.float32)},
)
redone("another draft vocabulary", "CheckpointError", "draft_vocab_size = 100", {"refspec.draft_vocab_size": 100})
redone(
    "a vocabulary beyond all",
    "CheckpointError",
    "vocab_size",
    {"eagle3.vocab_size": 1 << 31},
    drop=("token_embd.weight",),
)
redone("two blocks", "CheckpointError", "block_count", {"eagle3.block_count": 2})
redone("no heads", "ShapeError", "n_heads", {"eagle3.attention.head_count": 0})
redone("fc shape", "ShapeError", "fc.weight", tensors={"fc.weight": lambda a: a[:, :-1]})
redone("fc NaN", "CheckpointError", "'fc.weight'", tensors={"fc.weight": with_nan})
redone(
    "fc norm NaN", "CheckpointError", "fc_norm.1", {"refspec.fc_norm.1": [float("nan")] * 32}, feature_norm="per_state"
)
redone("fc norm length", "CheckpointError", "fc_norm.1", {"refspec.fc_norm.1": [1.0] * 31}, feature_norm="per_state")
redone("fc norm missing", "CheckpointError", "fc_norm.2", drop=("refspec.fc_norm.2",), feature_norm="per_state")
redone(
    "drafter overflows", "BackendError", "not finite", tensors={"output_norm.weight": lambda a: a * np.float32(2e38)}
)
redone("d2t 32 bits", "CheckpointError", "I64", tensors={"d2t": lambda a: a.astype(np.int32)})
redone("d2t beyond the vocabulary", "CheckpointError", "d2t", tensors={"d2t": lambda a: a + 200})
redone("d2t negative", "CheckpointError", "d2t", tensors={"d2t": lambda a: a - 100})
redone("d2t offsets", "CheckpointError", "twice", tensors={"d2t": lambda a: a - np.arange(len(a))})
redone("d2t missing", "CheckpointError", "d2t", drop=("d2t",))
redone("d2t without head", "CheckpointError", "d2t", drop=("output.weight",))
redone("drafter tensor missing", "CheckpointError", "attn_q", drop=("blk.0.attn_q.weight",))
redone("drafter tensor unknown", "CheckpointError", "fc_norm.0", tensors={"fc_norm.0.weight": np.ones(32, np.float32)})
redone("drafter norm F16", "CheckpointError", "F16", tensors={"output_norm.weight": lambda a: a.astype(np.float16)})
redone("borrowing with another width", "ShapeError", "width", shared=True)
redone("post-norm under the stock name", "CheckpointError", "feedback", arch="eagle3", feedback="post_norm")
redone("unknown feedback", "ShapeError", "sideways", {"refspec.feedback": "sideways"}, feedback="post_norm")
redone(
    "flags that disagree",
    "CheckpointError",
    "norm_before_fc",
    {"eagle3.norm_before_fc": True},
    feature_norm="per_state",
    tensors={"enc.output_norm.weight": np.ones(96, np.float32)},
)
redone(
    "no norm before the head",
    "BackendError",
    "before the output head",
    {"refspec.head_norm": False},
    feedback="post_norm",
)
redone(
    "another tokenizer",
    "CheckpointError",
    "token 40",
    tiny.tokenizer()
    | {
        "tokenizer.ggml.tokens": [
            *tiny.tokenizer()["tokenizer.ggml.tokens"][:40],
            "other",
            *tiny.tokenizer()["tokenizer.ggml.tokens"][41:],
        ]
    },
)


def fresh() -> LlamaEagle3Drafter:
    return drafted(tiny.drafter(tools.home / "d.gguf"))


case("features of another width", "ShapeError", "features")(
    lambda: fresh().extend(np.array([5]), np.zeros((1, 95), np.float32))
)
case("features of too many rows", "ShapeError", "features")(
    lambda: fresh().extend(np.array([5]), np.zeros((2, 96), np.float32))
)
case("features NaN", "BackendError", "not finite")(
    lambda: fresh().extend(np.array([5]), np.full((1, 96), np.nan, np.float32))
)
case("negative drafter id", "ShapeError", "-1")(lambda: fresh().extend(np.array([-1]), np.zeros((1, 96), np.float32)))
case("drafter id outside", "ShapeError", "288")(lambda: fresh().extend(np.array([288]), np.zeros((1, 96), np.float32)))
case("drafter context full", "ShapeError", "exceed")(
    lambda: fresh().extend(np.full(500, 5), np.zeros((500, 96), np.float32))
)
case("drafter rollback beyond", "ShapeError", "roll back")(lambda: fresh().rollback(8))
case("negative draft length", "UsageError", "k = -1")(lambda: fresh().draft(-1))
case("coins without sampler", "UsageError", "sampler")(lambda: fresh().draft(2, coins=np.zeros(2)))


@case("draft after a rollback", "BackendError", "extend the drafter")
def _() -> None:
    drafter = fresh()
    drafter.rollback(3)
    drafter.draft(2)


@case("closed drafter", "BackendError", "already closed")
def _() -> None:
    drafter = fresh()
    drafter.close()
    drafter.draft(2)


@case("borrower outlives its target", "BackendError", "already closed")
def _() -> None:
    drafter = drafted(tiny.drafter(tools.home / "d.gguf", shared=True, width=tiny.HT))
    drafter.keep_alive.close()  # type: ignore[attr-defined]
    drafter.draft(2)
