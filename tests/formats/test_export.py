"""Checkpoint -> GGUF (f32) -> checkpoint loses nothing, and what a layout cannot say is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_toys import (
    drafter_config,
    drafter_weights,
    target_config,
    target_tensors,
    write_drafter_directory,
    write_target_directory,
)

from refspec.convert import convert_drafter, convert_target, read_checkpoint
from refspec.convert.export import export_drafter
from refspec.convert.export_hf import export_target
from refspec.convert.rope_out import scaling_of
from refspec.convert.safetensors_io import read_safetensors
from refspec.errors import CheckpointError, UsageError
from refspec.gguf.io import read_gguf_header, write_drafter

ORACLES = Path(__file__).parent.parent / "vectors" / "oracles"
LAYERS = {"layer_ids": [2, 4, 5]}
# oracle -> (its layout, what the importer must be told)
ORACLE_LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "specforge_base": ("specforge", LAYERS),
    "specforge_Ht96_fc_norm": ("specforge", LAYERS),
    "specforge_fc_norm_norm_output_true": ("specforge", LAYERS | {"feedback": "pre_norm"}),
    "torchspec_fullvocab": ("specforge", LAYERS),
    "torchspec_llama3rope_fullvocab": ("specforge", LAYERS),
    "spec_nbr1_fc_norm_out1": ("speculators", {}),
}


def stored(path: Path) -> dict[str, np.ndarray]:
    return {name: t.load() for name, t in read_safetensors(path).items()}


@pytest.mark.parametrize("name", ORACLE_LAYOUTS)
def test_a_checkpoint_comes_back_bit_exact_with_every_flag(tmp_path: Path, name: str) -> None:
    layout, given = ORACLE_LAYOUTS[name]
    source = ORACLES / name / "checkpoint"
    convert_drafter(source, None, tmp_path / "d.gguf", "f32", given)
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", layout)
    before, after = stored(source / "model.safetensors"), stored(tmp_path / "out" / "model.safetensors")
    if "torchspec" in name:  # SpecForge stores the tables of a full vocabulary, TorchSpec does not
        assert after.pop("d2t").any() == np.False_ and after.pop("t2d").all()
    assert before.keys() == after.keys()
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
    kinds = [
        {n: t.dtype for n, t in read_safetensors(p / "model.safetensors").items()} for p in (source, tmp_path / "out")
    ]
    assert all(kinds[0][k] == kinds[1][k] for k in before)
    first, *_ = read_checkpoint(source, None, given)
    again, *_ = read_checkpoint(tmp_path / "out", None)
    assert first == again


@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("residual", ["raw", "normed"])
@pytest.mark.parametrize("feature_norm", ["none", "concat", "per_state"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_speculators_expresses_every_switch(
    tmp_path: Path, feature_norm: str, residual: str, feedback: str, qk_norm: bool
) -> None:
    c = drafter_config(feature_norm=feature_norm, residual=residual, feedback=feedback, qk_norm=qk_norm)
    write_drafter(tmp_path / "d.gguf", c, drafter_weights(c))
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "speculators")
    convert_drafter(tmp_path / "out", None, tmp_path / "e.gguf", "f32")
    a, b = (read_gguf_header(tmp_path / n) for n in ("d.gguf", "e.gguf"))
    assert a.arch == b.arch and a.tensors.keys() == b.tensors.keys()
    values = {k: v for k, v in a.metadata.items() if k.startswith(("eagle3.", "refspec."))}
    assert all(b.metadata[k] == v for k, v in values.items())
    for name in a.tensors:
        one, two = (i.path.read_bytes()[i.tensors[name].offset :][: i.tensors[name].nbytes] for i in (a, b))
        assert one == two, name


@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("feature_norm", ["none", "per_state"])
def test_specforge_and_back_needs_no_override(tmp_path: Path, feature_norm: str, feedback: str) -> None:
    c = drafter_config(feature_norm=feature_norm, feedback=feedback)
    write_drafter(tmp_path / "d.gguf", c, drafter_weights(c))
    done = export_drafter(tmp_path / "d.gguf", tmp_path / "out", "specforge")
    again, *_ = read_checkpoint(tmp_path / "out")
    assert (
        again.feedback == c.feedback
        and again.feature_norm == c.feature_norm
        and again.capture_layers == c.capture_layers
    )
    assert any("#879" in n for n in done.notes) == (feedback == "post_norm")


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("specforge", {"residual": "normed"}, "residual = normed"),
        ("specforge", {"feature_norm": "concat"}, "feature_norm = concat"),
        ("specforge", {"qk_norm": True}, "qk_norm = yes"),
        ("specforge", {"capture_layers": (2, 3)}, "2 captured states"),
        ("speculators", {"head_norm": False}, "head_norm = no"),
        ("eagle", {"feedback": "post_norm"}, "feedback = post_norm"),
        ("eagle", {"feature_norm": "per_state"}, "feature_norm = per_state"),
        ("eagle", {"residual": "normed"}, "residual = normed"),
        ("eagle", {}, "head_dim = 16"),
    ],
)
def test_a_switch_a_layout_cannot_express_is_named(
    tmp_path: Path, layout: str, changes: dict[str, Any], words: str
) -> None:
    plain = {"feature_norm": "none", "feedback": "pre_norm"} | changes
    c = drafter_config(**plain)
    write_drafter(tmp_path / "d.gguf", c, drafter_weights(c))
    with pytest.raises(CheckpointError) as caught:
        export_drafter(tmp_path / "d.gguf", tmp_path / "out", layout)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["safeai_base", "safeai_linear_rope"])
def test_the_safeai_bin_comes_back_bit_exact(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    source = ORACLES / name / "checkpoint"
    convert_drafter(source, None, tmp_path / "d.gguf", "f32", LAYERS)
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "eagle")
    before = torch.load(source / "pytorch_model.bin", weights_only=True)
    after = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    assert read_checkpoint(source, None, LAYERS)[0] == read_checkpoint(tmp_path / "out", None)[0]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_torch_reads_the_bin_written_by_hand(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    c = drafter_config(feature_norm="none", feedback="pre_norm", head_dim=8)
    weights = drafter_weights(c)
    write_drafter(tmp_path / "d.gguf", c, weights)
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "eagle", dtype=dtype)
    for mmap in (False, True):
        state = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True, mmap=mmap)
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
        assert torch.equal(state["lm_head.weight"], torch.from_numpy(weights["output"]).to(kind))
        assert torch.equal(state["d2t"], torch.from_numpy(weights["d2t"]) - torch.arange(160))
        assert int(state["t2d"].sum()) == 160 and state["t2d"].dtype is torch.bool


def test_a_directory_with_a_checkpoint_is_not_written_into(tmp_path: Path) -> None:
    convert_drafter(write_drafter_directory(tmp_path / "draft"), None, tmp_path / "d.gguf", "f32")
    with pytest.raises(UsageError, match=r"already holds config\.json"):
        export_drafter(tmp_path / "d.gguf", tmp_path / "draft", "speculators")


def test_rope_scaling_is_stated_only_if_it_makes_the_same_divisors() -> None:
    assert scaling_of(None, 1e4, 16, "x") is None
    assert scaling_of(np.full(8, 4.0, np.float32), 1e4, 16, "x") == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(CheckpointError, match="rope_freqs"):
        scaling_of(np.linspace(1, 3, 8).astype(np.float32), 1e4, 16, "x")


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
UNUSUAL = [
    LLAMA3 | {"factor": 6.5, "low_freq_factor": 1.5, "high_freq_factor": 3.0, "original_max_position_embeddings": 77},
    YARN | {"factor": 3.3, "beta_fast": 24.0, "beta_slow": 2.0, "original_max_position_embeddings": 100,
            "mscale": 0.9, "mscale_all_dim": 0.7},
    YARN | {"attention_factor": 1.37, "factor": 1.9},
    {"rope_type": "yarn", "factor": 2.0},  # over the positions of the config
    {"rope_type": "linear", "factor": 2.625},
]  # fmt: skip


def scaled(folder: Path, scaling: dict[str, Any]) -> Path:
    """A drafter checkpoint whose config.json states this scaling."""
    source = write_drafter_directory(folder)
    config = json.loads((source / "config.json").read_text())
    config["transformer_layer_config"]["rope_scaling"] = scaling
    (source / "config.json").write_text(json.dumps(config))
    return source


@pytest.mark.parametrize(
    "scaling", [LLAMA3, YARN, YARN | {"truncate": False}, {"rope_type": "linear", "factor": 4.0}, *UNUSUAL]
)
@pytest.mark.parametrize("layout", ["speculators", "specforge"])
def test_every_rope_scaling_comes_back_as_it_was_stated(tmp_path: Path, layout: str, scaling: dict[str, Any]) -> None:
    source = scaled(tmp_path / "draft", scaling)
    convert_drafter(source, None, tmp_path / "d.gguf", "f32")
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", layout)
    (first, one, *_), (again, two, *_) = read_checkpoint(source), read_checkpoint(tmp_path / "out")
    assert first == again and np.array_equal(one["rope_freqs"], two["rope_freqs"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("transformer_layer_config", config)["rope_parameters"] == {"rope_theta": 10000.0, **scaling}


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 4.0}])
def test_the_usual_scalings_are_found_in_a_file_that_does_not_state_them(
    tmp_path: Path, scaling: dict[str, Any]
) -> None:
    config, weights, *_ = read_checkpoint(scaled(tmp_path / "draft", scaling))
    write_drafter(tmp_path / "d.gguf", config, weights)
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "speculators")
    again, two, *_ = read_checkpoint(tmp_path / "out")
    assert again == config and np.array_equal(weights["rope_freqs"], two["rope_freqs"])


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "null",
        "{",
        "7",
        json.dumps(LLAMA3 | {"factor": 4.0}),
        json.dumps(LLAMA3 | {"low_freq_factor": float("nan")}),
    ],
)
def test_a_stated_scaling_that_makes_other_divisors_is_refused(tmp_path: Path, said: str) -> None:
    config, weights, *_ = read_checkpoint(scaled(tmp_path / "draft", LLAMA3))
    write_drafter(tmp_path / "d.gguf", config, weights, metadata={"refspec.rope_scaling": said})
    with pytest.raises(CheckpointError, match=r"refspec\.rope_scaling"):
        export_drafter(tmp_path / "d.gguf", tmp_path / "out", "speculators")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_a_target_directory_comes_back_and_converts_to_the_same_gguf(tmp_path: Path, tied: bool, scaling: Any) -> None:
    config = target_config(600, tie_word_embeddings=tied, rope_scaling=scaling)
    source = write_target_directory(tmp_path / "hf", config, target_tensors(config))
    convert_target(source, tmp_path / "t.gguf", "f32", name="toy")
    export_target(tmp_path / "t.gguf", tmp_path / "out")
    before, after = stored(source / "model.safetensors"), stored(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() and all(before[k].tobytes() == after[k].tobytes() for k in before)
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(made[k] == v for k, v in config.items() if k != "rope_scaling")
    convert_target(tmp_path / "out", tmp_path / "u.gguf", "f32", name="toy")
    assert (tmp_path / "t.gguf").read_bytes() == (tmp_path / "u.gguf").read_bytes()


def test_the_written_tokenizer_encodes_as_the_original(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    config = target_config(600)
    source = write_target_directory(tmp_path / "hf", config, target_tensors(config))
    convert_target(source, tmp_path / "t.gguf", "f32", add_bos=False)
    export_target(tmp_path / "t.gguf", tmp_path / "out")
    ours, theirs = (tokenizers.Tokenizer.from_file(str(p / "tokenizer.json")) for p in (tmp_path / "out", source))
    for text in ("Hello, world! It's 12345 o'clock.", "<|im_start|>user\n  été\t\n\nnaïve 東京<|im_end|>", ""):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(theirs.encode(text).ids) == text.replace("<|im_start|>", "").replace("<|im_end|>", "")


@pytest.mark.parametrize("layers", [(2, 3, 4), (1, 2, 3), (0, 3, 5)])
def test_every_engine_reads_the_captured_layers_that_the_drafter_has(tmp_path: Path, layers: tuple[int, ...]) -> None:
    c = drafter_config(feature_norm="none", feedback="pre_norm", capture_layers=layers)
    write_drafter(tmp_path / "d.gguf", c, drafter_weights(c))
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "specforge")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    key = "eagle_aux_hidden_state_layer_ids"
    # SGLang (set_eagle3_layers_to_capture): layers_to_capture = [val + 1 for val in layer_ids], the ids of
    # eagle_config; SpecForge hands the same list over. vLLM takes the ids at top level first: what enters these layers.
    assert tuple(i + 1 for i in config["eagle_config"][key]) == layers
    assert tuple(config[key]) == layers
    del config["refspec"]  # the switches by name, which would hide what the flags say
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(tmp_path / "out", None)[0].capture_layers == layers
