"""GGUF headers are read without trust, and drafters survive the way to disk and back."""

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refspec import drafter_meta
from refspec.config import FeatureNorm, Feedback, Residual
from refspec.errors import CheckpointError, RefspecError, UsageError
from refspec.gguf_io import (
    TensorOut,
    Typed,
    copy_metadata,
    interleave_rows,
    read_drafter,
    read_gguf_header,
    read_tensor,
    write_drafter,
    write_gguf,
)

VALUES: dict[str, Any] = {
    "a.text": "naïve", "a.empty": "", "a.yes": True, "a.size": 7, "a.eps": 1.5, "a.words": ["x", "yz", ""], "a.ids": [3, -4],
    "a.floats": [0.25, -1.0],
}  # fmt: skip


def tiny(path: Path) -> Path:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 32)).astype(np.float32), np.arange(5)
    tensors = [
        TensorOut("m.weight", (4, 32), "q8_0", lambda: a),
        TensorOut("ids", (5,), "i64", lambda: b),
    ]
    return write_gguf(path, "toy", VALUES, tensors)


def one_line(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        info = read_gguf_header(path)
        for name in info.tensors:
            read_tensor(info, name)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = read_gguf_header(tiny(tmp_path / "t.gguf"))
    assert info.metadata == VALUES | {"general.architecture": "toy"}
    assert info.tensors["m.weight"].shape == (4, 32) and info.tensors["m.weight"].type == "Q8_0"
    assert read_tensor(info, "ids").tolist() == [0, 1, 2, 3, 4]


def test_copied_metadata_keeps_its_types_and_bytes(tmp_path: Path) -> None:
    odd = {"a.u8": Typed([1, 255], 9, 0), "a.raw": Typed(["\udcff\udc80", "ok"], 9, 8), "a.f64": Typed(0.1, 12)}
    first = read_gguf_header(write_gguf(tmp_path / "a.gguf", "toy", odd, []))
    second = read_gguf_header(write_gguf(tmp_path / "b.gguf", "toy", copy_metadata(first, "a."), []))
    assert (second.metadata, second.value_types) == (first.metadata, first.value_types)
    assert second.metadata["a.raw"][0].encode("utf-8", "surrogateescape") == b"\xff\x80"


def test_every_truncation_is_an_error_in_one_line(tmp_path: Path) -> None:
    data = tiny(tmp_path / "t.gguf").read_bytes()
    end = 64 + read_gguf_header(tmp_path / "t.gguf").tensors["ids"].offset  # padding behind the data may be missing
    cut = tmp_path / "cut.gguf"
    for n in range(min(end, len(data)) - 32):
        cut.write_bytes(data[:n])
        one_line(cut)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny(tmp_path_factory.mktemp("sound") / "t.gguf").read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, sound: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(sound)
    for at, value in edits:
        data[at % len(data)] = value
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    try:
        info = read_gguf_header(bad)
        for name in info.tensors:
            read_tensor(info, name)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("at", [8, 16, 24], ids=["tensors", "values", "key length"])
@pytest.mark.parametrize("huge", [2**63, 2**64 - 1, 2**32, 10**7])
def test_hostile_counts_allocate_nothing(tmp_path: Path, at: int, huge: int) -> None:
    data = bytearray(tiny(tmp_path / "t.gguf").read_bytes())
    data[at : at + 8] = struct.pack("<Q", huge)
    (tmp_path / "t.gguf").write_bytes(data)
    one_line(tmp_path / "t.gguf")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert "no such file" in one_line(path)
    path.write_bytes(b"")
    assert "0 bytes" in one_line(path)
    path.write_bytes(b"PK\x03\x04" + bytes(60))
    assert "not a GGUF" in one_line(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(60))
    assert "big-endian" in one_line(path)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(60))
    assert "version 1" in one_line(path)
    assert "directory" in one_line(tmp_path)


def test_values_that_are_not_finite_are_refused_both_ways(tmp_path: Path) -> None:
    bad = np.full((2, 32), np.inf, np.float32)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        write_gguf(tmp_path / "t.gguf", "toy", {}, [TensorOut("w", (2, 32), "f32", lambda: bad)])
    assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path / "t.gguf", "toy", {}, [TensorOut("w", (2, 32), "f32", lambda: np.ones((2, 32)))])
    data = (tmp_path / "t.gguf").read_bytes()
    (tmp_path / "t.gguf").write_bytes(data[:-4] + struct.pack("<f", np.nan))
    assert "'w'" in one_line(tmp_path / "t.gguf")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tiny(tmp_path / "t.gguf")
    before = path.read_bytes()

    def interrupted() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, "toy", {}, [TensorOut("w", (2, 32), "f32", interrupted)])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t.gguf"]


SWITCHES = list(itertools.product(FeatureNorm, Feedback, Residual, [True, False], [False, True], [160, 600]))


@pytest.mark.parametrize(("norm", "feedback", "residual", "head_norm", "qk_norm", "draft_vocab"), SWITCHES)
def test_drafter_round_trip_is_exact(
    tmp_path: Path, norm: Any, feedback: Any, residual: Any, head_norm: bool, qk_norm: bool, draft_vocab: int
) -> None:
    config = drafter_config(
        feature_norm=norm, feedback=feedback, residual=residual, head_norm=head_norm, qk_norm=qk_norm,
        draft_vocab_size=draft_vocab,
    )  # fmt: skip
    weights = drafter_weights(config)
    again, read = read_drafter(write_drafter(tmp_path / "d.gguf", config, weights))
    assert again == config
    assert read.keys() == weights.keys()
    assert all(np.array_equal(read[k], weights[k]) and read[k].dtype == weights[k].dtype for k in weights)
    stock = norm is not FeatureNorm.PER_STATE and feedback is Feedback.PRE_NORM and head_norm and not qk_norm
    assert read_gguf_header(tmp_path / "d.gguf").arch == ("eagle3" if stock else "refspec-eagle3")


@pytest.mark.parametrize("changes", [{"capture_layers": (2,)}, {"capture_layers": (0, 1, 2, 3, 5)}, {"rms_eps": 1e-6}])
def test_other_sizes_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = drafter_config(**changes)
    assert read_drafter(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config)))[0] == config


# Largest rounding of one weight relative to the largest weight of its block: half precision, 7 bits, 8 bits, 4 bits.
@pytest.mark.parametrize(("outtype", "bound"), [("f16", 2**-10), ("bf16", 2**-8), ("q8_0", 1 / 127), ("q4_0", 1 / 7)])
def test_quantized_drafters_round_within_the_type(tmp_path: Path, outtype: str, bound: float) -> None:
    config = drafter_config()
    weights = drafter_weights(config)
    _, read = read_drafter(write_drafter(tmp_path / "d.gguf", config, weights, outtype=outtype))
    for name, w in weights.items():
        if w.ndim == 1:
            assert np.array_equal(read[name], w)
        else:
            error = np.abs(read[name] - w).reshape(-1, 32).max(1)
            assert (error <= bound * np.abs(w).reshape(-1, 32).max(1)).all() and error.max() > 0


def test_rows_that_fill_no_block_fall_back_to_f16(tmp_path: Path) -> None:
    config = drafter_config(intermediate_size=72)
    write_drafter(tmp_path / "d.gguf", config, drafter_weights(config), outtype="q8_0")
    types = {name: t.type for name, t in read_gguf_header(tmp_path / "d.gguf").tensors.items()}
    assert (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_half_split_rows_are_reordered_once(tmp_path: Path) -> None:
    config = drafter_config(rope_style="half_split", qk_norm=True)
    weights = drafter_weights(config)
    again, read = read_drafter(write_drafter(tmp_path / "d.gguf", config, weights))
    assert again == drafter_config(qk_norm=True)
    for name in ("attn_q", "attn_k", "q_norm", "k_norm"):
        assert np.array_equal(read[name], interleave_rows(weights[name], 16))
    # pair i of a half-split head is rows i and i + hd/2; of an interleaved one, rows 2i and 2i + 1
    assert interleave_rows(np.arange(8), 8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_tensors_left_to_the_target_may_be_absent(tmp_path: Path) -> None:
    config = drafter_config(hidden_size=64)
    weights = drafter_weights(config)
    del weights["token_embd"], weights["output"]
    again, read = read_drafter(write_drafter(tmp_path / "d.gguf", config, weights))
    assert again == config and read.keys() == weights.keys()


def edit(path: Path, **changes: Any) -> None:
    """Rewrite a drafter with other metadata; None removes a key."""
    info = read_gguf_header(path)
    values = {k: v for k, v in copy_metadata(info, "").items() if k not in changes}
    values |= {k: v for k, v in changes.items() if v is not None}
    arch = changes.get("general.architecture", info.arch)
    loaded = {n: read_tensor(info, n) for n in info.tensors}
    tensors = [TensorOut(n, a.shape, "i64" if a.dtype.kind == "i" else "f32", lambda a=a: a) for n, a in loaded.items()]
    write_gguf(path, arch, values, tensors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "llama"}, "not a drafter"),
        ({"general.architecture": "eagle3"}, "convert the drafter again"),
        ({"refspec.feedback": None}, "refspec.feedback"),
        ({"refspec.feedback": "sideways"}, "sideways"),
        ({"refspec.fc_norm.1": None}, "refspec.fc_norm.1"),
        ({"refspec.fc_norm.1": [1.0, 2.0]}, "64 floats"),
        ({"eagle3.block_count": 2}, "one block"),
        ({"eagle3.target_layers": None}, "eagle3.target_layers"),
        ({"eagle3.embedding_length": 48}, "[600, 48]"),
        ({"eagle3.embedding_length": "x"}, "wrong type"),
        ({"eagle3.attention.head_count": 0}, "n_heads"),
        ({"eagle3.rope.scaling.type": "yarn"}, "yarn"),
        ({"eagle3.attention.layer_norm_rms_epsilon": None}, "epsilon"),
    ],
)
def test_drafters_that_contradict_themselves_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = drafter_config()
    path = write_drafter(tmp_path / "d.gguf", config, drafter_weights(config))
    edit(path, **changes)
    with pytest.raises(RefspecError) as caught:
        read_drafter(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_stock_file_without_refspec_keys_is_plain_eagle3(tmp_path: Path) -> None:
    config = drafter_config(feature_norm="concat", feedback="pre_norm", residual="normed")
    path = write_drafter(tmp_path / "d.gguf", config, drafter_weights(config))
    edit(path, **{k: None for k in read_gguf_header(path).metadata if k.startswith("refspec.")})
    assert read_drafter(path)[0] == config


def test_linear_rope_scaling_becomes_divisors(tmp_path: Path) -> None:
    config = drafter_config()
    path = write_drafter(tmp_path / "d.gguf", config, drafter_weights(config))
    edit(path, **{"eagle3.rope.scaling.type": "linear", "eagle3.rope.scaling.factor": 4.0})
    assert read_drafter(path)[1]["rope_freqs"].tolist() == [4.0] * 8


def test_unused_tensors_and_unknown_types_are_refused(tmp_path: Path) -> None:
    config = drafter_config()
    with pytest.raises(RefspecError, match="would not be used"):
        write_drafter(tmp_path / "d.gguf", config, drafter_weights(config) | {"extra": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="q3_k"):
        write_drafter(tmp_path / "d.gguf", config, drafter_weights(config), outtype="q3_k")
    big = drafter_weights(config)
    big["ffn_up"] = big["ffn_up"] * 1e6
    with pytest.raises(CheckpointError, match="bf16 or f32"):
        write_drafter(tmp_path / "d.gguf", config, big, outtype="f16")


def test_stock_reasons_are_words() -> None:
    assert drafter_meta.stock_reasons(drafter_config(feature_norm="none", feedback="pre_norm")) == []
    assert len(drafter_meta.stock_reasons(drafter_config(capture_layers=(1, 2), qk_norm=True, head_norm=False))) == 5


def loads(path: Path) -> bool:
    """Whether the unmodified library loads the file, judged in this process: a refusal is a NULL, not an abort."""
    llama_cpp = pytest.importorskip("llama_cpp")
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if model:
        llama_cpp.llama_model_free(model)
    return bool(model)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("norm", ["none", "concat"])
@pytest.mark.parametrize("residual", ["raw", "normed"])
@pytest.mark.parametrize("draft_vocab", [160, 600])
def test_stock_llama_cpp_loads_what_it_computes(
    tmp_path: Path, outtype: str, norm: str, residual: str, draft_vocab: int
) -> None:
    config = drafter_config(feature_norm=norm, residual=residual, feedback="pre_norm", draft_vocab_size=draft_vocab)
    assert loads(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config), outtype=outtype))


@pytest.mark.parametrize(
    "changes", [{"feature_norm": "none"}, {"feedback": "pre_norm"}, {"feature_norm": "none", "qk_norm": True}]
)
def test_stock_llama_cpp_refuses_what_it_would_compute_wrongly(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = drafter_config(**changes)
    assert not loads(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config)))
