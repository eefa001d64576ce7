"""Drafter checkpoints become GGUF files that compute what their trainer computed, or are refused with a reason."""

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
from safetensors_toys import write_safetensors

from refspec.convert import convert_drafter, convert_target, open_checkpoint, read_checkpoint
from refspec.convert.files import read_tensors
from refspec.convert.inspect import describe
from refspec.convert.vocabulary import absolute_d2t
from refspec.errors import CheckpointError, RefspecError, ShapeError, UsageError
from refspec.gguf.io import interleave_rows, read_drafter, read_gguf_header, read_tensor

ORACLES = Path(__file__).parent.parent / "vectors" / "oracles"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = target_config(600)
    folder = write_target_directory(tmp_path_factory.mktemp("target"), config, target_tensors(config))
    convert_target(folder, folder / "t.gguf", "f32")
    return folder


@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_speculators_directory_converts_with_every_flag_and_weight(tmp_path: Path, target: Path, kind: str) -> None:
    folder = write_drafter_directory(tmp_path / "draft")
    source = target / "t.gguf" if kind == "gguf" else target
    report = convert_drafter(folder, source, tmp_path / "d.gguf", "f32")
    config, weights = read_drafter(tmp_path / "d.gguf")
    assert config == drafter_config()
    stored = drafter_weights(config)
    for name in ("attn_q", "attn_k"):
        stored[name] = interleave_rows(stored[name], 16)
    assert weights.keys() == stored.keys() and all(np.array_equal(weights[k], stored[k]) for k in stored)
    info, tokens = read_gguf_header(tmp_path / "d.gguf"), read_gguf_header(target / "t.gguf")
    keys = [k for k in tokens.metadata if k.startswith("tokenizer.ggml.")]
    assert keys and all(info.metadata[k] == tokens.metadata[k] for k in keys)
    assert "tokenizer.chat_template" not in info.metadata
    assert report.arch == info.arch == "refspec-eagle3"
    assert info.metadata["refspec.provenance.feedback"].startswith("post_norm; config.json norm_output")


def test_absent_embedding_and_head_come_from_the_target(tmp_path: Path, target: Path) -> None:
    folder = write_drafter_directory(tmp_path / "draft")
    tensors = {k: t.load() for k, t in read_tensors(folder).items()}
    wide = {  # a drafter as wide as its target
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64,
        "vocab_size": 600, "rms_norm_eps": 1e-5, "model_type": "llama", "max_position_embeddings": 256,
    }  # fmt: skip
    c = drafter_config(hidden_size=64)
    w = drafter_weights(c)
    names = {"fc.weight": "fc", "norm.weight": "output_norm"} | {
        f"layers.0.{a}.weight": b
        for a, b in [
            ("input_layernorm", "attn_norm"), ("hidden_norm", "hidden_norm"), ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ]
    }  # fmt: skip
    tensors |= {theirs: w[ours] for theirs, ours in names.items()}
    del tensors["embed_tokens.weight"], tensors["lm_head.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformer_layer_config": wide}))
    convert_drafter(folder, target / "t.gguf", tmp_path / "with.gguf", "f32")
    _, lent = read_drafter(tmp_path / "with.gguf")
    embedding = read_tensor(read_gguf_header(target / "t.gguf"), "token_embd.weight")
    assert np.array_equal(lent["token_embd"], embedding)
    assert np.array_equal(lent["output"], embedding[lent["d2t"]])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing.*--target"):  # d2t needs a head of its own
        convert_drafter(folder, None, tmp_path / "without.gguf", "f32")
    write_safetensors(folder / "model.safetensors", tensors | {"lm_head.weight": w["output"]})
    report = convert_drafter(folder, None, tmp_path / "without.gguf", "f32")
    assert "token_embd" not in read_drafter(tmp_path / "without.gguf")[1]
    assert sum("leaves it to the target" in note for note in report.notes) == 1


def changed(tmp_path: Path, config: dict[str, Any] | None = None, **tensors: np.ndarray | None) -> Path:
    folder = write_drafter_directory(tmp_path / "draft", config)
    stored: dict[str, Any] = {k: t.load() for k, t in read_tensors(folder).items()} | tensors
    write_safetensors(folder / "model.safetensors", {k: a for k, a in stored.items() if a is not None})
    return folder


IDS = {"eagle_aux_hidden_state_layer_ids": None}


@pytest.mark.parametrize(
    ("config", "tensors", "overrides", "words"),
    [
        ({}, {"layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}, {}, "only zeros"),
        ({}, {"enorm.weight": np.zeros(32, np.float32)}, {}, "enorm.weight"),
        ({}, {"midlayer.hidden_norm.weight": np.zeros(32, np.float32)}, {}, "same tensor"),
        ({}, {"fc_norm.2.weight": None}, {}, "fc_norm.2"),
        ({"fc_norm": False}, {}, {}, "--feature-norm"),
        ({"norm_before_fc": True}, {}, {}, "--feature-norm"),
        ({"norm_before_fc": True, "fc_norm": False}, {}, {}, "--feature-norm"),
        ({"norm_output": "yes"}, {}, {}, "norm_output"),
        ({"speculators_model_type": "mtp"}, {}, {}, "mtp"),
        ({"post_fc_norm": True}, {}, {}, "post_fc_norm"),
        ({"draft_vocab_size": 161}, {}, {}, "160"),
        ({}, {"d2t": None}, {}, "d2t"),
        ({}, {"d2t": np.zeros(160, np.int64)}, {}, "t2d"),
        ({}, {"norm.weight": np.full(32, np.nan, np.float32)}, {}, "NaN"),
        (IDS, {}, {}, "--layer-ids"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 3]}, {}, {}, "target_hidden_size"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 3, 4, 5, 6]}, {}, {}, "no multiple of 5"),
        ({"eagle_aux_hidden_state_layer_ids": [2, "a"]}, {}, {}, "whole numbers"),
        ({}, {}, {"feedback": "sideways"}, "pre_norm, post_norm"),
        ({}, {}, {"colour": "red"}, "colour"),
        ({}, {}, {"feature_norm": "concat"}, "does not have"),
    ],
)
def test_what_is_unknown_or_ambiguous_is_refused(
    tmp_path: Path, config: Any, tensors: Any, overrides: Any, words: str
) -> None:
    folder = changed(tmp_path, config, **tensors)
    with pytest.raises(RefspecError) as caught:
        report = convert_drafter(folder, None, tmp_path / "d.gguf", "f32", overrides)
        raise RefspecError(" ".join(report.notes))  # a contradiction that only deserves a note
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("norm_output", "overrides", "words"),
    [(True, {"head_norm": True}, "--feedback"), (False, {"feedback": "pre_norm"}, "--head-norm")],
)
def test_norm_output_of_the_midlayer_layout_needs_the_override_that_decides(
    tmp_path: Path, norm_output: bool, overrides: dict[str, Any], words: str
) -> None:
    source = ORACLES / "specforge_base" / "checkpoint"
    config = json.loads((source / "config.json").read_text()) | {"norm_output": norm_output}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path, None, {"layer_ids": [2, 4, 5]} | overrides)
    both = {"layer_ids": [2, 4, 5], "feedback": "pre_norm", "head_norm": norm_output}
    assert read_checkpoint(tmp_path, None, both)[0].head_norm is norm_output


# what deepseek-ai/eagle3_qwen3_*_ttt7 say beyond a plain config.json
DEEPSPEC = {
    "draft_num_hidden_layers": 1, "num_target_layers": 6, "step_loss_decay": 0.8, "target_layer_ids": [1, 3, 4],
    "ttt_length": 7,
}  # fmt: skip


def test_what_a_config_says_of_the_target_is_checked(tmp_path: Path, target: Path) -> None:
    with pytest.raises(CheckpointError, match=r"num_target_layers = 36, but .* has 6"):
        read_checkpoint(changed(tmp_path / "a", {**IDS, **DEEPSPEC, "num_target_layers": 36}), target)
    layer = json.loads((changed(tmp_path / "b") / "config.json").read_text())["transformer_layer_config"]
    folder = changed(tmp_path / "b", {"transformer_layer_config": layer | {"num_hidden_layers": 40}})
    with pytest.raises(CheckpointError, match=r"num_hidden_layers = 40.*--ignore num_hidden_layers"):
        read_checkpoint(folder, target)
    read_checkpoint(folder, target, {"ignore": ["num_hidden_layers"]})
    with pytest.raises(CheckpointError, match=r"captured layers are .*--layer-ids"):
        nested = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 3, 4]}}
        read_checkpoint(changed(tmp_path / "c", {"eagle_aux_hidden_state_layer_ids": [2, 3, 4], **nested}), target)


def test_all_unknown_keys_are_named_at_once(tmp_path: Path, target: Path) -> None:
    folder = changed(tmp_path, {"moon": 1, "sun": 2, "hidden_act": "gelu"})
    with pytest.raises(CheckpointError, match=r"--ignore \w+ --ignore \w+ --ignore \w+ if these") as caught:
        read_checkpoint(folder, target)
    assert all(name in str(caught.value) for name in ("'moon'", "'sun'", "hidden_act"))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [("DFlashDraftModel", "a DFlash drafter"), ("PEagleForCausalLM", "a P-EAGLE drafter"),
     ("Qwen3NextMTP", "MTP layers"), ("MedusaModel", "Medusa heads")],
)  # fmt: skip
def test_the_method_is_named_by_the_architecture(tmp_path: Path, target: Path, architecture: str, method: str) -> None:
    with pytest.raises(CheckpointError, match=method):
        read_checkpoint(changed(tmp_path, {"architectures": [architecture]}), target)


def test_a_file_where_a_folder_is_wanted_is_named(tmp_path: Path, target: Path) -> None:
    file = tmp_path / "drafter.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="a GGUF already; give it with -d or -m"):
        read_checkpoint(file, target)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        read_checkpoint(file, target)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**IDS, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}}, (2, 3, 4)),
        ({**IDS, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 3, 4]}}, (3, 4, 5)),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [0, 3, 5],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 2, 4]},
            },
            (0, 3, 5),
        ),
        ({**IDS, **DEEPSPEC}, (2, 4, 5)),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}, (1, 2, 3)),
        (IDS, (2, 3, 3)),
    ],
    ids=["nested outputs", "nested outputs from 2", "both", "DeepSpec", "top level raw", "default"],
)
def test_layer_ids_become_boundaries(tmp_path: Path, target: Path, config: Any, expected: tuple[int, ...]) -> None:
    folder = changed(tmp_path, config)
    if len(set(expected)) < 3:  # the default of a 6-layer target names layer 3 twice, which no drafter can mean
        with pytest.raises(ShapeError, match="distinct"):
            read_checkpoint(folder, target)
    else:
        assert read_checkpoint(folder, target)[0].capture_layers == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [({"hidden_size": 96}, "width"), ({"vocab_size": 700}, "vocabulary"), ({"num_hidden_layers": 3}, "layers")],
)
def test_a_drafter_for_another_target_is_refused(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    other = target_config(600, **config)
    folder = write_target_directory(tmp_path / "other", other, target_tensors(other))
    with pytest.raises(ShapeError, match=words):
        convert_drafter(write_drafter_directory(tmp_path / "draft"), folder, tmp_path / "d.gguf", "f32")


def test_a_drafter_is_no_target(tmp_path: Path) -> None:
    folder = write_drafter_directory(tmp_path / "draft")
    convert_drafter(folder, None, tmp_path / "d.gguf", "f32")
    with pytest.raises(CheckpointError, match="is a drafter"):
        convert_drafter(folder, tmp_path / "d.gguf", tmp_path / "e.gguf", "f32")


def test_d2t_is_read_as_offsets_or_as_ids_that_t2d_confirms() -> None:
    ids = np.array([1, 4, 5, 9])
    member = np.zeros(10, bool)
    member[ids] = True
    assert absolute_d2t(ids - np.arange(4), member, 10, "x")[1] == "offsets"
    assert absolute_d2t(ids, member, 10, "x")[1] == "absolute"
    assert absolute_d2t(ids - np.arange(4), None, 10, "x")[0].tolist() == ids.tolist()
    small = np.array([0, 1, 2, 3])  # ids that would also pass for offsets: only t2d tells
    assert absolute_d2t(small, np.arange(10) < 4, 10, "x")[0].tolist() == [0, 1, 2, 3]
    assert absolute_d2t(ids, None, 10, "x")[1] == "absolute"  # as offsets they would leave the vocabulary
    both = np.array([0, 2, 4])
    with pytest.raises(CheckpointError, match="--d2t"):
        absolute_d2t(both, None, 10, "x")
    assert absolute_d2t(both, None, 10, "x", "absolute")[0].tolist() == [0, 2, 4]
    assert absolute_d2t(both, None, 10, "x", "offsets")[0].tolist() == [0, 3, 6]
    with pytest.raises(CheckpointError):
        absolute_d2t(ids - np.arange(4), np.arange(10) < 4, 10, "x")


def test_overrides_win_and_say_so(tmp_path: Path) -> None:
    given = {"feedback": "pre_norm", "residual": "normed", "feature_norm": "none", "layer_ids": [1, 2, 3]}
    report = convert_drafter(changed(tmp_path), None, tmp_path / "d.gguf", "f32", given)
    config, weights = read_drafter(tmp_path / "d.gguf")
    assert config == drafter_config(
        feedback="pre_norm", residual="normed", feature_norm="none", capture_layers=(1, 2, 3)
    )
    assert not any(name.startswith("fc_norm") for name in weights) and len(report.notes) == 4
    assert all(report.resolved[k].source.startswith("override") for k in ("feedback", "residual", "feature_norm"))


def test_a_wrong_override_type_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--head-norm"):
        read_checkpoint(changed(tmp_path), None, {"head_norm": "maybe"})


FULL_LAYER = {f"model.layers.{i}.input_layernorm.weight": np.ones(32, np.float32) for i in range(3)}
FIRST_EAGLE = {
    "fc.weight": np.ones((32, 64), np.float32),
    "layers.0.self_attn.q_proj.weight": np.ones((32, 32), np.float32),
}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"medusa_num_heads": 4}, None, "Medusa heads.*vLLM"),
        ({"model_type": "mlp_speculator"}, None, "MLP speculator.*vLLM"),
        ({}, {"model.layers.3.eh_proj.weight": np.ones((4, 8), np.float32)}, "MTP.*llama.cpp and vLLM"),
        ({}, FIRST_EAGLE, "EAGLE-1 or EAGLE-2"),
        ({"architectures": ["LlamaForCausalLM"]}, FULL_LAYER, r"whole model \(LlamaForCausalLM, 3 layers\).*for -m"),
        ({"speculators_model_type": "mlp"}, None, "'mlp'.*vLLM runs the others"),
    ],
)
def test_another_kind_of_model_is_named_with_what_runs_it(
    tmp_path: Path, config: Any, tensors: Any, words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)


def test_a_lora_adapter_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for read in (open_checkpoint, describe):
        with pytest.raises(CheckpointError, match="LoRA adapter"):
            read(tmp_path)
