"""A conversion holds a few blocks in memory, not matrices, and an interrupted one leaves nothing behind."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights
from layout_toys import stored_weights, write
from safetensors_toys import write_safetensors

from refspec.convert import convert_drafter
from refspec.errors import CheckpointError
from refspec.gguf.io import interleave_rows, read_drafter

SWITCHES = {"feature_norm": "none", "feedback": "pre_norm", "capture_layers": (2, 3, 5)}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
def test_memory_does_not_grow_with_the_matrices(tmp_path: Path, dtype: str, outtype: str) -> None:
    write(tmp_path / "c", "SpecForge", vocab_size=20000, hidden_size=256)  # the embedding is 20 MB as float32
    c = drafter_config(**SWITCHES, vocab_size=20000, hidden_size=256)
    w = drafter_weights(c)
    write_safetensors(tmp_path / "c" / "model.safetensors", stored_weights(c, w, "midlayer."), dtype)
    tracemalloc.start()
    convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", outtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
    _, read = read_drafter(tmp_path / "d.gguf")
    tolerance = (
        max({"BF16": 2**-8, "F16": 2**-10, "F32": 0.0}[dtype], 0)
        + {"f32": 0.0, "f16": 2**-10, "bf16": 2**-8, "q8_0": 2**-6}[outtype]
    )
    for name in ("token_embd", "attn_q", "fc"):
        expected = interleave_rows(w[name], c.head_dim) if name == "attn_q" else w[name]
        assert np.abs(read[name] - expected).max() <= tolerance * np.abs(expected).max(), name


def test_an_interruption_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path / "c", "SpecForge")
    seen: list[int] = []

    def interrupt(nbytes: int, total: int) -> None:
        seen.append(nbytes)
        assert sum(seen) <= total
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", progress=interrupt)
    assert len(seen) == 4 and [p.name for p in tmp_path.iterdir()] == ["c"]


def test_progress_adds_up_to_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "c", "SpecForge")
    seen: list[tuple[int, int]] = []
    convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", progress=lambda n, total: seen.append((n, total)))
    assert sum(n for n, _ in seen) == seen[0][1] == seen[-1][1]


@pytest.mark.parametrize(
    ("dtype", "outtype"), [("BF16", "bf16"), ("BF16", "f16"), ("F16", "f16"), ("F32", "f32"), ("F32", "bf16")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e5])
def test_values_no_type_can_hold_are_refused(tmp_path: Path, dtype: str, outtype: str, value: float) -> None:
    c = write(tmp_path / "c", "SpecForge")
    w = drafter_weights(c)
    w["ffn_up"][3, 5] = value
    with np.errstate(over="ignore"):
        write_safetensors(tmp_path / "c" / "model.safetensors", stored_weights(c, w, "midlayer."), dtype)
    if value == 1e5 and outtype != "f16" and dtype != "F16":
        convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", outtype)
        return
    with pytest.raises(CheckpointError, match="ffn_up"):
        convert_drafter(tmp_path / "c", None, tmp_path / "d.gguf", outtype)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
