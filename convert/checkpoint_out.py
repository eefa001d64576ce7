"""Write a checkpoint directory, safetensors or PyTorch's zip-and-pickle `.bin`, one tensor in memory at a time.

The pickle written here names three things (an ordered dictionary, a tensor of a storage, the storage) and nothing else,
so that `torch.load(weights_only=True)` reads it. Format: PyTorch serialization, version 3 of the zip archive.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refspec.convert import torch_bin
from refspec.convert.safetensors_io import DTYPES
from refspec.errors import CheckpointError, UsageError
from refspec.gguf.complete import complete
from refspec.gguf.header import FilePath

FLOATS = ("BF16", "F16", "F32")
STORAGES = {kind: name for name, kind in torch_bin.STORAGES.items()}
WEIGHT_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_ALIGN = 64  # bytes; PyTorch maps storages and wants them so


@dataclass(frozen=True)
class Entry:
    """One tensor to write; `kind` is "float" (the file's dtype) or a type of DTYPES but BF16."""

    name: str
    shape: tuple[int, ...]
    kind: str
    load: Callable[[], np.ndarray]


def exact_dtype(entries: Iterable[Entry], first: str = "BF16") -> str:
    """The smallest type that holds every float tensor without rounding; `first` where BF16 and F16 both do."""
    fits = {first: True, "BF16": True, "F16": True}  # in order of preference
    for entry in entries:
        if entry.kind != "float" or not any(fits.values()):
            continue
        x = np.ascontiguousarray(entry.load(), np.float32)
        fits["BF16"] = fits["BF16"] and not (x.view(np.uint32) & 0xFFFF).any()
        with np.errstate(over="ignore"):
            fits["F16"] = fits["F16"] and bool((x.astype(np.float16).astype(np.float32) == x).all())
    return next((kind for kind, fit in fits.items() if fit), "F32")


def new_directory(out: FilePath) -> Path:
    """The directory `out`, made if need be; `UsageError` when a checkpoint is in it already."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be made ({error.strerror or error})") from None
    if there := [name for name in WEIGHT_FILES if (out / name).exists()]:
        raise UsageError(f"{out}: already holds {there[0]}; two checkpoints in one directory mix up, name another")
    return out


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object; the name appears when it is complete."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write one text file; the name appears when it is complete."""
    with complete(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_safetensors(path: Path, entries: Sequence[Entry], dtype: str) -> Path:
    """Write `entries` as safetensors, floats as `dtype` (BF16, F16 or F32)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for e in entries:
        kind = dtype if e.kind == "float" else e.kind
        size = int(np.prod(e.shape, dtype=np.int64)) * DTYPES[kind].itemsize
        header[e.name] = {"dtype": kind, "shape": list(e.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with complete(path) as partial, open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for e in entries:
            _encode(e, dtype, path).tofile(file)
    return path


def write_torch(path: Path, entries: Sequence[Entry], dtype: str) -> Path:
    """Write `entries` as `pytorch_model.bin`: what torch.save of an ordered dictionary of tensors writes."""
    with complete(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, "data.pkl", _pickle(entries, dtype))
        _member(archive, "byteorder", b"little")
        for i, e in enumerate(entries):
            _member(archive, f"data/{i}", _encode(e, dtype, path).data.cast("B"))
        _member(archive, "version", b"3\n")
    return path


def _encode(entry: Entry, dtype: str, path: Path) -> np.ndarray:
    array = np.asarray(entry.load())
    if array.shape != entry.shape:
        raise CheckpointError(f"{path}: tensor {entry.name!r} has shape {array.shape}, expected {entry.shape}")
    kind = dtype if entry.kind == "float" else entry.kind
    if kind == "BF16":
        return bfloat16(array)
    with np.errstate(over="ignore"):
        encoded = np.ascontiguousarray(array, DTYPES[kind])
    if kind == "F16" and not np.isfinite(encoded).all():
        raise CheckpointError(f"{path}: tensor {entry.name!r} does not fit F16 (|x| > 65504); use --dtype BF16 or F32")
    return encoded


def bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 -> the nearest bfloat16 (ties to even) as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _member(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    size = memoryview(data).nbytes
    large = size > 1 << 30  # such a header holds a 20-byte field more
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(info.filename) + (20 if large else 0)
    fill = -(start + 4) % _ALIGN
    info.extra = struct.pack("<2sH", b"FB", fill) + b"Z" * fill  # padding, as PyTorch writes it
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(data)


def _pickle(entries: Sequence[Entry], dtype: str) -> bytes:
    """Protocol 2 of OrderedDict(name = _rebuild_tensor_v2(storage i, 0, shape, stride, False, OrderedDict()))."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: Sequence[int]) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    empty = b"ccollections\nOrderedDict\n)R"
    out = [b"\x80\x02", empty, b"("]
    for i, e in enumerate(entries):
        stride, count = [], 1
        for size in reversed(e.shape):
            stride.append(count)
            count *= size
        storage = STORAGES[dtype if e.kind == "float" else e.kind]
        out += [
            text(e.name), b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(", text("storage"), f"ctorch\n{storage}\n".encode(), text(str(i)), text("cpu"), whole(count), b"tQ",
            whole(0), numbers(e.shape), numbers(stride[::-1]), b"\x89", empty, b"tR",
        ]  # fmt: skip
    return b"".join([*out, b"u."])
