"""`refspec inspect` says what a file is, in words and as JSON, and refuses what is not a model."""

import json
from pathlib import Path

import pytest
from formats_toys import (
    drafter_config,
    drafter_weights,
    target_config,
    target_tensors,
    write_drafter_directory,
    write_target_directory,
)

from refspec.convert import convert_drafter, convert_target
from refspec.convert.inspect import describe, lines
from refspec.errors import CheckpointError
from refspec.gguf.io import write_drafter

pytest.importorskip("llama_cpp")


def test_a_target_is_described(tmp_path: Path) -> None:
    config = target_config(600)
    folder = write_target_directory(tmp_path / "target", config, target_tensors(config))
    convert_target(folder, tmp_path / "t.gguf", "q8_0", name="toy")
    about = describe(tmp_path / "t.gguf")
    assert (about["kind"], about["architecture"], about["name"]) == ("target", "llama", "toy")
    assert about["sizes"] == {
        "layers": 6, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 24, "feed_forward": 96, "vocabulary": 600,
        "context": 256,
    }  # fmt: skip
    assert about["weights"]["mostly"] == "Q8_0" and about["tied_head"]
    assert about["tokenizer"]["pre"] == "qwen2" and about["tokenizer"]["eot"] == {"id": 3, "text": "<|im_end|>"}
    assert about["tokenizer"]["chat_template"] and about["hidden_states"] == "staged layer inputs"
    text = "\n".join(lines(json.loads(json.dumps(about))))
    assert "gpt2 (qwen2), 600 tokens, bos 1 '<|bos|>'" in text and "chat template    yes" in text


def test_a_drafter_is_described_with_every_flag_and_its_source(tmp_path: Path) -> None:
    convert_drafter(write_drafter_directory(tmp_path / "draft"), None, tmp_path / "d.gguf", "f16")
    about = describe(tmp_path / "d.gguf")
    assert about["kind"] == "drafter" and about["capture_layers"] == [2, 3, 4]
    assert {k: f["value"] for k, f in about["flags"].items()} == {
        "feature_norm": "per_state", "feedback": "post_norm", "residual": "raw", "head_norm": True, "qk_norm": False,
        "biases": "none",
    }  # fmt: skip
    assert about["flags"]["feedback"]["source"].startswith("config.json norm_output = true")
    assert about["draft_vocabulary"]["tokens"] == 160 and about["draft_vocabulary"]["of"] == 600
    assert (
        about["runs_in"][0] == "refspec (as drafter, -d)"
        and "EAGLE 3.1" in about["runs_in"][1]
        and len(about["not_stock_because"]) == 2
    )
    text = "\n".join(lines(json.loads(json.dumps(about))))
    assert "EAGLE 3.1, norm_output" in text and "160 of 600 (26.7 %)" in text and "no tokenizer inside" in text


def test_a_stock_drafter_says_that_stock_llama_cpp_runs_it(tmp_path: Path) -> None:
    config = drafter_config(feature_norm="none", feedback="pre_norm")
    about = describe(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config)))
    assert "stock llama.cpp" in about["runs_in"] and about["not_stock_because"] == []
    assert about["flags"]["feedback"]["source"] == "metadata refspec.feedback"


def test_what_is_not_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"hello world, this is no model at all")
    for path in (tmp_path, tmp_path / "x.gguf", tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError) as caught:
            describe(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
