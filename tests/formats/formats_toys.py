"""Small checkpoints made in the test: a Llama directory with a real BPE tokenizer, and a drafter directory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors_toys import write_safetensors

from refspec.reference.config import DrafterConfig, weight_shapes

VECTORS = Path(__file__).parent.parent / "vectors" / "tokenizer"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def target_config(vocab: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 96,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": vocab, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 0,
    } | changes  # fmt: skip


def target_tensors(c: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random Llama weights under Hugging Face names."""
    rng = np.random.default_rng(seed)
    h, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(h)).astype(np.float32)

    out = {"model.embed_tokens.weight": matrix(v, h), "model.norm.weight": norm()}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {
            p + "input_layernorm.weight": norm(), p + "post_attention_layernorm.weight": norm(),
            p + "self_attn.q_proj.weight": matrix(q, h), p + "self_attn.k_proj.weight": matrix(kv, h),
            p + "self_attn.v_proj.weight": matrix(kv, h), p + "self_attn.o_proj.weight": matrix(h, q),
            p + "mlp.gate_proj.weight": matrix(f, h), p + "mlp.up_proj.weight": matrix(f, h),
            p + "mlp.down_proj.weight": matrix(h, f),
        }  # fmt: skip
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = matrix(v, h)
    return out


def write_target_directory(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text((VECTORS / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    write_safetensors(path / "model.safetensors", tensors)
    return path


def drafter_config(**changes: Any) -> DrafterConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "target_hidden_size": 64, "capture_layers": (2, 3, 4), "n_heads": 4, "n_kv_heads": 2,
        "head_dim": 16, "intermediate_size": 64, "vocab_size": 600, "draft_vocab_size": 160, "rms_eps": 1e-5,
        "rope_theta": 10000.0, "rope_style": "interleaved", "feature_norm": "per_state", "feedback": "post_norm",
        "residual": "raw", "context_length": 256,
    }  # fmt: skip
    return DrafterConfig(**(sizes | changes))


def drafter_weights(c: DrafterConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(c)[0].items():
        x = rng.standard_normal(shape)
        out[name] = (1 + 0.2 * x if len(shape) == 1 else x / np.sqrt(shape[-1])).astype(np.float32)
    if "d2t" in out:
        out["d2t"] = np.sort(rng.permutation(c.vocab_size)[: c.draft_vocab_size]).astype(np.int64)
    return out


def write_drafter_directory(path: Path, changes: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A per_state + post_norm drafter in the speculators layout, for a target of width 64 and 600 tokens."""
    path.mkdir(parents=True, exist_ok=True)
    c = drafter_config()
    w = drafter_weights(c, seed)
    layer = {
        "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 64, "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": 600,
        "max_position_embeddings": 256,
    }  # fmt: skip
    config = {
        "speculators_model_type": "eagle3", "architectures": ["Eagle3DraftModel"], "transformer_layer_config": layer,
        "draft_vocab_size": 160, "target_hidden_size": 64, "eagle_aux_hidden_state_layer_ids": [2, 3, 4],
        "norm_before_residual": False, "norm_output": True, "fc_norm": True, "norm_before_fc": False,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config | (changes or {})))
    member = np.zeros(600, bool)
    member[w["d2t"]] = True
    stored = {
        "fc.weight": w["fc"], **{f"fc_norm.{i}.weight": w[f"fc_norm.{i}"] for i in range(3)},
        "layers.0.input_layernorm.weight": w["attn_norm"], "layers.0.hidden_norm.weight": w["hidden_norm"],
        "layers.0.self_attn.q_proj.weight": w["attn_q"], "layers.0.self_attn.k_proj.weight": w["attn_k"],
        "layers.0.self_attn.v_proj.weight": w["attn_v"], "layers.0.self_attn.o_proj.weight": w["attn_output"],
        "layers.0.post_attention_layernorm.weight": w["ffn_norm"], "layers.0.mlp.gate_proj.weight": w["ffn_gate"],
        "layers.0.mlp.up_proj.weight": w["ffn_up"], "layers.0.mlp.down_proj.weight": w["ffn_down"],
        "norm.weight": w["output_norm"], "embed_tokens.weight": w["token_embd"], "lm_head.weight": w["output"],
        "d2t": w["d2t"] - np.arange(160), "t2d": member,
    }  # fmt: skip
    write_safetensors(path / "model.safetensors", stored)
    return path


def shard(source: Path, out: Path, shards: int, write: Any) -> Path:
    """The checkpoint at `source` with its tensors dealt out to so many files and an index."""
    from refspec.convert.files import read_tensors

    out.mkdir()
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    stored = {k: t.load() for k, t in read_tensors(source).items()}
    where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(stored)}
    for file in set(where.values()):
        write(out / file, {k: a for k, a in stored.items() if where[k] == file})
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return out
