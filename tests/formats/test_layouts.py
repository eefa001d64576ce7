"""Layouts without an oracle, RoPE scalings, sizes off the beaten track:

converted exactly, or refused with the override named.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import ATOL, chain_by_llama, chain_by_reference, chain_in_c, write_target_for
from formats_toys import drafter_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layout_toys import WRITERS, write

from refspec.convert import convert_drafter, open_checkpoint, read_checkpoint
from refspec.convert.names import drafter_names
from refspec.convert.rope import rope_settings
from refspec.errors import CheckpointError, RefspecError
from refspec.gguf.io import interleave_rows, read_drafter, read_gguf_header
from refspec.reference.config import RopeStyle
from refspec.reference.eagle3 import Eagle3Drafter


def golden(c: Any) -> dict[str, np.ndarray]:
    """Tokens and features as an oracle has them, without outputs."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((10, c.n_states * c.target_hidden_size)).astype(np.float32)
    return {
        "prefix_tokens": rng.integers(0, c.vocab_size, 10), "features": features,
        "chain_tokens": rng.integers(0, c.vocab_size, 6),
    }  # fmt: skip


def agree(path: Path, target: Path | None, data: Any, *, stock: bool) -> None:
    """NumPy = C, and = llama.cpp where llama.cpp can run it."""
    reference = chain_by_reference(path, target, data)
    others = [chain_in_c(path, target, data)]
    if stock and target is not None:
        others.append(chain_by_llama(path, target, data))
    for other in others:
        for ours, theirs in zip(reference, other, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_resolves_to_what_was_written(tmp_path: Path, layout: str) -> None:
    c = write(tmp_path / "ckpt", layout)
    data, overrides = golden(c), WRITERS[layout][2]
    target = write_target_for(tmp_path, data, vocab=600)
    report = convert_drafter(tmp_path / "ckpt", target, tmp_path / "d.gguf", "f32", overrides)
    assert report.resolved["layout"].value == ("SpecForge" if layout == "specdrift" else layout)
    config, weights = read_drafter(tmp_path / "d.gguf")
    assert config == c
    expected = drafter_weights(c)
    for name in {"attn_q", "attn_k", "q_norm", "k_norm"} & expected.keys():
        expected[name] = interleave_rows(expected[name], c.head_dim)
    assert weights.keys() == expected.keys() and all(np.array_equal(weights[k], expected[k]) for k in weights)
    agree(tmp_path / "d.gguf", target, data, stock=not c.qk_norm)


def test_norm_output_of_a_specdrift_release_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "specdrift")
    with pytest.raises(CheckpointError, match=r"specdrift.*--feedback"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("layout", "config", "tensors", "words"),
    [
        ("ModelOpt", {"wheel_size": 3}, {}, "--ignore wheel_size"),
        (
            "ModelOpt",
            {"eagle_config": {"next_layer_regular": True, "use_aux_hidden_state": False}},
            {},
            "use_aux_hidden_state",
        ),
        (
            "ModelOpt",
            {"eagle_config": {"next_layer_regular": True, "eh_proj_before_attn": True}},
            {},
            "eh_proj_before_attn",
        ),
        ("ModelOpt", {"eagle_config": {"next_layer_regular": True, "spin": 1}}, {}, "eagle_config.spin"),
        ("ModelOpt", {}, {"norm.weight": None}, "--head-norm"),
        ("ModelOpt", {"norm_output": True}, {}, "--feedback"),
        ("NeMo Automodel", {"num_aux_hidden_states": 4}, {}, "--layer-ids"),
        ("SpecForge", {"quantization_config": {"bits": 4}}, {}, "quantization_config"),
        ("SpecForge", {"model_type": "gemma"}, {}, "model_type"),
        ("SpecForge", {"sliding_window": 128}, {}, "sliding_window"),
        ("SpecForge", {"attention_bias": True}, {}, "attention_bias"),
        ("SpecForge", {"rope_theta": -1}, {}, "--rope-theta"),
        ("SpecForge", {"rope_parameters": {"rope_theta": 500000.0}}, {}, "--rope-theta"),
        ("SpecForge", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, "dynamic"),
        ("SpecForge", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, {}, "attention_factor"),
        ("SpecForge", {"rope_scaling": {"type": "llama3", "factor": 2.0}}, {}, "low_freq_factor"),
        ("SpecForge", {"rope_scaling": {"type": "linear", "factor": 2.0, "colour": 1}}, {}, "colour"),
        ("SpecForge", {"eagle_aux_hidden_state_layer_ids": [2, 3, 4]}, {}, "decide with --layer-ids"),
        ("SpecForge", {"num_hidden_layers": 2}, {}, "num_hidden_layers"),
        ("SpecForge", {}, {"midlayer.self_attn.q_proj.bias": np.ones(64, np.float32)}, "q_proj.bias"),
        ("SpecForge", {}, {"midlayer.extra.weight": np.ones(3, np.float32)}, "--ignore midlayer.extra.weight"),
        ("SpecForge", {"draft_vocab_size": 600}, {}, "draft_vocab_size"),
    ],
)
def test_an_unknown_or_ambiguous_fact_names_itself_and_the_override(
    tmp_path: Path, layout: str, config: Any, tensors: Any, words: str
) -> None:
    write(tmp_path, layout, config, tensors)
    with pytest.raises(RefspecError) as caught:
        convert_drafter(tmp_path, None, tmp_path / "d.gguf", "f32")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_ignore_drops_what_it_names_and_nothing_unknown(tmp_path: Path) -> None:
    write(tmp_path, "SpecForge", {"wheel_size": 3}, {"midlayer.extra.weight": np.ones(3, np.float32)})
    opened = open_checkpoint(tmp_path, None, {"ignore": ["wheel_size", "midlayer.extra.weight"]})
    assert sum("--ignore" in note for note in opened.notes) == 2
    with pytest.raises(RefspecError, match="gone"):
        open_checkpoint(tmp_path, None, {"ignore": ["gone"]})


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": YARN,
    "yarn with its own factor": YARN | {"attention_factor": 1.7},
    "yarn with mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16, "beta_slow": 2},
    "yarn, legacy key": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_scalings_run_alike_in_numpy_c_and_llama_cpp(tmp_path: Path, name: str, key: str) -> None:
    c = write(tmp_path / "ckpt", "SpecForge", {key: SCALINGS[name]})
    data = golden(c)
    target = write_target_for(tmp_path, data, vocab=600)
    convert_drafter(tmp_path / "ckpt", target, tmp_path / "d.gguf", "f32")
    info = read_gguf_header(tmp_path / "d.gguf")
    assert info.arch == "eagle3"  # stock llama.cpp computes it
    said = {("rope_type" if k == "type" else k): v for k, v in SCALINGS[name].items()}
    assert json.loads(info.metadata["refspec.rope_scaling"]) == said
    agree(tmp_path / "d.gguf", target, data, stock=True)
    again, weights, *_ = read_checkpoint(tmp_path / "ckpt", target)
    assert again.rope_style is RopeStyle.HALF_SPLIT
    drafter = Eagle3Drafter(again, weights)  # the checkpoint's own row order gives the same logits
    rows = drafter.forward_rows(data["prefix_tokens"], data["features"], is_target_feature=True)
    np.testing.assert_allclose(
        rows.logits[-1], chain_by_reference(tmp_path / "d.gguf", None, data)[0], rtol=0, atol=ATOL
    )


def test_yarn_multiplies_scores_by_the_square_of_its_factor(tmp_path: Path) -> None:
    c = write(tmp_path / "ckpt", "SpecForge", {"rope_scaling": YARN})
    convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", "f32")
    config, _ = read_drafter(tmp_path / "d.gguf")
    assert config.rope_attention_factor == pytest.approx(0.1 * math.log(4.0) + 1.0, rel=1e-6)
    ignoring = chain_by_reference(tmp_path / "d.gguf", None, golden(c))
    write(tmp_path / "one", "SpecForge", {"rope_scaling": YARN | {"attention_factor": 1.0}})
    convert_drafter(tmp_path / "one", None, tmp_path / "e.gguf", "f32")
    assert np.abs(ignoring[0] - chain_by_reference(tmp_path / "e.gguf", None, golden(c))[0]).max() > 100 * ATOL


def test_yarn_divisors_are_those_of_transformers() -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is the other opinion")
    from transformers import LlamaConfig

    for scaling in [YARN, SCALINGS["yarn with mscale"], YARN | {"truncate": False, "factor": 8.0}]:
        config = LlamaConfig(
            hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=512,
            rope_parameters=scaling | {"rope_theta": 10000.0},
        )  # fmt: skip
        frequencies, attention = utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        ours = rope_settings({"rope_theta": 10000.0, "rope_scaling": scaling}, 16, "x")
        plain = 10000.0 ** -(np.arange(0, 16, 2) / 16)
        assert ours.divisors is not None
        np.testing.assert_allclose(plain / ours.divisors, frequencies.numpy(), rtol=1e-5)
        assert ours.attention_factor == pytest.approx(attention, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        dict(head_dim=24),
        dict(hidden_size=48),
        dict(target_hidden_size=32),
        dict(draft_vocab_size=600),
        dict(n_kv_heads=4),
    ],
    ids=str,
)
def test_sizes_of_every_proportion_convert_and_run_alike(tmp_path: Path, changes: dict[str, int]) -> None:
    c = write(tmp_path / "ckpt", "NeMo Automodel", **changes)
    data = golden(c)
    target = write_target_for(tmp_path, data, vocab=600)
    convert_drafter(tmp_path / "ckpt", target, tmp_path / "d.gguf", "f32")
    assert read_drafter(tmp_path / "d.gguf")[0] == c
    agree(tmp_path / "d.gguf", target, data, stock=True)


def test_a_head_pruned_with_offsets_for_ids_is_noticed(tmp_path: Path) -> None:
    c = write(tmp_path / "good", "SpecForge")
    w = drafter_weights(c)
    full = np.random.default_rng(1).standard_normal((c.vocab_size, c.hidden_size)).astype(np.float32)
    offsets = w["d2t"] - np.arange(len(w["d2t"]))
    write(tmp_path / "bad", "SpecForge", {"_torchspec_version": "0.1.0"}, {"lm_head.weight": full[offsets]})
    open_checkpoint(tmp_path / "good")
    with pytest.raises(CheckpointError, match="TorchSpec bug"):
        open_checkpoint(tmp_path / "bad")


@pytest.mark.parametrize(
    ("theta", "scaling", "words"), [(500000.0, None, "--rope-theta 10000"), (500000.0, "linear", "ignores")]
)
def test_the_rope_base_safeai_trained_with_is_asked_for(
    tmp_path: Path, theta: float, scaling: str | None, words: str
) -> None:
    keys: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "rope_theta": theta, "eagle_config": None}
    write(tmp_path, "SpecForge", keys | ({"rope_scaling": SCALINGS[scaling]} if scaling else {}))
    overrides = {"layer_ids": [2, 3, 5]}
    if scaling:
        opened = open_checkpoint(tmp_path, None, overrides)
        assert opened.config.rope_theta == 10000.0 and words in opened.resolved["rope"].source
        return
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path, None, overrides)
    assert open_checkpoint(tmp_path, None, overrides | {"rope_theta": theta}).config.rope_theta == theta


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(["NeMo Automodel", "speculators"]),
    feature_norm=st.sampled_from(["none", "per_state"]),
    feedback=st.sampled_from(["pre_norm", "post_norm"]),
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4)]),
    head_dim=st.sampled_from([8, 10, 32]),
    draft=st.sampled_from([1, 37, 600]),
    outtype=st.sampled_from(["f32", "bf16", "f16", "q8_0"]),
)
def test_any_drafter_comes_back_from_its_gguf(
    tmp_path: Path, layout: str, heads: tuple[int, int], draft: int, outtype: str, **changes: Any
) -> None:
    changes |= {"n_heads": heads[0], "n_kv_heads": heads[1], "draft_vocab_size": draft}
    c = write(tmp_path / "c", layout, **changes)
    convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", outtype)
    config, weights = read_drafter(tmp_path / "d.gguf")
    assert config == c
    expected = drafter_weights(c)
    for name in {"attn_q", "attn_k", "q_norm", "k_norm"} & expected.keys():
        expected[name] = interleave_rows(expected[name], c.head_dim)
    tolerance = {"f32": 0.0, "bf16": 2**-8, "f16": 2**-10, "q8_0": 2**-6}[outtype]
    for name, array in expected.items():
        assert np.abs(weights[name] - array).max() <= tolerance * np.abs(array).max(), name


def test_a_whole_model_is_told_from_a_drafter() -> None:
    """Somebody named the target's directory: `--ignore` for each of its tensors would be bad advice."""
    stored = [f"model.layers.{i}.input_layernorm.weight" for i in range(3)] + ["model.norm.weight"]
    with pytest.raises(
        CheckpointError,
        match=r"here: 'model\.layers\.1\.input_layernorm\.weight' is of a second layer.*name the drafter's directory",
    ):
        drafter_names(stored, "here")
