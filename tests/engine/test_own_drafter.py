"""Drafters llama.cpp's graph does not compute run on refspec's own kernels: the same drafts as the reference, the same text as plain decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec import ops
from refspec.config import BIASED, weight_shapes
from refspec.drafters.eagle3 import Eagle3Drafter
from refspec.drafters.llama import LlamaEagle3Drafter
from refspec.drafters.own import OwnEagle3Drafter, complete_weights, open_drafter
from refspec.errors import BackendError, CheckpointError, ShapeError
from refspec.formats.drafter_meta import TENSORS, from_metadata
from refspec.formats.gguf_io import read_gguf_header
from refspec.targets.llama import LlamaTarget

STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
KINDS: dict[str, dict[str, Any]] = {
    "query and key norms": {"extra": {"blk.0.attn_q_norm.weight": tiny.HEAD, "blk.0.attn_k_norm.weight": tiny.HEAD}},
    "every bias": {"biases": BIASED},
    "attention biases": {"biases": BIASED[1:5], "feature_norm": "none", "feedback": "pre_norm"},
    "no norm before the head": {"metadata": {"refspec.head_norm": False}},
    "two states": {"layers": [1, 3]},
    "four states": {"layers": [1, 2, 3, 4], "feature_norm": "concat"},
}


def write(path: Path, kind: str) -> Path:
    """A drafter of the kind for the tiny target, with a head of decisive logits."""
    made = {"feature_norm": "per_state", "feedback": "post_norm", **KINDS[kind]}
    extra, metadata, biases = made.pop("extra", {}), made.pop("metadata", {}), made.pop("biases", ())
    layers = made.get("layers", tiny.LAYERS)
    _, values, tensors = tiny.drafter_parts(**made)
    rng = np.random.default_rng(7)
    values |= metadata
    tensors["fc.weight"] = (rng.standard_normal((tiny.H, len(layers) * tiny.HT)) / 10).astype(np.float32)
    if made["feature_norm"] == "concat":
        tensors["enc.output_norm.weight"] = np.ones(len(layers) * tiny.HT, np.float32)
    values = {k: v for k, v in values.items() if not k.startswith("refspec.fc_norm.")}
    if made["feature_norm"] == "per_state":
        values |= {f"refspec.fc_norm.{i}": (1 + 0.3 * rng.standard_normal(tiny.HT)).tolist() for i in range(len(layers))}
    tensors |= {name: (1 + 0.3 * rng.standard_normal(size)).astype(np.float32) for name, size in extra.items()}
    for name in biases:
        tensors[TENSORS[f"{name}.bias"]] = rng.standard_normal(len(tensors[TENSORS[name]])).astype(np.float32)
    return tiny.write(path, "refspec-eagle3", values, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_it_drafts_what_the_reference_drafts(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "d.gguf", kind)
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=from_metadata(read_gguf_header(path)).capture_layers, **STRICT)
    drafter = open_drafter(path, target, **STRICT)
    assert isinstance(drafter, OwnEagle3Drafter) and "own C kernels" in drafter.note and "llama.cpp cannot run it: " in drafter.note
    reference = Eagle3Drafter(*complete_weights(read_gguf_header(path), target.info), ops)
    tokens = np.random.default_rng(3).integers(0, tiny.V, 30).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    for each in (drafter, reference):
        each.extend(tokens[1:], target.features())
    assert drafter.draft(6).tokens.tolist() == reference.draft(6).tokens.tolist()
    drafter.close()
    target.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_its_text_is_the_plain_text(tmp_path: Path, kind: str, temperature: float) -> None:
    tiny.target(tmp_path / "t.gguf")
    write(tmp_path / "d.gguf", kind)
    sampler = refspec.Sampler(temperature=temperature)
    with refspec.load(tmp_path / "t.gguf", tmp_path / "d.gguf", strict=True, threads=1, draft_max=4) as session:
        runs = []
        for speculate, sampled in ((True, False), (False, False), (True, True)):
            run = session.generate(tokens=[1, 9, 40, 7], max_tokens=40, sampler=sampler, seed=5, speculate=speculate, draft_sampling=sampled)
            list(run)
            runs.append(run)
    assert runs[0].tokens == runs[1].tokens and len(runs[0].tokens) > 1
    assert runs[0].statistics.judged and not runs[1].statistics.judged and runs[2].tokens


def test_what_llama_cpp_computes_runs_there(tmp_path: Path) -> None:
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    drafter = open_drafter(path, target, **STRICT)
    assert isinstance(drafter, LlamaEagle3Drafter) and not hasattr(drafter, "note")
    drafter.close()
    target.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_llama_cpp_drafter_refuses_it_by_its_reason(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "d.gguf", kind)
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), n_ctx=64, **STRICT)
    with pytest.raises(BackendError, match=r"llama\.cpp cannot run it"):
        LlamaEagle3Drafter(path, target, **STRICT)
    target.close()


def test_embedding_and_head_are_the_targets_where_the_file_has_none(tmp_path: Path) -> None:
    _, values, tensors = tiny.drafter_parts(shared=True, width=tiny.HT, feedback="post_norm")
    tensors["blk.0.attn_q.bias"] = np.ones(tiny.N_HEAD * tiny.HEAD, np.float32)
    path = tiny.write(tmp_path / "d.gguf", "refspec-eagle3", values, tensors)
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), n_ctx=64, **STRICT)
    drafter = OwnEagle3Drafter(path, target)
    config, weights = complete_weights(read_gguf_header(path), target.info)
    assert weights["output"].shape == weight_shapes(drafter.config)[0]["output"] == (tiny.V, tiny.HT)
    reference = Eagle3Drafter(config, weights, ops)
    features = np.random.default_rng(1).standard_normal((5, 3 * tiny.HT)).astype(np.float32)
    for each in (drafter, reference):
        each.extend(np.arange(5, dtype=np.int32), features)
    assert drafter.draft(4).tokens.tolist() == reference.draft(4).tokens.tolist()
    target.close()


@pytest.mark.parametrize(
    ("values", "tensors", "kind", "words"),
    [
        ({"eagle3.target_layers": [1, 2, 9]}, {}, ShapeError, "outside 0..4"),
        ({"eagle3.target_hidden_size": 40}, {"fc.weight": np.ones((tiny.H, 120), np.float32)}, ShapeError, "another target"),
        ({}, {"blk.0.attn_q.bias": np.full(32, np.nan, np.float32)}, CheckpointError, "NaN"),
        ({}, {"blk.0.attn_q.bias": np.ones(31, np.float32)}, ShapeError, "attn_q.bias"),
        ({}, {"blk.0.attn_norm.bias": np.ones(24, np.float32)}, CheckpointError, "not part of this drafter"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(tmp_path: Path, values: Any, tensors: Any, kind: type, words: str) -> None:
    _, base, held = tiny.drafter_parts(feedback="post_norm")
    bias = {"blk.0.attn_k.bias": np.ones(tiny.N_KV * tiny.HEAD, np.float32)}
    path = tiny.write(tmp_path / "d.gguf", "refspec-eagle3", base | values, held | bias | tensors)
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), n_ctx=64, **STRICT)
    with pytest.raises(kind, match=words) as caught:
        open_drafter(path, target)
    assert "\n" not in str(caught.value) and "d.gguf" in str(caught.value)
    target.close()
