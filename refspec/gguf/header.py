"""Read the header of a GGUF file without trusting a single number in it.

Every length is checked against the bytes that are left before anything is allocated, so a truncated, random or hostile
file ends in a one-line `CheckpointError`. Format: GGUF version 2 and 3, little-endian. Only the standard library is
used; tensor data and tensor types are in `io.py`.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refspec.errors import CheckpointError

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
# GGUF value type -> (struct letter, bytes)
SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4),
    6: ("f", 4), 7: ("?", 1), 10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
_U64 = struct.Struct("<Q")
MAX_DIMS = 4  # ggml tensors never have more
LFS_POINTER = b"version https://git-lfs"  # how the small file begins that git-lfs keeps in place of a large one


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header declares it; `shape` in NumPy order, `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufInfo:
    """The header of one GGUF file: `metadata` as Python values, `tensors` by name, shapes in NumPy order."""

    path: Path
    arch: str
    metadata: dict[str, Any]
    value_types: dict[str, tuple[int, int | None]]
    tensors: dict[str, TensorInfo]
    file_size: int

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """The metadata value of `key`; `CheckpointError` if it is absent or not of `kind`."""
        value = self.metadata.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "is missing" if value is None else f"is {str(value)[:40]!r}, of the wrong type"
            raise CheckpointError(f"{self.path}: metadata key {key!r} {found}; convert the model again")
        return value

    def optional(self, key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The metadata value of `key`, `default` if it is absent; `CheckpointError` if it is not of `kind`."""
        return self.need(key, kind) if key in self.metadata else default


FilePath = str | os.PathLike[str]
GgufSource = FilePath | GgufInfo  # a file, or its header where it has been read already


@dataclass(frozen=True)
class RawHeader:
    """What the header says, before tensor types are resolved: `tensors` are (name, shape, type id, relative offset)."""

    metadata: dict[str, Any]
    value_types: dict[str, tuple[int, int | None]]
    tensors: list[tuple[str, tuple[int, ...], int, int]]
    data_offset: int
    file_size: int


class _Cursor:
    """A position in the mapped file; every read says what it wanted if the file is too short."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def fail(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why} at byte {self.at}; the file is truncated or damaged, get it again")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise self.fail(f"{what} needs {count} bytes but only {self.size - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, type_id: int, what: str) -> Any:
        letter, size = SCALARS[type_id]
        return struct.unpack("<" + letter, self.take(size, what))[0]

    def u32(self, what: str) -> int:
        return int(self.scalar(4, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(10, what))

    def name(self, what: str) -> str:
        raw = self.take(self.u64(f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def text(self, what: str) -> str:
        # Values, tokens above all, need not be UTF-8; surrogates keep the bytes for a later copy.
        return self.take(self.u64(f"the length of {what}"), what).decode("utf-8", "surrogateescape")

    def texts(self, n: int, what: str) -> list[str]:
        """n strings: `text` in one loop, because a vocabulary has hundreds of thousands of them."""
        out: list[bytes] = []
        data, at, room, length_at = self.data, self.at, self.size, _U64.unpack_from
        append = out.append
        for _ in range(n):
            start = at + 8
            if start > room:
                break
            at = start + length_at(data, at)[0]
            if at > room:
                break
            append(data[start:at])
        if len(out) < n:  # again, one by one, to say where the file ends
            return [self.text(what) for _ in range(n)]
        self.at = at
        return [raw.decode("utf-8", "surrogateescape") for raw in out]

    def count(self, smallest: int, what: str) -> int:
        """A number of items, refused when even the smallest items could not fit in the rest of the file."""
        n = self.u64(what)
        if n * smallest > self.size - self.at:
            raise self.fail(f"{what} says {n}, more than the file can hold")
        return n

    def value(self, key: str) -> tuple[Any, tuple[int, int | None]]:
        what = f"the value of {key!r}"
        type_id = self.u32(what)
        if type_id in SCALARS:
            return self.scalar(type_id, what), (type_id, None)
        if type_id == STRING:
            return self.text(what), (type_id, None)
        if type_id != ARRAY:
            raise self.fail(f"{what} has unknown type {type_id}")
        item = self.u32(what)
        if item == STRING:
            return self.texts(self.count(8, f"the array length of {key!r}"), what), (ARRAY, item)
        if item not in SCALARS:
            raise self.fail(f"{what} is an array of unsupported type {item}")
        letter, size = SCALARS[item]
        n = self.count(size, f"the array length of {key!r}")
        return list(struct.unpack(f"<{n}{letter}", self.take(n * size, what))), (ARRAY, item)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.name("a tensor name")
        n_dims = self.u32(f"the rank of tensor {name!r}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self.fail(f"tensor {name!r} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
        dims = [self.u64(f"the shape of tensor {name!r}") for _ in range(n_dims)]
        if 0 in dims:
            raise self.fail(f"tensor {name!r} has the empty shape {dims}")
        return name, tuple(reversed(dims)), self.u32(f"the type of {name!r}"), self.u64(f"the offset of {name!r}")


def _parse(cursor: _Cursor) -> RawHeader:
    path = cursor.path
    magic = cursor.data[:4]
    if cursor.data[: len(LFS_POINTER)] == LFS_POINTER:
        raise CheckpointError(lfs_pointer(path))
    if magic != MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file (starts with {magic!r}, expected {MAGIC!r})")
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        swapped = struct.unpack(">I", struct.pack("<I", version))[0]
        why = "big-endian" if swapped in (2, 3) else f"version {version}"
        raise CheckpointError(f"{path}: {why} GGUF is not supported; convert the model to GGUF version 3 again")
    n_tensors = cursor.count(8 + 4 + 8 + 4 + 8, "the number of tensors")
    n_values = cursor.count(8 + 4 + 1, "the number of metadata values")
    metadata: dict[str, Any] = {}
    value_types: dict[str, tuple[int, int | None]] = {}
    for _ in range(n_values):
        key = cursor.name("a metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} appears twice")
        metadata[key], value_types[key] = cursor.value(key)
    tensors = [cursor.tensor() for _ in range(n_tensors)]
    if len({t[0] for t in tensors}) != n_tensors:
        raise cursor.fail("a tensor name appears twice")
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {str(alignment)[:40]!r}, expected a power of two")
    data_offset = -(-cursor.at // alignment) * alignment
    return RawHeader(metadata, value_types, tensors, data_offset, cursor.size)


def lfs_pointer(path: Path) -> str:
    """What to say of a file that begins with LFS_POINTER."""
    return f"{path}: a git-lfs pointer, not the file itself; get it with `git lfs pull`"


def parse_header(path: FilePath) -> RawHeader:
    """Parse the header of the GGUF file at `path`; `CheckpointError` if it is missing, not GGUF or damaged."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise CheckpointError(f"{path}: not a GGUF file ({size} bytes, the smallest header is 24)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Cursor(data, path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        if (path / "config.json").is_file():
            raise CheckpointError(f"{path}: a checkpoint folder; run `refspec convert` on it first") from None
        raise CheckpointError(f"{path}: a folder, expected a GGUF file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise CheckpointError(f"{path}: the header does not fit in memory") from None
