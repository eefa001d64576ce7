"""llama.cpp's products of weights on refspec's own kernels (native/packed_*.c, reference
`refspec/reference/packed_matmul.py`): what they are reached through, and which weights they are told of.

llama.cpp's processor backend asks a function of a shared library, `llamafile_sgemm`, to multiply rows before it does so
itself. Linux resolves that name to the first library that offers it, so the compiled module is made visible before
llama.cpp is loaded (`offer`), and given llama.cpp's own function for every product that is not its own
(`answer_others`). A model's weights are found where the kernel has mapped its file. On other systems and processors,
with REFSPEC_BACKEND=numpy, or where a program imported llama_cpp first, llama.cpp multiplies as ever.

Not a loader (`model.py`), and nothing of llama.cpp is changed: its graph, threads, attention and cache are its own.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from refspec import native
from refspec.gguf.header import GgufInfo, TensorInfo

# which llama.cpp asks for products of K types with many rows
NAME, TILED = "llamafile_sgemm", "ggml_compute_forward_mul_mat_tiled"
SMALL = 1 << 14  # bytes, enough for three tensors without their numbers
AS_STORED = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")  # types that llama.cpp never lays out anew
_why_not: str | None = "llama.cpp is not loaded"


class Region(NamedTuple):
    """Addresses start..end of this process that are a file from `offset` on."""

    start: int
    end: int
    offset: int


def offer() -> str | None:
    """Make the kernels visible under llama.cpp's name, before llama.cpp is loaded; why that is not possible, or None."""
    if not sys.platform.startswith("linux"):
        return "only Linux lets one library take another's place"
    if native.backend != "c" or not hasattr(native.lib, "rs_matmul_set"):
        return "refspec's C module is not in use"
    if not native.ffi.string(native.lib.rs_matmul_set()):
        return "this processor has neither AVX2 nor AVX-512 with VNNI"
    if "llama_cpp" in sys.modules:
        return "llama_cpp was imported before refspec loaded it; load a model with refspec first"
    try:
        # it is loaded; this only makes its names visible
        ctypes.CDLL(native.path(), mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)
        first = ctypes.cast(ctypes.CDLL(None)[NAME], ctypes.c_void_p).value
    except (OSError, AttributeError):
        first = None
    return None if first == native.lib.rs_matmul_entry() else "another library has taken llama.cpp's place"


def answer_others(dll: ctypes.CDLL, refused: str | None) -> None:
    """Hand over llama.cpp's own functions; `refused` is what `offer` said before llama.cpp was loaded."""
    global _why_not
    if refused is None:
        libraries = [dll, *_backends(Path(dll._name).parent)]
        own = _address(libraries, NAME)
        if own in (0, native.lib.rs_matmul_entry()):
            refused = "this llama.cpp was built without the products they replace"
        else:
            at = _matrix_at(dll)
            native.lib.rs_matmul_others(
                own, _address(libraries, TILED), _address(libraries, "ggml_get_data") if at else 0, at
            )
    _why_not = refused


def _address(libraries: list[ctypes.CDLL], name: str) -> int:
    """Of a function in the first library that has it, 0 without:

    a library's handle is searched before what is visible to all.
    """
    for library in libraries:
        try:
            return ctypes.cast(library[name], ctypes.c_void_p).value or 0
        except AttributeError:
            continue
    return 0


class _Pool(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def _matrix_at(dll: ctypes.CDLL) -> int:
    """Bytes from a product, as ggml holds it, to the address of its matrix, which its rows' follows;

    found in a product made for it, 0 where it cannot be.
    """
    pointer = ctypes.c_void_p
    try:
        make, end, new, multiply = (
            dll[name] for name in ("ggml_init", "ggml_free", "ggml_new_tensor_2d", "ggml_mul_mat")
        )
    except AttributeError:
        return 0
    make.restype, make.argtypes = pointer, [_Pool]
    new.restype, new.argtypes = pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    multiply.restype, multiply.argtypes, end.argtypes = pointer, [pointer, pointer, pointer], [pointer]
    memory = ctypes.create_string_buffer(SMALL)
    pool = make(_Pool(SMALL, ctypes.addressof(memory), True))
    if not pool:
        return 0
    matrix, rows = new(pool, 0, 32, 4), new(pool, 0, 32, 2)
    product = multiply(pool, matrix, rows)
    both = struct.pack("PP", matrix, rows)
    left = ctypes.addressof(memory) + SMALL - product
    at = [
        i
        for i in range(0, min(left, 512) - len(both), struct.calcsize("P"))
        if ctypes.string_at(product + i, len(both)) == both
    ]
    end(pool)
    return at[0] if len(at) == 1 else 0


def _backends(folder: Path) -> Iterator[ctypes.CDLL]:
    """Builds of the processor backend that are loaded by themselves."""
    for file in sorted(folder.glob("libggml-cpu*.so")):
        try:
            yield ctypes.CDLL(str(file), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue


def not_linked() -> str | None:
    """Why llama.cpp does not ask for products here, before any is tried."""
    return _why_not


def instructions() -> str:
    """What the kernels run on here, in words."""
    name: bytes = native.ffi.string(native.lib.rs_matmul_set())
    return {"avx512": "AVX-512", "avx2": "AVX2"}.get(name.decode(), name.decode())


def matrices(info: GgufInfo) -> list[TensorInfo]:
    """The tensors of a file that the kernels can multiply with."""
    from refspec.gguf.types import weight_type

    found = []
    for tensor in info.tensors.values():
        if native.lib is not None and len(tensor.shape) == 2 and native.lib.rs_matmul_takes(tensor.type_id):
            kind = weight_type(tensor.type_id)
            if kind is not None and tensor.shape[1] % kind.block == 0 and tensor.nbytes:
                found.append(tensor)
    return found


def fits(info: GgufInfo) -> int:
    """Bytes that a file's panels will take, 0 where it has no matrices for them or memory has no room.

    The file's own pages can then be given up by the system, as they are not read again, but for a token embedding.
    """
    shared = "output.weight" not in info.tensors
    nbytes = sum(t.nbytes for t in matrices(info) if shared or t.name != "token_embd.weight")
    return nbytes if nbytes <= _available() else 0


def takes_all(info: GgufInfo) -> bool:
    """Whether nothing is left that llama.cpp might want to lay out anew itself."""
    taken = {tensor.name for tensor in matrices(info)}
    return bool(taken) and all(t.name in taken or t.type in AS_STORED for t in info.tensors.values())


def mapped(path: Path) -> list[Region]:
    """Where this process has mapped a file."""
    state, found = os.stat(path), []
    with open("/proc/self/maps") as lines:
        for line in lines:
            addresses, _, offset, _, inode, *_ = line.split(maxsplit=5)
            if int(inode) == state.st_ino:
                start, end = (int(x, 16) for x in addresses.split("-"))
                found.append(Region(start, end, int(offset, 16)))
    return found


class Panels:
    """The matrices of one loaded model whose products are refspec's."""

    def __init__(self, index: int, nbytes: int) -> None:
        self.index = index
        self.nbytes = nbytes  # at most: only what is multiplied with is laid out anew

    def switch(self, on: bool) -> None:
        """Leave the products to llama.cpp, or take them again; not while it computes."""
        native.lib.rs_matmul_switch(self.index, on)

    @property
    def products(self) -> int:
        """How many llama.cpp has asked for."""
        return int(native.lib.rs_matmul_calls(self.index))


def announce(info: GgufInfo, before: list[Region], nbytes: int) -> Panels | None:
    """Tell the kernels of a model that has just been loaded; None where its weights are not a mapped file, or too many
    models are loaded.

    `nbytes` is what `fits` said, `before` what `mapped` said ahead of loading it: another session's mapping of the same
    file is not this model's.
    """
    regions = [r for r in mapped(info.path) if not any(r.start < b.end and b.start < r.end for b in before)]
    found: list[tuple[int, TensorInfo]] = []
    for tensor in matrices(info):
        at = [
            r.start + tensor.offset - r.offset
            for r in regions
            if r.offset <= tensor.offset and tensor.offset + tensor.nbytes <= r.offset + r.end - r.start
        ]
        if len(at) == 1:
            found.append((at[0], tensor))
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])
    ffi = native.ffi
    addresses, types = (
        ffi.new("uintptr_t[]", [a for a, _ in found]),
        ffi.new("int32_t[]", [t.type_id for _, t in found]),
    )
    rows, columns = (ffi.new("size_t[]", [t.shape[axis] for _, t in found]) for axis in (0, 1))
    index = native.lib.rs_matmul_announce(addresses, types, rows, columns, len(found))
    return Panels(index, nbytes) if index >= 0 else None


def forget(panels: Panels | None) -> None:
    """Before llama.cpp gives back the weights."""
    if panels is not None:
        native.lib.rs_matmul_forget(panels.index)


def _available() -> int:
    """Bytes of memory that can be had without swapping, the pages of mapped files included."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
