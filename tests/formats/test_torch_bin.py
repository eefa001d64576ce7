"""torch.save files are read without PyTorch and without executing anything;

whatever else a pickle holds is refused by name.
"""

import builtins
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refspec.convert.files import read_tensors
from refspec.convert.torch_bin import read_torch_bin
from refspec.errors import CheckpointError

ORACLE = Path(__file__).parent.parent / "vectors" / "oracles" / "safeai_base" / "checkpoint" / "pytorch_model.bin"


class Attack:
    """Unpickled, it would leave a file behind."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def write_zip(
    path: Path, pkl: bytes, data: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pkl)
        for key, raw in (data or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def one_line(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        for tensor in read_torch_bin(path).values():
            tensor.load()
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


ATTACKS = {
    "os.system": (os.system, "touch MARK"),
    "posix.system": (os.system, "touch MARK"),
    "builtins.eval": (builtins.eval, "open('MARK', 'w')"),
    "builtins.exec": (builtins.exec, "open('MARK', 'w')"),
    "builtins.open": (builtins.open, "MARK", "w"),
    "builtins.getattr": (getattr, "x", "upper"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_pickle_with_code_in_it_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    pkl = pickle.dumps({"fc.weight": Attack(*ATTACKS[name])}, protocol)
    message = one_line(write_zip(tmp_path / "pytorch_model.bin", pkl))
    assert ATTACKS[name][0].__name__ in message and "nothing was executed" in message
    assert not (tmp_path / "MARK").exists()
    (tmp_path / "legacy.bin").write_bytes(pickle.dumps(Attack(*ATTACKS[name]), 2))
    one_line(tmp_path / "legacy.bin")
    assert not (tmp_path / "MARK").exists()


def test_the_oracle_reads_and_stays_on_disk() -> None:
    tensors = read_torch_bin(ORACLE)
    assert tensors["fc.weight"].shape == (64, 192) and tensors["fc.weight"].dtype == "F16"
    whole = tensors["fc.weight"].load()
    assert np.array_equal(tensors["fc.weight"].rows(5, 9), whole[5:9])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_torch_saves_is_what_is_read(tmp_path: Path, legacy: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch writes these files")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = OrderedDict(
        half=base.half(), brain=base.bfloat16(), double=base.double(), transposed=base.t(), part=base[1:3, 2:5],
        shared=base, whole=torch.arange(5), flags=torch.tensor([True, False]), scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3), parameter=torch.nn.Parameter(base + 1), bytes=torch.arange(3, dtype=torch.uint8),
    )  # fmt: skip
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    read = read_tensors(tmp_path)
    assert list(read) == list(state)
    for name, tensor in state.items():
        expected = tensor.detach()
        expected = expected.float().numpy() if expected.is_floating_point() else expected.numpy()
        assert read[name].shape == expected.shape and np.array_equal(read[name].load(), expected), name
    assert np.array_equal(read["transposed"].rows(2, 4), base.t().numpy()[2:4])
    torch.save({"state_dict": dict(state)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert list(read_tensors(tmp_path)) == list(state)


def test_entries_that_are_not_tensors_are_named(tmp_path: Path) -> None:
    assert "'epoch'" in one_line(write_zip(tmp_path / "a.bin", pickle.dumps({"epoch": 3})))
    assert "list" in one_line(write_zip(tmp_path / "b.bin", pickle.dumps([1])))
    (tmp_path / "c.bin").write_bytes(pickle.dumps({"a": 1}))
    assert "not one that torch.save wrote" in one_line(tmp_path / "c.bin")
    (tmp_path / "d.bin").write_bytes(b"x" * 64)
    assert "safetensors" in one_line(tmp_path / "d.bin")


def test_compressed_missing_and_oversized_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(ORACLE) as archive:
        names = archive.namelist()
        (pkl,) = (archive.read(n) for n in names if n.endswith("data.pkl"))
        data = {n.split("/data/")[1]: archive.read(n) for n in names if "/data/" in n}
    good = write_zip(tmp_path / "good.bin", pkl, data)
    assert read_torch_bin(good).keys() == read_torch_bin(ORACLE).keys()
    assert "compressed" in one_line(write_zip(tmp_path / "a.bin", pkl, data, zipfile.ZIP_DEFLATED))
    assert "missing" in one_line(write_zip(tmp_path / "b.bin", pkl, {k: v for k, v in data.items() if k != "0"}))
    assert "does not fit" in one_line(write_zip(tmp_path / "c.bin", pkl, data | {"0": b"\0\0"}))


def nested(levels: int) -> bytes:
    """A tuple of two references to itself, `levels` deep: 2**levels elements for whoever walks it."""
    body = b"\x80\x02)q\x00"
    for i in range(levels):
        body += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return body


@pytest.mark.parametrize(
    "pkl",
    [
        b"\x80\x02}" + nested(80)[2:] + b"K\x01s.",  # as the key of a dictionary: hashing it takes for ever
        nested(80) + nested(80)[2:] + b"\x93.",  # as the name of a global
        b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",  # a string of 4 EiB
        b"\x80\x02K\x01r\xff\xff\xff\xff.",  # memo slot 4294967295
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"\x85" * 10 + b".",
        b"\x80\x02}]s.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02ccollections\nOrderedDict\n)R}b.",
        b"\x80\x02h\x05.",
        b"",
    ],
)
def test_hostile_pickles_are_damaged_files(tmp_path: Path, pkl: bytes) -> None:
    one_line(write_zip(tmp_path / "pytorch_model.bin", pkl))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_refused_or_read_never_worse(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(ORACLE.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:  # most of the file is weights; what matters is at both ends
            span = data.draw(st.sampled_from([min(4000, len(raw)), len(raw)]))
            raw[-data.draw(st.integers(1, span))] = data.draw(st.integers(0, 255))
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(raw)
    try:
        for tensor in read_torch_bin(path).values():
            assert tensor.load().shape == tensor.shape
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("offset", [2**63 + 7, 2**40])
def test_an_entry_that_begins_outside_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(ORACLE.read_bytes())
    listed = zipfile.ZipFile.infolist

    def moved(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        entries = listed(archive)
        for entry in entries:
            entry.header_offset = offset  # as a damaged zip64 record says it
        return entries

    monkeypatch.setattr(zipfile.ZipFile, "infolist", moved)
    with pytest.raises(CheckpointError, match=f"begins at byte {offset}"):
        read_torch_bin(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_as_a_pickle_are_refused(tmp_path: Path, body: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body)
    (tmp_path / "p.bin").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError):
        read_torch_bin(tmp_path / "p.bin")
