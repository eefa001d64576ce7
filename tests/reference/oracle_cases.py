"""Test-side loader of tests/vectors/oracles: checkpoint -> (DrafterConfig, weights), written apart from the product's.

Independent on purpose: a misread flag in refspec.convert must not be mirrored here. Flags come from the words of
meta.json.
"""

import io
import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual, RopeStyle

ROOT = Path(__file__).parent.parent / "vectors" / "oracles"
CASES = sorted(p.name for p in ROOT.iterdir() if p.is_dir())

NAMES = {
    "fc.weight": "fc",
    "norm.weight": "output_norm",
    "lm_head.weight": "output",
    "embed_tokens.weight": "token_embd",
    "hidden_norm.weight": "hidden_norm",
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
} | {f"fc_norm.{i}.weight": f"fc_norm.{i}" for i in range(3)}


class Case(NamedTuple):
    config: DrafterConfig
    weights: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]
    meta: dict[str, Any]


def load_case(name: str) -> Case:
    folder = ROOT / name
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "golden.npz") as npz:
        golden = {k: npz[k] for k in npz.files}
    hf = json.loads((folder / "checkpoint" / "config.json").read_text())
    hf = hf.get("transformer_layer_config", {}) | {k: v for k, v in hf.items() if k != "transformer_layer_config"}
    tensors = read_checkpoint(folder / "checkpoint")
    if "embed_tokens.weight" not in tensors:
        tensors["embed_tokens.weight"] = golden["embed_tokens"]
    d2t = tensors.pop("d2t", None)
    tensors.pop("t2d", None)
    weights = {NAMES[k.removeprefix("midlayer.").removeprefix("layers.0.")]: a for k, a in tensors.items()}
    if d2t is not None:
        weights["d2t"] = np.arange(len(d2t)) + d2t  # on disk: offsets
    words = meta["semantics"]
    head_dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    theta = (hf.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    freqs = rope_divisors(hf.get("rope_scaling"), head_dim, theta)
    if freqs is not None:
        weights["rope_freqs"] = freqs
    config = DrafterConfig(
        hidden_size=hf["hidden_size"],
        target_hidden_size=hf.get("target_hidden_size") or hf["hidden_size"],
        capture_layers=(2, 4, 5),
        n_heads=hf["num_attention_heads"],
        n_kv_heads=hf["num_key_value_heads"],
        head_dim=head_dim,
        intermediate_size=hf["intermediate_size"],
        vocab_size=hf["vocab_size"],
        draft_vocab_size=hf["draft_vocab_size"],
        rms_eps=hf["rms_norm_eps"],
        rope_theta=theta,
        rope_style=RopeStyle.HALF_SPLIT,
        feature_norm={"none": FeatureNorm.NONE, "fc_norm": FeatureNorm.PER_STATE}[words["feature_norm_kind"]],
        feedback={"pre": Feedback.PRE_NORM, "post": Feedback.POST_NORM}[words["feedback_kind"]],
        residual={"raw": Residual.RAW, "normed": Residual.NORMED}[words["residual_kind"]],
        head_norm=words["head_norm_kind"] == "norm",
    )
    return Case(config, weights, golden, meta)


def rope_divisors(scaling: dict[str, Any] | None, head_dim: int, theta: float) -> np.ndarray | None:
    """Frequency divisors [hd/2] of linear and llama3 scaling (Llama 3.1 report), None without scaling."""
    if scaling is None:
        return None
    kind, factor = scaling.get("rope_type", scaling.get("type")), float(scaling["factor"])
    if kind == "linear":
        return np.full(head_dim // 2, factor, np.float32)
    if kind != "llama3":
        raise AssertionError(kind)
    divisors = []
    for i in range(head_dim // 2):
        turns = scaling["original_max_position_embeddings"] * theta ** (-2 * i / head_dim) / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)  # share of the frequency that stays unscaled
        divisors.append(1 / ((1 - kept) / factor + kept))
    return np.array(divisors, np.float32)


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "model.safetensors"
    return read_safetensors(path) if path.exists() else read_torch_zip(folder / "pytorch_model.bin")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    return {
        name: decode(data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]], t["dtype"], t["shape"])
        for name, t in header.items()
    }


def decode(raw: bytes, dtype: str, shape: Any) -> Any:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    kinds = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "BOOL": "?"}
    array = np.frombuffer(raw, kinds[dtype]).reshape(shape)
    return array.astype(np.float32) if dtype.startswith("F") else array


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """torch.save's zip format, with an unpickler that knows tensors and nothing else."""
    archive = zipfile.ZipFile(path)
    (pkl,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
    kinds = {
        "HalfStorage": "F16",
        "FloatStorage": "F32",
        "BFloat16Storage": "BF16",
        "LongStorage": "I64",
        "BoolStorage": "BOOL",
    }

    def rebuild(storage: tuple[str, str], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
        flat = decode(archive.read(pkl.replace("data.pkl", f"data/{storage[1]}")), storage[0], -1)
        contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        if offset or stride != contiguous or flat.size != math.prod(shape):
            raise AssertionError("only whole contiguous tensors are expected")
        return flat.reshape(shape)

    class TensorUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name in kinds:
                return kinds[name]
            known = {"_rebuild_tensor_v2": rebuild, "OrderedDict": dict}
            return known[name]

        def persistent_load(self, pid: Any) -> tuple[str, str]:
            return pid[1], pid[2]

    tensors: dict[str, np.ndarray] = TensorUnpickler(io.BytesIO(archive.read(pkl))).load()
    return tensors
