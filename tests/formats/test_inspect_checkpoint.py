"""`refspec inspect` shows a checkpoint directory as it shows a GGUF, and says what it cannot decide and why."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_toys import target_config, target_tensors, write_drafter_directory, write_target_directory
from safetensors_toys import write_safetensors

from refspec.convert import convert_drafter, convert_target
from refspec.convert.inspect import describe, lines
from refspec.convert.safetensors_io import read_safetensors
from refspec.errors import CheckpointError

pytest.importorskip("llama_cpp")
ORACLES = Path(__file__).parent.parent / "vectors" / "oracles"


def text(about: dict[str, Any]) -> str:
    return "\n".join(lines(json.loads(json.dumps(about))))


def changed(tmp_path: Path, **changes: Any) -> Path:
    return write_drafter_directory(tmp_path / "draft", changes)


def test_a_directory_says_the_same_as_the_gguf_made_of_it(tmp_path: Path) -> None:
    folder = write_drafter_directory(tmp_path / "draft")
    convert_drafter(folder, None, tmp_path / "d.gguf", "f32")
    ours, theirs = describe(folder), describe(tmp_path / "d.gguf")
    for key in (
        "kind",
        "sizes",
        "capture_layers",
        "draft_vocabulary",
        "flags",
        "taken_from_target",
        "not_stock_because",
    ):
        assert ours[key] == theirs[key], key
    assert ours["flags"]["feedback"]["source"].startswith("config.json norm_output = true")
    assert "after refspec convert" in ours["runs_in"][0] and "EAGLE 3.1" in ours["runs_in"][1]
    assert ours["weights"]["mostly"] == "F32" and ours["provenance"]["layout"].startswith("speculators")
    assert "160 of 600 (26.7 %)" in text(ours) and "2 (entering layer 2)" in text(ours)


def test_a_flag_with_two_readings_is_undecided_with_its_override() -> None:
    about = describe(ORACLES / "specforge_fc_norm_norm_output_true" / "checkpoint")
    feedback = about["flags"]["feedback"]
    assert (
        feedback["value"] == "undecided"
        and feedback["source"] == "give --feedback"
        and "two things" in feedback["meaning"]
    )
    assert about["capture_layers"] == [] and "layer_ids" in about["undecided"]
    assert about["runs_in"] == ["refspec (as drafter, -d, after refspec convert)"]
    assert "captured states  undecided" in text(about) and "feedback         undecided" in text(about)


def test_norms_no_flag_applies_are_a_warning(tmp_path: Path) -> None:
    about = describe(changed(tmp_path, fc_norm=False))
    assert about["flags"]["feature_norm"]["value"] == "undecided"
    assert any("fc_norm.0.weight" in w and "never does" in w for w in about["warnings"])


def test_the_target_decides_the_default_layers_and_lends_what_is_missing(tmp_path: Path) -> None:
    config = target_config(600, num_hidden_layers=8)
    target = write_target_directory(tmp_path / "target", config, target_tensors(config))
    convert_target(target, tmp_path / "t.gguf", "f32")
    folder = changed(tmp_path, eagle_aux_hidden_state_layer_ids=None)
    for given in (target, tmp_path / "t.gguf"):
        about = describe(folder, given)
        assert about["capture_layers"] == [2, 4, 5] and not about["undecided"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_target_directory_is_described(tmp_path: Path, tied: bool) -> None:
    config = target_config(600, tie_word_embeddings=tied)
    about = describe(write_target_directory(tmp_path / "t", config, target_tensors(config)))
    assert (about["kind"], about["architecture"], about["tied_head"]) == ("target", "LlamaForCausalLM", tied)
    assert (
        about["sizes"]["layers"] == 6
        and about["sizes"]["head_dim"] == 24
        and about["default_capture_layers"] is None  # 2, 3, 3 are not three layers
    )
    assert "after refspec convert" in about["runs_in"][0] and "chat template    yes" in text(about)


def test_what_cannot_be_decided_by_an_override_is_still_an_error(tmp_path: Path) -> None:
    folder = write_drafter_directory(tmp_path / "draft")
    stored: dict[str, Any] = {k: t.load() for k, t in read_safetensors(folder / "model.safetensors").items()}
    write_safetensors(folder / "model.safetensors", stored | {"d2t": np.zeros(160, np.int64)})
    for path in (folder, tmp_path):
        with pytest.raises(CheckpointError) as caught:
            describe(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
