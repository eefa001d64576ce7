"""Biases of a checkpoint:

converted and exported exactly, left out where they are zero, refused where a flag denies them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import ATOL, chain_by_reference, chain_in_c
from formats_toys import drafter_weights
from layout_toys import write
from test_layouts import golden

from refspec.convert import convert_drafter, open_checkpoint, read_checkpoint
from refspec.convert.export import export_drafter
from refspec.convert.inspect import describe, lines
from refspec.convert.safetensors_io import read_safetensors
from refspec.convert.stock import calibrate, candidates
from refspec.errors import CheckpointError
from refspec.gguf.drafter_meta import stock_reasons
from refspec.gguf.io import interleave_rows, read_drafter, read_gguf_header
from refspec.reference.config import BIASED, DrafterConfig
from refspec.reference.eagle3 import Eagle3Drafter

ATTENTION, MLP = BIASED[1:5], BIASED[5:8]
# layout, flags of config.json (None: absent), matrices with a bias
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("SpecForge", {"attention_bias": True}, ATTENTION),
    ("SpecForge", {"attention_bias": True}, ATTENTION[:3]),
    ("SpecForge", {"attention_bias": None, "mlp_bias": None}, ATTENTION[:3]),  # Qwen2 style: no flag speaks of them
    ("SpecForge", {"attention_bias": True, "mlp_bias": True, "fc_bias": True}, BIASED),
    ("SpecForge", {"attention_bias": None, "mlp_bias": None, "bias": True}, ("fc",)),
    ("NeMo Automodel", {"attention_bias": True, "mlp_bias": True}, (*ATTENTION, *MLP)),
    ("ModelOpt", {"qkv_bias": True, "attention_bias": None}, ATTENTION[:3]),
]


@pytest.mark.parametrize(("layout", "flags", "biases"), CASES)
def test_a_checkpoint_with_biases_converts_exactly(
    tmp_path: Path, layout: str, flags: dict[str, Any], biases: tuple[str, ...]
) -> None:
    c = write(tmp_path / "ckpt", layout, flags, biases=biases)
    report = convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", "f32")
    assert report.arch == "refspec-eagle3" and report.resolved["biases"].value == list(biases)
    config, weights = read_drafter(tmp_path / "d.gguf")
    assert config == c
    expected = drafter_weights(c)
    for name in {"attn_q", "attn_k", "attn_q.bias", "attn_k.bias"} & expected.keys():
        expected[name] = interleave_rows(expected[name], c.head_dim)
    assert weights.keys() == expected.keys() and all(np.array_equal(weights[k], expected[k]) for k in weights)
    data = golden(c)
    for ours, theirs in zip(
        chain_by_reference(tmp_path / "d.gguf", None, data), chain_in_c(tmp_path / "d.gguf", None, data), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=ATOL)
    unturned, loaded, *_ = read_checkpoint(tmp_path / "ckpt")  # the checkpoint's own row order gives the same logits
    rows = Eagle3Drafter(unturned, loaded).forward_rows(data["prefix_tokens"], data["features"], is_target_feature=True)
    np.testing.assert_allclose(
        rows.logits[-1], chain_by_reference(tmp_path / "d.gguf", None, data)[0], rtol=0, atol=ATOL
    )
    assert f"biases           {', '.join(biases)}: each of these matrices adds one" in "\n".join(
        lines(describe(tmp_path / "d.gguf"))
    )
    assert describe(tmp_path / "ckpt")["flags"]["biases"] == describe(tmp_path / "d.gguf")["flags"]["biases"]


@pytest.mark.parametrize(
    ("flags", "biases", "words"),
    [
        ({"attention_bias": True}, (), "--ignore attention_bias"),
        ({"attention_bias": True}, ("attn_q", "attn_k"), "v_proj.bias is missing"),
        ({"mlp_bias": True}, ("ffn_gate",), "--ignore mlp_bias"),
        ({"bias": True}, (), "--ignore bias"),
        ({"fc_bias": True}, (), "fc.bias is missing"),
        ({"attention_bias": False}, ATTENTION, "--ignore midlayer.self_attn.q_proj.bias"),
        ({"attention_bias": False}, ATTENTION[:3], "--ignore attention_bias (apply it)"),
        ({"mlp_bias": False}, MLP, "mlp_bias = false"),
        ({"attention_bias": "yes"}, (), "true or false"),
        ({"attention_bias": True, "eagle_config": {"attention_bias": False}}, (), "in one place"),
    ],
)
def test_flags_and_tensors_that_disagree_name_both_overrides(
    tmp_path: Path, flags: dict[str, Any], biases: Any, words: str
) -> None:
    write(tmp_path / "ckpt", "SpecForge", flags, biases=biases)
    with pytest.raises(CheckpointError) as caught:
        convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", overrides={"layer_ids": [2, 3, 5]})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


def test_either_override_decides(tmp_path: Path) -> None:
    write(tmp_path / "ckpt", "SpecForge", {"mlp_bias": False}, biases=("ffn_gate",))
    assert open_checkpoint(tmp_path / "ckpt", None, {"ignore": ["mlp_bias"]}).config.biases == ("ffn_gate",)
    assert open_checkpoint(tmp_path / "ckpt", None, {"ignore": ["midlayer.mlp.gate_proj.bias"]}).config.biases == ()


def test_a_bias_of_no_matrix_is_unknown(tmp_path: Path) -> None:
    write(tmp_path / "ckpt", "SpecForge", tensors={"midlayer.hidden_norm.bias": np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match=r"--ignore midlayer\.hidden_norm\.bias"):
        open_checkpoint(tmp_path / "ckpt")


def with_flags(folder: Path, **flags: Any) -> None:
    """A speculators checkpoint whose nested config has these flags as well."""
    config = json.loads((folder / "config.json").read_text())
    config["transformer_layer_config"] |= flags
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("zero", [(), ("attn_output",), ATTENTION], ids=lambda names: "zero: " + "-".join(names))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_biases_and_zero_biases_come_back_bit_exact(tmp_path: Path, zero: tuple[str, ...], qk_norm: bool) -> None:
    biases = ATTENTION if qk_norm else (*ATTENTION, *MLP)
    c = write(tmp_path / "ckpt", "speculators", biases=biases, qk_norm=qk_norm)
    spelled = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
    names = [f"layers.0.self_attn.{spelled[name]}.bias" for name in zero]
    held = read_safetensors(tmp_path / "ckpt" / "model.safetensors")
    write(
        tmp_path / "ckpt",
        "speculators",
        None,
        {n: np.zeros_like(held[n].load()) for n in names},
        biases=biases,
        qk_norm=qk_norm,
    )
    with_flags(tmp_path / "ckpt", attention_bias=True, **({} if qk_norm else {"mlp_bias": True}))
    report = convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", "f32")
    assert sum("only zeros" in note for note in report.notes) == len(zero)
    export_drafter(tmp_path / "d.gguf", tmp_path / "out", "speculators", dtype="F32")
    before, after = (read_safetensors(tmp_path / d / "model.safetensors") for d in ("ckpt", "out"))
    assert before.keys() == after.keys() and all(
        before[k].load().tobytes() == after[k].load().tobytes() for k in before
    )
    layer = json.loads((tmp_path / "out" / "config.json").read_text())["transformer_layer_config"]
    assert layer["attention_bias"] is True and layer.get("mlp_bias") is (None if qk_norm else True)
    assert read_checkpoint(tmp_path / "out")[0] == read_checkpoint(tmp_path / "ckpt")[0]
    assert c.biases == biases


def test_a_drafter_whose_biases_are_all_zero_is_one_stock_llama_cpp_runs(tmp_path: Path) -> None:
    c = write(
        tmp_path / "ckpt",
        "SpecForge",
        {"mlp_bias": True},
        {f"midlayer.mlp.{n}_proj.bias": np.zeros(s, np.float32) for n, s in (("gate", 64), ("up", 64), ("down", 32))},
    )
    report = convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", "f32")
    assert report.arch == "eagle3" and c.biases == ()
    assert read_gguf_header(tmp_path / "d.gguf").metadata["refspec.zero_biases"] == list(MLP)


@pytest.mark.parametrize("layout", ["specforge", "eagle"])
def test_layouts_without_biases_refuse_by_name(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "ckpt", "SpecForge", {"attention_bias": True}, biases=ATTENTION, head_dim=8)
    convert_drafter(tmp_path / "ckpt", None, tmp_path / "d.gguf", "f32")
    with pytest.raises(CheckpointError, match="biases = attn_q"):
        export_drafter(tmp_path / "d.gguf", tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("biases", [("fc",), ("output",), ATTENTION[:3], BIASED], ids="-".join)
def test_biases_fold_to_nearly_the_same_logits_on_the_rows_they_were_folded_for(
    tmp_path: Path, biases: tuple[str, ...]
) -> None:
    c = write(tmp_path, "SpecForge", {"attention_bias": None, "mlp_bias": None}, biases=biases)
    w = drafter_weights(c)
    data = golden(c)
    tokens, features = data["prefix_tokens"], data["features"]
    near = candidates(c, w, calibrate(c, w, tokens, features))
    assert len(near) == 2 and all(stock_reasons(config) == [] for config, _ in near.values())

    def logits(config: DrafterConfig, weights: dict[str, np.ndarray]) -> np.ndarray:
        return Eagle3Drafter(config, weights).forward_rows(tokens, features, is_target_feature=True).logits

    exact = logits(c, w)
    error = {
        name.split(",")[0]: float(np.abs(logits(*pair) - exact).mean())
        for name, pair in near.items()
    }  # fmt: skip
    assert error["biases folded"] < 0.2 * error["biases left out"]
