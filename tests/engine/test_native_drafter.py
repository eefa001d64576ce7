"""Drafters llama.cpp's graph does not compute run on refspec's own kernels:

the same drafts as the reference, the same text as plain decoding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec import embedded
from refspec.decoding.draft_penalties import DraftPenalties
from refspec.errors import BackendError, CheckpointError, ShapeError, UsageError
from refspec.gguf.drafter_meta import TENSORS, from_metadata
from refspec.gguf.io import read_gguf_header
from refspec.gguf.types import weight_type
from refspec.llama import native_eagle3, vec_dot
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.native_eagle3 import NativeEagle3Drafter, complete_weights, open_drafter
from refspec.llama.openmp import team
from refspec.llama.target import LlamaTarget
from refspec.native.penalties import Penalizer
from refspec.reference import ops
from refspec.reference.config import BIASED, weight_shapes
from refspec.reference.eagle3 import Eagle3Drafter

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
        values |= {
            f"refspec.fc_norm.{i}": (1 + 0.3 * rng.standard_normal(tiny.HT)).tolist() for i in range(len(layers))
        }
    tensors |= {name: (1 + 0.3 * rng.standard_normal(size)).astype(np.float32) for name, size in extra.items()}
    for name in biases:
        tensors[TENSORS[f"{name}.bias"]] = rng.standard_normal(len(tensors[TENSORS[name]])).astype(np.float32)
    return tiny.write(path, "refspec-eagle3", values, tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_it_drafts_what_the_reference_drafts(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "d.gguf", kind)
    target = LlamaTarget(
        tiny.target(tmp_path / "t.gguf"), capture_layers=from_metadata(read_gguf_header(path)).capture_layers, **STRICT
    )
    drafter = open_drafter(path, target, **STRICT)
    assert (
        isinstance(drafter, NativeEagle3Drafter)
        and "runs inside refspec" in drafter.note
        and "llama.cpp cannot run it: " in drafter.note
    )
    reference = Eagle3Drafter(*complete_weights(read_gguf_header(path), target.info), ops)
    tokens = np.random.default_rng(3).integers(0, tiny.V, 30).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    for each in (drafter, reference):
        each.extend(tokens[1:], target.features())
    assert drafter.draft(6).tokens.tolist() == reference.draft(6).tokens.tolist()
    drafter.close()
    target.close()


@pytest.mark.parametrize("kernels", ["llama", "own"])
def test_under_penalties_every_way_to_run_a_drafter_drafts_what_the_reference_drafts(
    tmp_path: Path, kernels: Any
) -> None:
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    drafter = open_drafter(path, target, kernels=kernels, **STRICT)
    reference = Eagle3Drafter(*complete_weights(read_gguf_header(path), target.info), ops)
    tokens = np.random.default_rng(3).integers(0, tiny.V, 30).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    drafts = []
    for each in (drafter, reference):
        each.extend(tokens[1:], target.features())
        plain = each.draft(6).tokens.tolist()
        penalties = refspec.Penalties(
            presence=3.0, frequency=1.0, repeat_last_n=-1, dry_multiplier=2.0, dry_allowed_length=1
        )
        text = np.zeros(64, np.int32)
        text[: len(tokens)] = tokens
        each.penalties = made = DraftPenalties(Penalizer(penalties, target.n_vocab, len(text)), text, 5, target.n_vocab)
        made.begin(int(tokens[-1]), len(tokens) - 1)
        drafts.append(each.draft(6).tokens.tolist())
        stopped = each.draft(6, stop=lambda i, confidence: i == 4).tokens.tolist()
        assert stopped == drafts[-1][:4] and drafts[-1] != plain
    assert drafts[0] == drafts[1]
    drafter.close()
    target.close()


def test_penalties_go_with_their_text_and_a_draft_ends_where_the_text_may(tmp_path: Path) -> None:
    """C writes drafted tokens into the text's own buffer: never past its end, and never after the text is forgotten."""
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    drafter = open_drafter(path, target, kernels="own", **STRICT)
    tokens = np.random.default_rng(3).integers(0, tiny.V, 30).astype(np.int32)
    buffer = np.full(len(tokens) + 3 + 8, -1, np.int32)
    text = buffer[: len(tokens) + 3]  # room for three drafted tokens; what lies behind it is somebody else's
    penalties = DraftPenalties(
        Penalizer(refspec.Penalties(presence=3.0), target.n_vocab, len(text)), text, 5, target.n_vocab
    )
    target.decode(tokens[:-1], logits="none")
    for _ in range(2):
        drafter.extend(tokens[1:], target.features())
        plain = drafter.draft(6).tokens.tolist()
        text[: len(tokens)] = tokens
        drafter.penalties = penalties
        penalties.begin(int(tokens[-1]), len(tokens) - 1)
        assert len(drafter.draft(6).tokens) == 3 and (buffer[len(text) :] == -1).all()
        text[:] = -1
        drafter.reset()
        assert drafter.penalties is None
    drafter.extend(tokens[1:], target.features())
    assert drafter.draft(6).tokens.tolist() == plain and len(plain) == 6 and (buffer == -1).all()
    drafter.close()
    target.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_its_text_is_the_plain_text(tmp_path: Path, kind: str, temperature: float) -> None:
    tiny.target(tmp_path / "t.gguf")
    write(tmp_path / "d.gguf", kind)
    sampler = refspec.Sampler(temperature=temperature)
    with refspec.load(tmp_path / "t.gguf", tmp_path / "d.gguf", reproducible="f32", threads=1, draft_max=4) as session:
        runs = []
        for speculate, sampled in ((True, False), (False, False), (True, True)):
            run = session.generate(
                tokens=[1, 9, 40, 7],
                max_tokens=40,
                sampler=sampler,
                seed=5,
                speculate=speculate,
                draft_sampling=sampled,
            )
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
    drafter = NativeEagle3Drafter(path, target)
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
        (
            {"eagle3.target_hidden_size": 40},
            {"fc.weight": np.ones((tiny.H, 120), np.float32)},
            ShapeError,
            "another target",
        ),
        ({}, {"blk.0.attn_q.bias": np.full(32, np.nan, np.float32)}, CheckpointError, "NaN"),
        ({}, {"blk.0.attn_q.bias": np.ones(31, np.float32)}, ShapeError, "attn_q.bias"),
        ({}, {"blk.0.attn_norm.bias": np.ones(24, np.float32)}, CheckpointError, "not part of this drafter"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(
    tmp_path: Path, values: Any, tensors: Any, kind: type, words: str
) -> None:
    _, base, held = tiny.drafter_parts(feedback="post_norm")
    bias = {"blk.0.attn_k.bias": np.ones(tiny.N_KV * tiny.HEAD, np.float32)}
    path = tiny.write(tmp_path / "d.gguf", "refspec-eagle3", base | values, held | bias | tensors)
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), n_ctx=64, **STRICT)
    with pytest.raises(kind, match=words) as caught:
        open_drafter(path, target)
    assert "\n" not in str(caught.value) and "d.gguf" in str(caught.value)
    target.close()


def test_auto_takes_the_own_kernels_for_a_small_drafter_and_llama_cpp_for_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    small = open_drafter(path, target, kernels="auto", **STRICT)
    assert isinstance(small, NativeEagle3Drafter) and "so small" in small.note
    assert isinstance(open_drafter(path, target, kernels="llama", **STRICT), LlamaEagle3Drafter)
    assert isinstance(open_drafter(path, target, kernels="auto", n_gpu_layers=-1, **STRICT), LlamaEagle3Drafter)
    with monkeypatch.context() as patch:
        patch.setattr(native_eagle3, "functions", lambda _: None)  # a llama.cpp that does not say how it multiplies
        # float32 needs nothing of it
        assert isinstance(open_drafter(path, target, kernels="auto", **STRICT), NativeEagle3Drafter)
        stored = tiny.drafter(tmp_path / "q.gguf", quantize="F16", feature_norm="per_state", feedback="post_norm")
        assert isinstance(open_drafter(stored, target, kernels="auto", **STRICT), LlamaEagle3Drafter)
    monkeypatch.setattr(native_eagle3, "SMALL", 1000)
    assert isinstance(open_drafter(path, target, kernels="auto", **STRICT), LlamaEagle3Drafter)
    assert isinstance(open_drafter(path, target, kernels="own", **STRICT), NativeEagle3Drafter)
    with pytest.raises(UsageError, match="one of auto, llama, own"):
        open_drafter(path, target, kernels="gpu", **STRICT)  # type: ignore[arg-type]
    target.close()


def test_a_damaged_packed_type_table_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another layout of ggml's structs must end in llama.cpp doing the work, not in a jump to a wrong address."""
    assert vec_dot.functions(8) is not None
    monkeypatch.setattr(
        vec_dot, "weight_type", lambda i: weight_type(i)._replace(nbytes=33) if i == 8 else weight_type(i)
    )
    vec_dot.functions.cache_clear()
    vec_dot._tables.cache_clear()
    assert vec_dot.functions(8) is None and vec_dot.functions(1) is None
    monkeypatch.undo()
    vec_dot.functions.cache_clear()
    vec_dot._tables.cache_clear()


def test_a_stop_rule_ends_a_draft_before_the_token_it_refuses(tmp_path: Path) -> None:
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    drafter = NativeEagle3Drafter(path, target)
    tokens = np.random.default_rng(3).integers(3, tiny.V, 12).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    drafter.extend(tokens[1:], target.features())
    whole = drafter.draft(5)
    asked: list[tuple[int, float]] = []
    cut = drafter.draft(5, stop=lambda i, confidence: bool(asked.append((i, confidence))) or i == 3)
    assert cut.tokens.tolist() == whole.tokens[:3].tolist() and [i for i, _ in asked] == [0, 1, 2, 3]
    assert [c for _, c in asked] == whole.confidence[:4].tolist()
    target.close()


def test_a_rollback_wants_rows_before_the_next_draft(tmp_path: Path) -> None:
    path = tiny.drafter(tmp_path / "d.gguf", feature_norm="per_state", feedback="post_norm")
    target = LlamaTarget(tiny.target(tmp_path / "t.gguf"), capture_layers=tiny.LAYERS, **STRICT)
    drafter = NativeEagle3Drafter(path, target)
    assert drafter.draft(3).tokens.size == 0
    features = np.random.default_rng(1).standard_normal((4, 3 * tiny.HT)).astype(np.float32)
    drafter.extend(np.arange(4, dtype=np.int32), features)
    first = drafter.draft(3).tokens.tolist()
    drafter.rollback(4)  # drops drafted rows only
    assert drafter.draft(3).tokens.tolist() == first
    drafter.rollback(2)
    with pytest.raises(BackendError, match="extend the drafter after a rollback"):
        drafter.draft(3)
    drafter.extend(np.arange(2, 4, dtype=np.int32), features[2:])
    assert drafter.draft(3).tokens.tolist() == first
    with pytest.raises(ShapeError, match="cannot roll back to 9"):
        drafter.rollback(9)
    with pytest.raises(ShapeError, match="leave the vocabulary"):
        drafter.extend([tiny.V], features[:1])
    with pytest.raises(BackendError, match="not finite"):
        drafter.extend([1], np.full((1, 3 * tiny.HT), np.nan, np.float32))
    assert drafter.n_rows == 4 and drafter.draft(3).tokens.tolist() == first
    target.close()


def test_threads_of_llama_cpp_draft_the_same_bits(tmp_path: Path) -> None:
    target = LlamaTarget(embedded.path(embedded.TARGET), capture_layers=(2, 7, 11), n_ctx=64, n_threads=2)
    drafters = [NativeEagle3Drafter(embedded.path(embedded.DRAFTER), target, n_threads=n) for n in (1, 2, 3)]
    assert "one thread" in drafters[0].note
    if team(2) is not None:
        assert "2 threads" in drafters[1].note
    tokens = np.random.default_rng(3).integers(3, 4000, 12).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    drafts = []
    for drafter in drafters:
        drafter.extend(tokens[1:], target.features())
        drafts.append(drafter.draft(5))
    for draft in drafts[1:]:
        assert draft.tokens.tolist() == drafts[0].tokens.tolist() and np.array_equal(
            draft.confidence, drafts[0].confidence
        )
    target.close()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_sure_as_the_reference_and_its_rows_are_those_of_extend(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "d.gguf", kind)
    target = LlamaTarget(
        tiny.target(tmp_path / "t.gguf"), capture_layers=from_metadata(read_gguf_header(path)).capture_layers, **STRICT
    )
    drafter = open_drafter(path, target, **STRICT)
    assert isinstance(drafter, NativeEagle3Drafter)
    reference = Eagle3Drafter(*complete_weights(read_gguf_header(path), target.info), ops)
    tokens = np.random.default_rng(3).integers(0, tiny.V, 30).astype(np.int32)
    target.decode(tokens[:-1], logits="none")
    states = target.features().copy()
    drafter.extend(tokens[1:], states)
    drafts = drafter.draft(6).tokens.tolist()
    drafter.rollback(0)
    sureness = []
    for each in (drafter, reference):
        each.extend(tokens[1:11], states[:10])
        sureness.append(each.survey(tokens[11:], states[10:]))
    assert np.isfinite(sureness[0]) and sureness[0] < 0 and sureness[0] == pytest.approx(sureness[1], abs=1e-4)
    assert drafter.draft(6).tokens.tolist() == drafts and drafter.n_rows == 29
    one = [float(np.log(drafter.draft(1).confidence[0]))]
    drafter.rollback(28)
    assert drafter.survey(tokens[29:], states[28:]) == pytest.approx(one[0], abs=1e-6)
    assert np.isnan(drafter.survey(tokens[:0], states[:0])) and np.isnan(reference.survey(tokens[:0], states[:0]))
    with pytest.raises(BackendError, match="not finite"):
        drafter.survey(tokens[:1], np.full_like(states[:1], np.nan))
    with pytest.raises(ShapeError, match="leave the vocabulary"):
        drafter.survey(np.array([tiny.V], np.int32), states[:1])
    drafter.close()
    target.close()
