"""GGUF files: what is written is read, headers are read without trust, and nothing half-written is left."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refspec.errors import CheckpointError
from refspec.gguf.io import TensorOut, Typed, copy_metadata, read_gguf_header, read_tensor, write_gguf

VALUES: dict[str, Any] = {
    "a.text": "naïve", "a.empty": "", "a.yes": True, "a.size": 7, "a.eps": 1.5, "a.words": ["x", "yz", ""],
    "a.ids": [3, -4], "a.floats": [0.25, -1.0],
}  # fmt: skip


def tiny(path: Path) -> Path:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 32)).astype(np.float32), np.arange(5)
    tensors = [
        TensorOut("m.weight", (4, 32), "q8_0", lambda: a),
        TensorOut("ids", (5,), "i64", lambda: b),
    ]
    return write_gguf(path, "toy", VALUES, tensors)


def one_line(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        info = read_gguf_header(path)
        for name in info.tensors:
            read_tensor(info, name)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = read_gguf_header(tiny(tmp_path / "t.gguf"))
    assert info.metadata == VALUES | {"general.architecture": "toy"}
    assert info.tensors["m.weight"].shape == (4, 32) and info.tensors["m.weight"].type == "Q8_0"
    assert read_tensor(info, "ids").tolist() == [0, 1, 2, 3, 4]


def test_copied_metadata_keeps_its_types_and_bytes(tmp_path: Path) -> None:
    odd = {"a.u8": Typed([1, 255], 9, 0), "a.raw": Typed(["\udcff\udc80", "ok"], 9, 8), "a.f64": Typed(0.1, 12)}
    first = read_gguf_header(write_gguf(tmp_path / "a.gguf", "toy", odd, []))
    second = read_gguf_header(write_gguf(tmp_path / "b.gguf", "toy", copy_metadata(first, "a."), []))
    assert (second.metadata, second.value_types) == (first.metadata, first.value_types)
    assert second.metadata["a.raw"][0].encode("utf-8", "surrogateescape") == b"\xff\x80"


def test_every_truncation_is_an_error_in_one_line(tmp_path: Path) -> None:
    data = tiny(tmp_path / "t.gguf").read_bytes()
    end = 64 + read_gguf_header(tmp_path / "t.gguf").tensors["ids"].offset  # padding behind the data may be missing
    cut = tmp_path / "cut.gguf"
    for n in range(min(end, len(data)) - 32):
        cut.write_bytes(data[:n])
        one_line(cut)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny(tmp_path_factory.mktemp("sound") / "t.gguf").read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, sound: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(sound)
    for at, value in edits:
        data[at % len(data)] = value
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    try:
        info = read_gguf_header(bad)
        for name in info.tensors:
            read_tensor(info, name)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("at", [8, 16, 24], ids=["tensors", "values", "key length"])
@pytest.mark.parametrize("huge", [2**63, 2**64 - 1, 2**32, 10**7])
def test_hostile_counts_allocate_nothing(tmp_path: Path, at: int, huge: int) -> None:
    data = bytearray(tiny(tmp_path / "t.gguf").read_bytes())
    data[at : at + 8] = struct.pack("<Q", huge)
    (tmp_path / "t.gguf").write_bytes(data)
    one_line(tmp_path / "t.gguf")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert "no such file" in one_line(path)
    path.write_bytes(b"")
    assert "0 bytes" in one_line(path)
    path.write_bytes(b"PK\x03\x04" + bytes(60))
    assert "not a GGUF" in one_line(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(60))
    assert "big-endian" in one_line(path)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(60))
    assert "version 1" in one_line(path)
    assert "a folder, expected a GGUF file" in one_line(tmp_path)


def test_values_that_are_not_finite_are_refused_both_ways(tmp_path: Path) -> None:
    bad = np.full((2, 32), np.inf, np.float32)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        write_gguf(tmp_path / "t.gguf", "toy", {}, [TensorOut("w", (2, 32), "f32", lambda: bad)])
    assert list(tmp_path.iterdir()) == []
    write_gguf(tmp_path / "t.gguf", "toy", {}, [TensorOut("w", (2, 32), "f32", lambda: np.ones((2, 32)))])
    data = (tmp_path / "t.gguf").read_bytes()
    (tmp_path / "t.gguf").write_bytes(data[:-4] + struct.pack("<f", np.nan))
    assert "'w'" in one_line(tmp_path / "t.gguf")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tiny(tmp_path / "t.gguf")
    before = path.read_bytes()

    def interrupted() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, "toy", {}, [TensorOut("w", (2, 32), "f32", interrupted)])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t.gguf"]


def test_what_is_not_a_gguf_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    pointer = tmp_path / "model.gguf"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n")
    with pytest.raises(CheckpointError, match=r"git-lfs pointer.*`git lfs pull`"):
        read_gguf_header(pointer)
    with pytest.raises(CheckpointError, match="a folder, expected a GGUF file"):
        read_gguf_header(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="checkpoint folder; run `refspec convert`"):
        read_gguf_header(tmp_path)
