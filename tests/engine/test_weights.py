"""How a model's weights are held is decided before it is opened, from its header and what works here."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_gguf_header
from refspec.llama import matmul_hook, weights
from refspec.llama.model import Weights


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """What works here, as the test sets it."""
    state = {"kernels": True, "repacking": True, "every type": True}
    taken = matmul_hook.matrices
    monkeypatch.setattr(weights, "why_not", lambda: None if state["kernels"] else "they do not")
    monkeypatch.setattr(weights, "repacking_works", lambda: state["repacking"])
    monkeypatch.setattr(matmul_hook, "matrices", lambda info: taken(info)[: None if state["every type"] else -1])
    return state


@pytest.fixture
def quantized(tmp_path: Path) -> GgufInfo:
    info = read_gguf_header(tiny.target(tmp_path / "target.gguf", quantize="Q8_0"))
    if not matmul_hook.matrices(info):
        pytest.skip("refspec's kernels are not built, or not for this processor")
    return info


def test_one_of_both_repacks_the_weights(quantized: GgufInfo, works: dict[str, bool]) -> None:
    nbytes = matmul_hook.packed_bytes(quantized)
    assert weights.choose(quantized) == Weights(False, nbytes) and nbytes > 0
    assert weights.choose(quantized, repack=False) == Weights(False, nbytes)
    assert weights.choose(quantized, panels=False) == Weights(True, 0)
    assert weights.choose(quantized, panels=False, repack=False) == Weights(False, 0)
    assert weights.choose(quantized, n_gpu_layers=1) == Weights(True, 0)
    works["kernels"] = False
    assert weights.choose(quantized) == Weights(True, 0)


def test_llama_cpp_repacks_what_the_kernels_leave(quantized: GgufInfo, works: dict[str, bool]) -> None:
    works["every type"] = False
    held = weights.choose(quantized)
    assert held.repack and held.packed > 0


def test_where_repacking_crashes_nothing_is_repacked_and_the_user_is_told(
    quantized: GgufInfo, works: dict[str, bool], tmp_path: Path
) -> None:
    works |= {"kernels": False, "repacking": False}
    held = weights.choose(quantized)
    assert (held.repack, held.packed) == (False, 0) and "target.gguf stay as stored" in (held.note or "")
    unquantized = read_gguf_header(tiny.target(tmp_path / "f32.gguf"))
    assert weights.choose(unquantized) == Weights(False, 0)  # nothing there that llama.cpp repacks, so no note


def test_a_note_names_the_share_of_the_file_and_what_stays_with_llama_cpp(
    quantized: GgufInfo, works: dict[str, bool]
) -> None:
    packed = matmul_hook.PackedMatrices(0, matmul_hook.packed_bytes(quantized))
    assert packed.note(quantized).startswith("target.gguf: fast kernels (") and packed.note(quantized).endswith(" MB")
    works["every type"] = False
    assert packed.note(quantized).endswith("; Q8_0 stays with llama.cpp, so checking several guesses is slow")
