"""The safetensors reader agrees with the library and refuses whatever is damaged."""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_toys import write_safetensors

from refspec.convert.files import read_tensors
from refspec.convert.safetensors_io import read_json, read_safetensors
from refspec.errors import CheckpointError


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    return {
        "f": x,
        "half": x.astype(np.float16),
        "i": np.arange(-3, 4),
        "b": np.array([True, False]),
        "s": np.array(2.5),
    }


def sound() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_safetensors(Path(folder) / "a.safetensors", arrays()).read_bytes()


SOUND = sound()


def load(path: Path) -> dict[str, np.ndarray]:
    return {name: t.load() for name, t in read_safetensors(path).items()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = load(write_safetensors(tmp_path / "a.safetensors", arrays()))
    assert read.keys() == arrays().keys()
    assert all(np.array_equal(read[k], a) for k, a in arrays().items())
    assert read["half"].dtype == np.float32 and read["i"].dtype == np.int64


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 8), ("F16", 11), ("F32", 24)])
def test_narrow_types_round_to_nearest_once(tmp_path: Path, dtype: str, bits: int) -> None:
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    once = load(write_safetensors(tmp_path / "a.safetensors", {"x": x}, dtype))["x"]
    twice = load(write_safetensors(tmp_path / "b.safetensors", {"x": once}, dtype))["x"]
    assert np.array_equal(once, twice)
    assert (np.abs(once - x) <= np.abs(x) * 2.0**-bits + 2e-8).all()


def test_bfloat16_edge_values(tmp_path: Path) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875, 3.4e38], np.float32)  # two exact ties
    y = load(write_safetensors(tmp_path / "a.safetensors", {"x": x}, "BF16"))["x"]
    assert y[:4].tolist() == [0.0, 0.0, np.inf, -np.inf] and np.isnan(y[4])
    assert y[5:7].tolist() == [1.0, 1.015625] and np.isinf(y[7])


def test_the_library_reads_what_we_write_and_the_reverse(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "a.safetensors", arrays())
    theirs = library.load_file(str(tmp_path / "a.safetensors"))
    assert all(np.array_equal(theirs[k], a) and theirs[k].dtype == a.dtype for k, a in arrays().items())
    library.save_file(arrays(), str(tmp_path / "b.safetensors"), metadata={"format": "pt"})
    ours = load(tmp_path / "b.safetensors")
    assert all(np.array_equal(ours[k], a) for k, a in arrays().items())


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = write_safetensors(tmp_path / "a.safetensors", arrays()).read_bytes()
    for n in range(len(data)):
        (tmp_path / "a.safetensors").write_bytes(data[:n])
        with pytest.raises(CheckpointError):
            load(tmp_path / "a.safetensors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for at, value in edits:
        data[at % len(data)] = value
    (tmp_path / "a.safetensors").write_bytes(data)
    try:
        load(tmp_path / "a.safetensors")
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]},
        {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2]},
        7,
    ],
)
def test_hostile_entries_are_refused(tmp_path: Path, entry: object) -> None:
    head = json.dumps({"x": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    with pytest.raises(CheckpointError, match="'x'"):
        read_safetensors(tmp_path / "a.safetensors")


def test_shards_are_joined_and_checked(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one.safetensors", {"a": np.ones(2, np.float32)})
    write_safetensors(tmp_path / "two.safetensors", {"b": np.zeros(3, np.float32)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert {k: t.shape for k, t in read_tensors(tmp_path).items()} == {"a": (2,), "b": (3,)}
    for bad in ({"a": "two.safetensors"}, {"a": "../one.safetensors"}, {"a": "three.safetensors"}, [1]):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path)


def test_directories_that_hold_no_checkpoint_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="neither of"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        read_tensors(tmp_path / "pytorch_model.bin")
    for text, words in (("[1]", "JSON object"), ("{", "not valid JSON"), ("[" * 100000, "not valid JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            read_json(tmp_path / "config.json")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 42\n"
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(CheckpointError, match=r"git-lfs pointer.*git lfs pull"):
            read_tensors(tmp_path)
        (tmp_path / name).unlink()
