"""The inflated target has the same logits, hidden states and drafter, and more parameters; what cannot be inflated."""

from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from lab.inflate import KEY, inflate, parameters
from refspec.errors import UsageError
from refspec.gguf.io import read_gguf_header
from refspec.llama.target import LlamaTarget

STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)
IDS = np.random.default_rng(6).integers(3, tiny.V, 24).astype(np.int32)


def seen(path):
    target = LlamaTarget(path, n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    target.decode(IDS, logits="all")
    out = np.array([target.logits(i) for i in range(len(IDS))]), target.features().copy()
    target.close()
    return out


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
@pytest.mark.parametrize("quantize", ["F32", "Q8_0"])
def test_the_inflated_model_computes_the_same_function(tmp_path, arch, quantize):
    small = tiny.target(tmp_path / "small.gguf", arch, quantize=quantize)
    made = inflate(small, tmp_path / "large.gguf", params=2_000_000)
    info = read_gguf_header(made["file"])
    total = sum(int(np.prod(t.shape)) for t in info.tensors.values())
    assert made["params"] == total and 0.8 * 2_000_000 < total <= 2_000_000
    assert (made["layers"], info.metadata[f"{arch}.block_count"]) == (2 * tiny.N_LAYER, 2 * tiny.N_LAYER)
    assert "same function" in info.metadata[KEY] and "inflated" in info.metadata["general.name"]
    for before, after in zip(seen(small), seen(made["file"]), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 if quantize == "F32" else 2e-3)


def test_a_drafter_runs_on_the_inflated_target_and_accepts_as_much(tmp_path):
    small, drafter = tiny.target(tmp_path / "small.gguf"), tiny.drafter(tmp_path / "drafter.gguf")
    large = inflate(small, tmp_path / "large.gguf", params=1_000_000, layers=7)["file"]
    runs = []
    for path in (small, large):
        with refspec.load(path, drafter, threads=1, reproducible="f32", n_ctx=96, draft_max=3) as session:
            run = session.generate(tokens=IDS.tolist(), max_tokens=50)
            list(run)
            runs.append((run.tokens, run.statistics.judged, run.statistics.accepted))
    assert runs[0] == runs[1]


def test_numbers_of_parameters_are_read_as_people_write_them():
    assert [parameters(t) for t in ("300M", "1B", "1.5e8", "12k")] == [300_000_000, 10**9, 150_000_000, 12_000]
    for text in ("", "x", "-5M", "1.2.3M", "0"):
        with pytest.raises(UsageError, match="--params"):
            parameters(text)


def test_what_cannot_be_inflated_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be inflated"):
        inflate(tiny.target(tmp_path / "hybrid.gguf", "lfm2"), tmp_path / "x.gguf", params=10**6)
    with pytest.raises(UsageError, match="--layers 2"):
        inflate(tiny.target(tmp_path / "t.gguf"), tmp_path / "x.gguf", params=10**6, layers=2)
    assert not (tmp_path / "x.gguf").exists()
