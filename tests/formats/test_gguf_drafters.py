"""Drafters survive the way to a GGUF and back, and what contradicts itself is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights

from refspec.errors import CheckpointError, RefspecError, UsageError
from refspec.gguf import drafter_meta
from refspec.gguf.io import (
    TensorOut,
    copy_metadata,
    interleave_rows,
    read_drafter,
    read_gguf_header,
    read_tensor,
    write_drafter,
    write_gguf,
)
from refspec.reference.config import BIASED, FeatureNorm, Feedback, Residual

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


@pytest.mark.parametrize("biases", [BIASED, ("attn_q", "attn_k", "attn_v"), ("output",)], ids="-".join)
@pytest.mark.parametrize("style", ["interleaved", "half_split"])
def test_biases_round_trip_with_their_rows_in_the_order_of_the_matrix(tmp_path: Path, biases: Any, style: str) -> None:
    config = drafter_config(biases=biases, rope_style=style)
    weights = drafter_weights(config)
    again, read = read_drafter(write_drafter(tmp_path / "d.gguf", config, weights, outtype="f16"))
    assert again == drafter_config(biases=biases) and read.keys() == weights.keys()
    for name in biases:
        turned = style == "half_split" and name in ("attn_q", "attn_k")
        expected = interleave_rows(weights[f"{name}.bias"], config.head_dim) if turned else weights[f"{name}.bias"]
        assert np.array_equal(read[f"{name}.bias"], expected)
    assert read_gguf_header(tmp_path / "d.gguf").arch == "refspec-eagle3"


def test_stock_reasons_are_words() -> None:
    assert drafter_meta.stock_reasons(drafter_config(feature_norm="none", feedback="pre_norm")) == []
    every = drafter_config(capture_layers=(1, 2), qk_norm=True, head_norm=False, biases=("fc",))
    assert len(drafter_meta.stock_reasons(every)) == 6 and len(drafter_meta.graph_reasons(every)) == 4
