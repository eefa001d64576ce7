"""What `refspec export` writes is read by the real speculators classes, tensors and flags, beside a target it exported
too.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights, target_config, target_tensors, write_target_directory

from refspec.convert import convert_target
from refspec.convert.export import export_drafter
from refspec.convert.export_hf import export_target
from refspec.convert.rope import rope_settings
from refspec.convert.rope_out import kept_scaling
from refspec.convert.safetensors_io import read_safetensors
from refspec.gguf.io import write_drafter
from refspec.reference.config import BIASED

eagle3 = pytest.importorskip("speculators.models.eagle3", reason="speculators is not installed", exc_type=ImportError)
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 96, "beta_fast": 20.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    config = target_config(600, tie_word_embeddings=False, num_hidden_layers=8)
    convert_target(write_target_directory(folder / "hf", config, target_tensors(config)), folder / "t.gguf", "f32")
    return export_target(folder / "t.gguf", folder / "exported").path


@pytest.mark.parametrize("feature_norm", ["none", "concat", "per_state"])
@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
@pytest.mark.parametrize(
    ("residual", "qk_norm", "scaling", "biases"),
    [("raw", False, None, ()), ("normed", True, "linear", ()), ("normed", False, "llama3", ()),
     ("raw", False, "yarn", BIASED[1:8]),
     ("raw", True, None, BIASED[1:4])],
)  # fmt: skip
def test_speculators_loads_every_exported_drafter(
    tmp_path: Path,
    verifier: Path,
    feature_norm: str,
    feedback: str,
    residual: str,
    qk_norm: bool,
    scaling: str | None,
    biases: tuple[str, ...],
) -> None:
    c = drafter_config(
        hidden_size=64, feature_norm=feature_norm, feedback=feedback, residual=residual, qk_norm=qk_norm, biases=biases
    )
    weights, metadata = drafter_weights(c), {}
    if scaling:
        rope = rope_settings({"rope_theta": 1e4, "rope_scaling": SCALINGS[scaling]}, c.head_dim, "x")
        assert rope.divisors is not None
        weights["rope_freqs"], metadata = rope.divisors, kept_scaling(rope)
        c = replace(c, rope_attention_factor=float(str(np.float32(rope.attention_factor))))
    write_drafter(tmp_path / "d.gguf", c, weights, metadata=metadata)
    out = export_drafter(tmp_path / "d.gguf", tmp_path / "out", "speculators", dtype="F32", verifier=str(verifier)).path
    model = eagle3.Eagle3DraftModel.from_pretrained(out)
    state = model.state_dict()
    for name, tensor in read_safetensors(out / "model.safetensors").items():
        assert np.array_equal(state[name].numpy(), tensor.load()), name
    assert {n for n in state if not n.startswith("verifier_")} == read_safetensors(out / "model.safetensors").keys()
    read = model.config
    assert (read.norm_output, read.norm_before_residual) == (feedback == "post_norm", residual == "normed")
    assert (read.fc_norm, read.norm_before_fc) == (feature_norm == "per_state", feature_norm == "concat")
    assert list(read.eagle_aux_hidden_state_layer_ids) == [2, 3, 4]
    rope_parameters = read.transformer_layer_config.rope_parameters
    assert rope_parameters["rope_type"] == (scaling or "default")
    assert all(rope_parameters[k] == v for k, v in SCALINGS.get(scaling or "", {}).items())
