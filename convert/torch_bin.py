"""Tensors of `pytorch_model.bin` (torch.save's zip and legacy formats) without PyTorch and without executing anything.

A pickle is a program. The interpreter here knows dictionaries, tuples, numbers, strings and the few functions that
torch.save uses to name a tensor; every other global is refused by name, and nothing is imported. Tensors are not
loaded: each becomes a `StoredTensor`, a place in the file. The tar format of torch < 0.2 is refused.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from refspec.convert.safetensors_io import DTYPES, StoredTensor
from refspec.errors import CheckpointError
from refspec.gguf.header import LFS_POINTER, FilePath, lfs_pointer

PICKLE_LIMIT = 64 << 20  # bytes; a checkpoint's pickle names tensors, it holds no weights
MEMO_LIMIT = 1 << 20
MAGIC = 0x1950A86A20F9469CFC6C  # what a legacy file's first pickle holds
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_REBUILD = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter")
_KNOWN = {*_REBUILD, "collections OrderedDict", *(f"torch {name}" for name in STORAGES)}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset([
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES",
])  # fmt: skip
_MARK = object()
# What interpreting a damaged pickle raises.
_DAMAGED = (
    ValueError, TypeError, LookupError, AttributeError, struct.error, OverflowError, MemoryError, RecursionError,
)  # fmt: skip


class _Global(NamedTuple):
    name: str  # "module attribute"


class _Storage(NamedTuple):
    dtype: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # elements, as strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_bin(path: FilePath) -> dict[str, StoredTensor]:
    """The tensors of one torch.save file by name, not yet loaded; `CheckpointError` for anything else in it."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(4)
            file.seek(0)
            if head == b"PK\x03\x04":
                return _read_zip(path, file, size)
            if head[:1] == b"\x80":
                return _read_legacy(path, file, size)
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(lfs_pointer(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    raise CheckpointError(f"{path}: neither of torch.save's formats (zip, legacy); save it as safetensors")


def _read_zip(path: Path, file: IO[bytes], size: int) -> dict[str, StoredTensor]:
    try:
        entries = {info.filename: info for info in zipfile.ZipFile(file).infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, OverflowError):
        raise CheckpointError(f"{path}: a damaged or truncated zip file; get it again") from None
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: a zip file with {len(pickles)} data.pkl is not written by torch.save")
    prefix = pickles[0].removesuffix("data.pkl")

    def place(name: str) -> tuple[int, int]:
        """(offset, bytes) of an entry, which torch.save never compresses."""
        if (info := entries.get(name)) is None:
            raise CheckpointError(f"{path}: {name} is missing in the zip file; get it again")
        if not 0 <= info.header_offset < size:  # what a seek would refuse in other words
            raise CheckpointError(f"{path}: {name} begins at byte {info.header_offset}, the file has {size}; damaged")
        file.seek(info.header_offset)
        local = file.read(30)
        packed = info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1
        if packed or local[:4] != b"PK\x03\x04" or len(local) < 30:
            raise CheckpointError(f"{path}: {name} is compressed, encrypted or damaged; save the checkpoint again")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        if info.compress_size != info.file_size or start + info.file_size > size:
            raise CheckpointError(f"{path}: {name} ends at byte {start + info.file_size} of {size}: truncated")
        return start, info.file_size

    if prefix + "byteorder" in entries:
        start, length = place(prefix + "byteorder")
        file.seek(start)
        if (order := file.read(min(length, 16))) != b"little":
            raise CheckpointError(f"{path}: byte order {order!r} is not supported; save it on a little-endian machine")
    start, length = place(pickles[0])
    file.seek(start)
    if length > PICKLE_LIMIT:
        raise CheckpointError(f"{path}: a pickle of {length} bytes is not a checkpoint's; nothing of it was read")
    tensors = _state_dict(_run(path, io.BytesIO(file.read(length))), path)
    places = {t.storage.key: place(f"{prefix}data/{t.storage.key}") for t in tensors.values()}
    return {name: _stored(path, name, t, *places[t.storage.key]) for name, t in tensors.items()}


def _read_legacy(path: Path, file: IO[bytes], size: int) -> dict[str, StoredTensor]:
    """Pickles of magic number, protocol, system facts, object and storage keys; then, by key, a count and the bytes."""
    if _run(path, file) != MAGIC:
        raise CheckpointError(f"{path}: a pickle, but not one that torch.save wrote; nothing of it was executed")
    protocol, system = _run(path, file), _run(path, file)
    if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path}: its legacy torch.save protocol or byte order is not supported; save it again")
    tensors, keys = _state_dict(_run(path, file), path), _run(path, file)
    storages = {t.storage.key: t.storage for t in tensors.values()}
    if not isinstance(keys, list) or not all(isinstance(k, str) and k in storages for k in keys):
        raise CheckpointError(f"{path}: its list of storages does not fit its tensors; the file is damaged")
    places = {}
    for key in keys:
        count = file.read(8)
        numel = struct.unpack("<q", count)[0] if len(count) == 8 else -1
        nbytes = numel * DTYPES[storages[key].dtype].itemsize
        if numel < 0 or numel != storages[key].numel or file.tell() + nbytes > size:
            raise CheckpointError(f"{path}: truncated: storage {key!r} of {numel} elements ends after byte {size}")
        places[key] = (file.tell(), nbytes)
        file.seek(nbytes, os.SEEK_CUR)
    if missing := storages.keys() - places.keys():
        raise CheckpointError(f"{path}: storage {min(missing)!r} is missing; the file is damaged")
    return {name: _stored(path, name, t, *places[t.storage.key]) for name, t in tensors.items()}


def _state_dict(value: Any, path: Path) -> dict[str, _Tensor]:
    """The one dictionary of tensors a checkpoint holds, bare or under `state_dict`."""
    if isinstance(value, dict) and list(value) == ["state_dict"]:
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{path}: holds a {type(value).__name__.strip('_')}, expected a dictionary of tensors")
    for name, tensor in value.items():
        if type(name) is not str or not isinstance(tensor, _Tensor):
            raise CheckpointError(f"{path}: entry {str(name)[:60]!r} is not a tensor; save the state dict alone")
    return value


def _stored(path: Path, name: str, t: _Tensor, start: int, nbytes: int) -> StoredTensor:
    item, contiguous, count = DTYPES[t.storage.dtype].itemsize, [], 1
    for n in reversed(t.shape):
        contiguous.append(count)
        count *= n
    last = t.offset + sum((n - 1) * s for n, s in zip(t.shape, t.strides, strict=True)) if count else 0
    if (last + 1) * item > nbytes and count:
        raise CheckpointError(f"{path}: tensor {name!r} {list(t.shape)} does not fit its {nbytes} bytes; truncated?")
    if count > nbytes // item:  # strides of 0 make a small file a huge tensor
        raise CheckpointError(f"{path}: tensor {name!r} repeats its elements; save it with .contiguous()")
    plain = all(n == 1 or s == c for n, s, c in zip(t.shape, t.strides, reversed(contiguous), strict=True))
    return StoredTensor(name, t.storage.dtype, t.shape, path, start + t.offset * item, None if plain else t.strides)


def _run(path: Path, file: IO[bytes]) -> Any:
    """Interpret one pickle and leave `file` behind it; everything outside the tables above is a `CheckpointError`."""
    try:
        return _interpret(path, file)
    except _DAMAGED:
        raise CheckpointError(f"{path}: its pickle is damaged or truncated; nothing of it was executed") from None


def _interpret(path: Path, file: IO[bytes]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def put(index: int) -> None:
        if index >= MEMO_LIMIT:
            raise ValueError("memo index")
        memo[index] = stack[-1]

    for opcode, argument, _ in pickletools.genops(cast(Any, _Limited(file))):
        op, arg = opcode.name, cast(Any, argument)
        if op in _LITERALS:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in ("BINPUT", "LONG_BINPUT", "PUT"):
            put(arg)
        elif op == "MEMOIZE":
            put(len(memo))
        elif op in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": (), "MARK": _MARK}[op])
        elif op in ("TUPLE", "LIST"):
            stack.append(tuple(to_mark()) if op == "TUPLE" else to_mark())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(op[-1])
            if len(stack) < n:
                raise ValueError("stack")
            stack[-n:] = [tuple(stack[-n:])]
        elif op in ("SETITEMS", "SETITEM", "DICT"):
            items = to_mark() if op != "SETITEM" else [stack.pop(-2), stack.pop()]
            if op == "DICT":
                stack.append({})
            if type(stack[-1]) is not dict:
                raise ValueError("items")
            stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif op in ("APPENDS", "APPEND"):
            items = to_mark() if op == "APPENDS" else [stack.pop()]
            if type(stack[-1]) is not list:
                raise ValueError("append")
            stack[-1].extend(items)
        elif op in ("GLOBAL", "STACK_GLOBAL"):
            parts = arg.split(" ", 1) if op == "GLOBAL" else [stack.pop(-2), stack.pop()]
            if not all(type(part) is str for part in parts):
                raise ValueError("global")
            if (name := " ".join(parts)) not in _KNOWN:
                raise CheckpointError(
                    f"{path}: its pickle asks for {'.'.join(parts)[:80]!r}, which no weights need; nothing was executed"
                )
            stack.append(_Global(name))
        elif op == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif op == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif op == "BUILD":  # the attributes of an OrderedDict (`_metadata` of a module's state dict): not needed
            stack.pop()
            if type(stack[-1]) is not dict:
                raise ValueError("build")
        elif op == "POP":
            stack.pop()
        elif op == "STOP":
            return stack.pop()
        elif op not in ("PROTO", "FRAME"):
            raise CheckpointError(f"{path}: its pickle uses {op}, which torch.save does not; nothing was executed")
    raise ValueError("no stop")


def _storage(pid: Any) -> _Storage:
    """('storage', kind, key, device, elements[, view]) of a persistent id."""
    tag, kind, key, _, numel, *view = pid
    if tag != "storage" or not isinstance(kind, _Global) or type(numel) is not int or any(v is not None for v in view):
        raise ValueError("persistent id")
    if type(key) not in (str, int) or numel < 0:
        raise ValueError("storage key")
    return _Storage(STORAGES[kind.name.removeprefix("torch ")], str(key), numel)


def _pairs(items: Iterable[Any]) -> dict[str | int, Any]:
    """A dictionary whose keys are names or numbers: hashing nested tuples can take for ever."""
    out = {}
    for key, value in items:
        if type(key) not in (str, int):
            raise ValueError("key")
        out[key] = value
    return out


class _Limited:
    """What pickletools reads a pickle through: at most PICKLE_LIMIT bytes, whatever lengths the pickle claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, PICKLE_LIMIT

    def read(self, n: int) -> bytes:
        if not 0 <= n <= self._left:
            raise ValueError("length")
        self._left -= n
        return self._file.read(n)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 4096))
        self._left -= len(line)
        return line


def _call(function: Any, arguments: Any) -> Any:
    name = function.name if isinstance(function, _Global) else None
    if name == "collections OrderedDict":
        return _pairs(*arguments) if arguments else {}
    if name == "torch._utils _rebuild_parameter" and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
        storage, offset, shape, strides = arguments[:4]
        whole = [offset, *shape, *strides]
        numbers = len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in whole)
        if isinstance(storage, _Storage) and numbers:
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
    raise ValueError("call")
