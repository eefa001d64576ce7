"""Read safetensors with json and NumPy only, and the JSON files beside them.

The file is mapped, a tensor is copied (and bfloat16 widened to float32) only when it is loaded. Nothing in the header
is trusted: ranges, shapes and types are checked against the size of the file before use.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refspec.errors import CheckpointError
from refspec.gguf.header import LFS_POINTER, FilePath, lfs_pointer
from refspec.gguf.lazy import Lazy

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk; `load()` gives float32 for every float type, the stored type otherwise."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    strides: tuple[int, ...] | None = None  # in elements; None where rows follow each other

    def load(self) -> np.ndarray:
        """Copy the tensor into memory."""
        if not self.shape:
            return self._widen(self._read(0, 1, DTYPES[self.dtype])).reshape(())
        return self.rows(0, self.shape[0])

    def rows(self, first: int, last: int) -> np.ndarray:
        """Copy rows first..last-1 into memory, [last - first, ...]."""
        return self._widen(self._rows(first, last, DTYPES[self.dtype]))

    def lazy(self) -> Lazy:
        """The tensor, to be read a few rows at a time."""
        if self.dtype not in ("F16", "BF16"):
            return Lazy(self.shape, self.rows)
        bits = lambda first, last: self._rows(first, last, np.dtype("<u2"))  # noqa: E731
        return Lazy(self.shape, self.rows, bits=bits, bits_type=self.dtype.lower())

    def _rows(self, first: int, last: int, kind: np.dtype[Any]) -> np.ndarray:
        shape = (last - first, *self.shape[1:])
        if self.strides is None:
            size = int(np.prod(self.shape[1:], dtype=np.int64))
            return self._read(first * size, (last - first) * size, kind).reshape(shape)
        spans = [(n - 1) * s for n, s in zip(shape, self.strides, strict=True)]
        flat = self._read(first * self.strides[0], sum(spans) + 1 if all(shape) else 0, kind)
        steps = [s * flat.itemsize for s in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False))

    def _read(self, begin: int, count: int, kind: np.dtype[Any]) -> np.ndarray:
        """`count` elements from element `begin` on, as they are stored."""
        raw = np.fromfile(self.path, kind, count, offset=self.offset + begin * kind.itemsize)
        if len(raw) != count:
            raise CheckpointError(f"{self.path}: truncated inside tensor {self.name!r}; get the file again")
        return raw

    def _widen(self, raw: np.ndarray) -> np.ndarray:
        if self.dtype == "BF16":  # the upper half of a float32
            wide = raw.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32)
        return raw.astype(np.float32, copy=False) if self.dtype.startswith("F") else raw


Stored = Mapping[str, StoredTensor]  # the tensors of a checkpoint, by name
Config = Mapping[str, Any]  # a config.json


def read_safetensors(path: FilePath) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, not yet loaded; `CheckpointError` if it is damaged."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(8)
            if head == LFS_POINTER[:8]:
                raise CheckpointError(lfs_pointer(path))
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= size - 8:
                raise CheckpointError(f"{path}: not a safetensors file, or truncated: header {length} of {size} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the safetensors header is not JSON; the file is damaged") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not an object; the file is damaged")
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _stored(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = [*shape, begin, end]
        if not all(type(n) is int and n >= 0 for n in whole):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: tensor {name!r} is described by {str(entry)[:80]!r}; file damaged") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has type {dtype!r}; refspec reads {', '.join(DTYPES)}")
    nbytes = DTYPES[dtype].itemsize * math.prod(shape)
    if end - begin != nbytes or start + end > size:
        raise CheckpointError(f"{path}: tensor {name!r} of shape {shape} does not fit bytes {begin}..{end}; truncated?")
    return StoredTensor(name, dtype, tuple(shape), path, start + begin)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from `path`; `CheckpointError` if it is missing or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a checkpoint directory that has it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, expected a JSON object")
    return value


def whole_number(section: Config, key: str, where: str, default: Any = None) -> int:
    """A size in config.json, `default` where it is absent; `CheckpointError` unless it is a whole number above 0."""
    value = section.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise CheckpointError(f"{where}: {key} = {str(value)[:40]!r} must be a whole number of at least 1")
    return value
