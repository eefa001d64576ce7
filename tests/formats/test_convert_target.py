"""A Hugging Face Llama directory becomes a GGUF that llama.cpp runs with the same tokens and the same logits."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from formats_toys import TEMPLATE, VECTORS, target_config, target_tensors, write_target_directory

from refspec.convert import convert_target
from refspec.convert.export_hf import export_target
from refspec.errors import CheckpointError, UsageError
from refspec.gguf.io import read_gguf_header, read_tensor
from refspec.llama.amx import repacking_works

llama_cpp = pytest.importorskip("llama_cpp")
ENCODINGS = json.loads((VECTORS / "encodings.json").read_text())
LOGITS = 1e-4  # float32 engine against float64 arithmetic, 6 layers


def load(path: Path) -> Any:
    """In llama-cpp-python's own class, which would take AMX kernels that may crash (`refspec/llama/amx.py`) and has no
    option against it.
    """
    default = llama_cpp.llama_cpp.llama_model_default_params

    def as_stored() -> Any:
        params = default()
        params.use_extra_bufts = repacking_works()
        return params

    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", as_stored):
        return llama_cpp.Llama(
            str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, type_k=0, type_v=0
        )


def forward(c: dict[str, Any], w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits [T, V] of a Llama in float64 from the Hugging Face weights: half-split RoPE, so a wrong order shows."""
    w = {k: a.astype(np.float64) for k, a in w.items()}
    n, heads, kv, hd = len(tokens), c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    angle = np.arange(n)[:, None] * c["rope_theta"] ** (-np.arange(0, hd, 2) / hd) / c.get("divisor", 1.0)  # [T, hd/2]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name]

    def rope(x: np.ndarray) -> np.ndarray:  # [T, heads, hd]
        a, b = x[..., : hd // 2], x[..., hd // 2 :]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][tokens]
    future = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        z = norm(x, p + "input_layernorm.weight")
        q = rope((z @ w[p + "self_attn.q_proj.weight"].T).reshape(n, heads, hd))
        k = rope((z @ w[p + "self_attn.k_proj.weight"].T).reshape(n, kv, hd)).repeat(heads // kv, 1)
        v = (z @ w[p + "self_attn.v_proj.weight"].T).reshape(n, kv, hd).repeat(heads // kv, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(hd) + future
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1)
        x = x + out @ w[p + "self_attn.o_proj.weight"].T
        z = norm(x, p + "post_attention_layernorm.weight")
        gate = z @ w[p + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (z @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    config = target_config(600)
    tensors = target_tensors(config)
    folder = write_target_directory(tmp_path_factory.mktemp("target"), config, tensors)
    convert_target(folder, folder / "f32.gguf", "f32")
    return folder, config, tensors


TOKENS = [1, 2, 300, 17, 451, 99, 99, 5, 260, 3, 410, 77]


def test_logits_are_those_of_the_checkpoint(pair: Any) -> None:
    folder, config, tensors = pair
    difference = np.abs(logits(load(folder / "f32.gguf"), TOKENS) - forward(config, tensors, TOKENS)).max()
    assert difference < LOGITS


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"rope_theta": 500000.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "divisor": 4.0},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
    ],
    ids=["own_head", "theta", "linear_rope", "nested_theta"],
)
def test_variants_keep_the_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = target_config(600, **changes)
    tensors = target_tensors(config, seed=1)
    folder = write_target_directory(tmp_path, config, tensors)
    convert_target(folder, tmp_path / "t.gguf", "f32")
    config["rope_theta"] = config["rope_theta"] or config["rope_parameters"]["rope_theta"]
    difference = np.abs(logits(load(tmp_path / "t.gguf"), TOKENS) - forward(config, tensors, TOKENS)).max()
    assert difference < LOGITS


# What rounding the weights moves the logits by (their standard deviation is near 1): half, 8 bit, 4 bit.
@pytest.mark.parametrize(("outtype", "bound"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.4), ("q4_0", 2.5)])
def test_every_outtype_loads_and_stays_near(pair: Any, tmp_path: Path, outtype: str, bound: float) -> None:
    folder, config, tensors = pair
    report = convert_target(folder, tmp_path / "t.gguf", outtype)
    info = read_gguf_header(report.path)
    assert info.tensors["blk.0.ffn_up.weight"].type == outtype.upper()
    assert info.tensors["blk.0.attn_norm.weight"].type == "F32"
    difference = np.abs(logits(load(report.path), TOKENS) - forward(config, tensors, TOKENS)).max()
    assert 0 < difference < bound


def test_a_pattern_gives_some_tensors_another_type(pair: Any, tmp_path: Path) -> None:
    report = convert_target(
        pair[0], tmp_path / "t.gguf", "q4_0", types={"token_embd.weight": "q8_0", "*ffn_down*": "f16"}
    )
    types = {name: t.type for name, t in read_gguf_header(report.path).tensors.items()}
    assert (types["token_embd.weight"], types["blk.3.ffn_down.weight"], types["blk.3.ffn_up.weight"]) == (
        "Q8_0",
        "F16",
        "Q4_0",
    )


def test_tokens_are_those_of_the_tokenizers_library(pair: Any) -> None:
    model = load(pair[0] / "f32.gguf")
    wrong = [text for text, ids in ENCODINGS if model.tokenize(text.encode(), add_bos=False, special=True) != ids]
    assert wrong == []
    assert all(model.detokenize(ids, special=True).decode() == text for text, ids in ENCODINGS if text)


def test_encodings_file_is_current() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(VECTORS / "tokenizer.json"))
    assert all(tokenizer.encode(text, add_special_tokens=False).ids == ids for text, ids in ENCODINGS)


def test_special_tokens_and_template_arrive(pair: Any) -> None:
    model = load(pair[0] / "f32.gguf")
    assert (model.token_bos(), model.token_eos()) == (1, 0)
    assert model.tokenize(b"Hi", add_bos=True, special=False)[0] == 1
    vocab = llama_cpp.llama_model_get_vocab(model._model.model)
    ends = [i for i in range(600) if llama_cpp.llama_vocab_is_eog(vocab, i)]
    assert ends == [0, 3]  # <|endoftext|> and <|im_end|>
    assert model.metadata["tokenizer.chat_template"] == TEMPLATE
    # Without special parsing the text of a control token is only text.
    assert 3 not in model.tokenize(b"<|im_end|>", add_bos=False, special=False)


def test_weights_survive_bit_for_bit(pair: Any) -> None:
    info = read_gguf_header(pair[0] / "f32.gguf")
    assert np.array_equal(read_tensor(info, "blk.2.ffn_gate.weight"), pair[2]["model.layers.2.mlp.gate_proj.weight"])
    q = read_tensor(info, "blk.2.attn_q.weight").reshape(4, 12, 2, 64)
    assert np.array_equal(q.swapaxes(1, 2).reshape(96, 64), pair[2]["model.layers.2.self_attn.q_proj.weight"])


def broken(tmp_path: Path, config: dict[str, Any] | None = None, **tensors: np.ndarray | None) -> Path:
    base = target_config(600) | (config or {})
    weights = {k: a for k, a in (target_tensors(target_config(600)) | tensors).items() if a is not None}
    return write_target_directory(tmp_path, base, weights)


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, {}, "GPT2LMHeadModel"),
        ({"hidden_size": "64"}, {}, "hidden_size"),
        ({"num_hidden_layers": 7}, {}, "missing"),
        ({"num_hidden_layers": 5}, {}, "no place"),
        ({"intermediate_size": 100}, {}, "config.json says"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, {}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, {}, "incomplete"),
        ({"vocab_size": 300}, {}, "config.json says"),
        ({"vocab_size": 300}, {"model.embed_tokens.weight": np.ones((300, 64), np.float32)}, "does not fit vocab_size"),
        ({}, {"model.norm.weight": None}, "model.norm.weight"),
        ({}, {"model.norm.weight": np.full(64, np.nan, np.float32)}, "NaN"),
        ({}, {"model.layers.0.self_attn.q_proj.bias": np.zeros(96, np.float32)}, "q_proj.bias"),
        ({}, {"lm_head.weight": np.zeros((600, 64), np.float32)}, "tie_word_embeddings"),
    ],
)
def test_bad_directories_are_one_line_errors(tmp_path: Path, config: Any, tensors: Any, words: str) -> None:
    folder = broken(tmp_path, config, **tensors)
    with pytest.raises(CheckpointError) as caught:
        convert_target(folder, tmp_path / "t.gguf", "f32")
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_unknown_pre_tokenizer_is_refused_unless_named(tmp_path: Path) -> None:
    folder = broken(tmp_path)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("\\\\p{N}|", "\\\\p{N}{1,2}|"))
    with pytest.raises(CheckpointError, match="pre-tokenizer"):
        convert_target(folder, tmp_path / "t.gguf", "f32")
    assert convert_target(folder, tmp_path / "t.gguf", "f32", pre="qwen2").path.exists()


def test_an_unknown_outtype_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q9_9"):
        convert_target(broken(tmp_path), tmp_path / "t.gguf", "q9_9")


def test_the_recommended_sampling_goes_there_and_back(pair: Any, tmp_path: Path) -> None:
    folder = write_target_directory(tmp_path / "hf", pair[1], pair[2])
    said = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 1,
        "repetition_penalty": 1.05,
        "eos_token_id": 3,
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    report = convert_target(folder, tmp_path / "t.gguf", "f32")
    assert "temperature 0.6, top_k 20, top_p 1, repeat_penalty 1.05" in str(report.resolved["recommended sampling"])
    metadata = read_gguf_header(tmp_path / "t.gguf").metadata
    assert metadata["general.sampling.top_k"] == 20 and metadata["general.sampling.temp"] == pytest.approx(0.6)
    export_target(tmp_path / "t.gguf", tmp_path / "back")
    del said["eos_token_id"]
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == said
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    assert "recommended sampling" not in convert_target(folder, tmp_path / "greedy.gguf", "f32").resolved
    (folder / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(CheckpointError, match=r"generation_config.json.*temperature"):
        convert_target(folder, tmp_path / "bad.gguf", "f32")
