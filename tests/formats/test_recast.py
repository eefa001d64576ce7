"""Models recast to other weight types: exact upwards, made once, and one line where they cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refspec.errors import CheckpointError, UsageError
from refspec.gguf import recast as module
from refspec.gguf.io import TensorOut, read_gguf_header, read_tensor, write_gguf
from refspec.gguf.recast import is_f32, recast, write_as


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A file with an F16 matrix, an F32 vector and a d2t table."""
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": ("f16", rng.standard_normal((6, 64)).astype(np.float32)),
        "a_norm.weight": ("f32", rng.standard_normal(64).astype(np.float32)),
        "d2t": ("i64", np.arange(9)),
    }
    tensors = [TensorOut(n, a.shape, kind, lambda a=a: a) for n, (kind, a) in arrays.items()]
    return write_gguf(
        tmp_path / "half.gguf",
        "llama",
        {"general.name": "half", "general.file_type": 1, "llama.block_count": 3},
        tensors,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_f16_weights_become_f32_exactly_and_nothing_else_changes(half: Path) -> None:
    out = recast(half, "f32")
    before, after = read_gguf_header(half), read_gguf_header(out)
    assert not is_f32(half) and is_f32(out)
    assert (after.arch, after.metadata["general.name"], after.metadata["llama.block_count"]) == ("llama", "half", 3)
    assert list(after.tensors) == list(before.tensors)
    for name in before.tensors:
        np.testing.assert_array_equal(read_tensor(after, name), read_tensor(before, name))
    assert after.tensors["d2t"].type == "I64"


def test_a_second_call_takes_the_file_that_is_there_and_another_content_another_file(half: Path) -> None:
    out = recast(half, "f32")
    made = out.stat().st_mtime_ns
    assert recast(half, "f32") == out and out.stat().st_mtime_ns == made
    info = read_gguf_header(half)
    changed = bytearray(half.read_bytes())
    changed[info.tensors["a.weight"].offset] ^= 1
    half.write_bytes(changed)
    assert recast(half, "f32") != out


def test_a_write_that_fails_leaves_nothing_behind(half: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.io, "read_tensor", no_space)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        recast(half, "f32")
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_what_cannot_be_recast_is_one_line(half: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_bytes(b"a file where the directory should be")
    with pytest.raises(UsageError, match="REFSPEC_CACHE") as caught:
        recast(half, "f32")
    assert "\n" not in str(caught.value)
    cache.unlink()
    monkeypatch.setattr(module, "LIMIT", 100)
    with pytest.raises(UsageError, match="llama-quantize"):
        recast(half, "f32")
    with pytest.raises(CheckpointError, match="no such file"):
        recast(half.with_name("gone.gguf"), "f32")


def test_a_file_is_written_where_the_user_says_and_says_what_it_is(half: Path, tmp_path: Path) -> None:
    info = read_gguf_header(half)
    sizes: list[int] = []
    out = write_as(info, tmp_path / "small.gguf", "q8_0", lambda nbytes, total: sizes.append(nbytes))
    made = read_gguf_header(out)
    assert (made.tensors["a.weight"].type, made.tensors["a_norm.weight"].type, made.tensors["d2t"].type) == (
        "Q8_0",
        "F32",
        "I64",
    )
    assert sum(sizes) == sum(t.nbytes for t in made.tensors.values())
    assert (info.metadata["general.file_type"], made.metadata["general.file_type"]) == (1, 7)
    error = np.abs(read_tensor(made, "a.weight") - read_tensor(info, "a.weight"))
    # half a step of the largest block, and its scale in F16
    assert 0 < error.max() <= np.abs(read_tensor(info, "a.weight")).max() / 127
    with pytest.raises(UsageError, match="q9_9"):
        write_as(info, tmp_path / "other.gguf", "q9_9")
    assert not (tmp_path / "other.gguf").exists()
