"""Every checkpoint a trainer's own code wrote converts, and its own torch forward comes back out of NumPy, C and
llama.cpp.

Random weights; ATOL: 1e-4 absolute, on logits up to about 50, float32 on every side.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import ATOL, chain_by_llama, chain_by_reference, chain_in_c, write_target_for
from safetensors_toys import write_safetensors

from refspec.convert import convert_drafter
from refspec.gguf.io import read_drafter, read_gguf_header

ORACLES = Path(__file__).parent.parent / "vectors" / "oracles"
LAYERS = {"layer_ids": [2, 4, 5]}
# What config.json leaves open: the captured layers (the default needs a target), and the flag with two meanings.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "specforge_base": ("SpecForge", LAYERS),
    "specforge_Ht96_fc_norm": ("SpecForge", LAYERS),
    "specforge_fc_norm_norm_output_true": ("SpecForge", LAYERS | {"feedback": "pre_norm"}),
    "torchspec_fullvocab": ("TorchSpec", LAYERS),
    "torchspec_llama3rope_fullvocab": ("TorchSpec", LAYERS),
    "spec_nbr1_fc_norm_out1": ("speculators", {}),
    "safeai_base": ("SafeAILab", LAYERS),
    "safeai_linear_rope": ("SafeAILab", LAYERS),
}


def test_every_oracle_is_here() -> None:
    assert CASES.keys() == {p.name for p in ORACLES.iterdir() if p.is_dir()}


@pytest.mark.parametrize("engine", ["numpy", "c", "llama.cpp"])
@pytest.mark.parametrize("name", CASES)
def test_the_trainers_own_chain_comes_back(tmp_path: Path, name: str, engine: str) -> None:
    golden = np.load(ORACLES / name / "golden.npz")
    layout, given = CASES[name]
    target = write_target_for(tmp_path, golden)
    report = convert_drafter(ORACLES / name / "checkpoint", target, tmp_path / "d.gguf", "f32", given)
    assert report.resolved["layout"].value == layout
    run = {"numpy": chain_by_reference, "c": chain_in_c, "llama.cpp": chain_by_llama}[engine]
    prefix, chain = run(tmp_path / "d.gguf", target, golden)
    np.testing.assert_allclose(prefix, golden["prefix_logits"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(chain, golden["chain_logits"], rtol=0, atol=ATOL)
    _, weights = read_drafter(tmp_path / "d.gguf")
    assert np.array_equal(weights.get("d2t", np.arange(len(prefix))), golden["draft_ids"])


def test_embeddings_the_trainer_left_out_are_the_targets(tmp_path: Path) -> None:
    golden = np.load(ORACLES / "safeai_base" / "golden.npz")
    target = write_target_for(tmp_path, golden)
    report = convert_drafter(ORACLES / "safeai_base" / "checkpoint", target, tmp_path / "d.gguf", "f32", LAYERS)
    assert any("token_embd copied" in note for note in report.notes)
    assert np.array_equal(read_drafter(tmp_path / "d.gguf")[1]["token_embd"], golden["embed_tokens"])


def test_what_was_resolved_is_printed_and_stored(tmp_path: Path) -> None:
    given = CASES["specforge_fc_norm_norm_output_true"][1]
    source = ORACLES / "specforge_fc_norm_norm_output_true" / "checkpoint"
    report = convert_drafter(source, None, tmp_path / "d.gguf", "f32", given)
    stored = read_gguf_header(tmp_path / "d.gguf").metadata
    text = "\n".join(report.lines())
    for name in (
        "layout",
        "files",
        "feature_norm",
        "feedback",
        "residual",
        "head_norm",
        "capture_layers",
        "rope",
        "d2t",
        "draft_vocab",
    ):
        assert name in text and report.resolved[name].source in stored[f"refspec.provenance.{name}"]
    assert stored["refspec.provenance.feedback"] == "pre_norm; override --feedback"


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_are_one_checkpoint(tmp_path: Path, shards: int) -> None:
    from formats_toys import shard

    name = "specforge_base"
    folder = shard(ORACLES / name / "checkpoint", tmp_path / "sharded", shards, write_safetensors)
    convert_drafter(ORACLES / name / "checkpoint", None, tmp_path / "a.gguf", "f32", LAYERS)
    convert_drafter(folder, None, tmp_path / "b.gguf", "f32", LAYERS)
    (_, a), (_, b) = read_drafter(tmp_path / "a.gguf"), read_drafter(tmp_path / "b.gguf")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
