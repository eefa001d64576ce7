"""refspec's kernels (native/packed_*.c, reference `refspec/reference/packed_matmul.py`) multiply inside llama.cpp.

llama.cpp's processor backend calls a function of a shared library, `llamafile_sgemm`, before it multiplies itself.
Linux resolves that name to the first library that has it. So refspec's C module is made visible before llama.cpp is
loaded (`make_visible`), and gets llama.cpp's own function for every matrix that is not registered (`connect`). Where a
model's weights are, llama.cpp itself says. On other systems and processors, with REFSPEC_BACKEND=numpy, or where a
program imported llama_cpp first, llama.cpp multiplies as usual.

Not a loader (`model.py`), and nothing of llama.cpp is changed: its graph, threads, attention and cache are its own.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from refspec import native
from refspec.gguf.header import GgufInfo, TensorInfo
from refspec.gguf.types import weight_type

# The functions replaced; llama.cpp calls the second for many tokens and K types.
NAME, TILED = "llamafile_sgemm", "ggml_compute_forward_mul_mat_tiled"
SMALL = 1 << 14  # bytes, enough for three tensors without their numbers
AS_STORED = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")  # types that llama.cpp never repacks
# All tensors of a model: `const std::vector<std::pair<std::string, ggml_tensor *>> &`, as GNU's library lays it out.
TENSORS, PAIR, SECOND = "_Z29llama_internal_get_tensor_mapB5cxx11PK11llama_model", 40, 32
SEEN = 64  # bytes at either end of a matrix that must be those of the file
_why_not: str | None = "llama.cpp is not loaded"
_dll: ctypes.CDLL | None = None


def make_visible() -> str | None:
    """Make the kernels visible under llama.cpp's name before it is loaded; why that is not possible, or None."""
    if not sys.platform.startswith("linux"):
        return "only on Linux can one library replace a function of another"
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
    return None if first == native.lib.rs_matmul_entry() else f"another library has replaced {NAME} already"


def connect(dll: ctypes.CDLL, refused: str | None) -> None:
    """Hand llama.cpp's own functions to the kernels; `refused` is what `make_visible` said."""
    global _why_not, _dll
    _dll = dll
    if refused is None:
        libraries = [dll, *_backends(Path(dll._name).parent)]
        own = _address(libraries, NAME)
        if own in (0, native.lib.rs_matmul_entry()):
            refused = f"this llama.cpp was built without {NAME}"
        elif _address(libraries, TENSORS) == 0:
            refused = "this llama.cpp does not say where its weights are"
        else:
            at = _matrix_at(dll)
            native.lib.rs_matmul_others(
                own, _address(libraries, TILED), _address(libraries, "ggml_get_data") if at else 0, at
            )
    _why_not = refused


def _address(libraries: list[ctypes.CDLL], name: str) -> int:
    """Address of a function in the first library that has it, else 0."""
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
    """Byte offset of the matrix's address in ggml's node of a multiplication, found in one made for it; else 0."""
    pointer = ctypes.c_void_p
    names = ("ggml_init", "ggml_free", "ggml_new_tensor_2d", "ggml_mul_mat")
    try:
        make, end, new, multiply = (dll[name] for name in names)
    except AttributeError:
        return 0
    make.restype, make.argtypes = pointer, [_Pool]
    new.restype, new.argtypes = pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    multiply.restype, multiply.argtypes, end.argtypes = pointer, [pointer, pointer, pointer], [pointer]
    memory = ctypes.create_string_buffer(SMALL)
    pool = make(_Pool(SMALL, ctypes.addressof(memory), True))
    if not pool:
        return 0
    matrix, inputs = new(pool, 0, 32, 4), new(pool, 0, 32, 2)
    node = multiply(pool, matrix, inputs)
    both = struct.pack("PP", matrix, inputs)
    left = ctypes.addressof(memory) + SMALL - node
    places = range(0, min(left, 512) - len(both), struct.calcsize("P"))
    at = [i for i in places if ctypes.string_at(node + i, len(both)) == both]
    end(pool)
    return at[0] if len(at) == 1 else 0


def _backends(folder: Path) -> Iterator[ctypes.CDLL]:
    """Builds of llama.cpp's processor backend in libraries of their own, those that are loaded."""
    for file in sorted(folder.glob("libggml-cpu*.so")):
        try:
            yield ctypes.CDLL(str(file), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue


def unavailable() -> str | None:
    """Why llama.cpp does not call refspec's kernels here, None where it does; `weights.why_not` also tries them."""
    return _why_not


def instructions() -> str:
    """The name of the instruction set the kernels use here."""
    name: bytes = native.ffi.string(native.lib.rs_matmul_set())
    return {"avx512": "AVX-512", "avx2": "AVX2"}.get(name.decode(), name.decode())


def matrices(info: GgufInfo) -> list[TensorInfo]:
    """The tensors of a file that the kernels can multiply with."""
    found = []
    for tensor in info.tensors.values():
        if native.lib is not None and len(tensor.shape) == 2 and native.lib.rs_matmul_takes(tensor.type_id):
            kind = weight_type(tensor.type_id)
            if kind is not None and tensor.shape[1] % kind.block == 0 and tensor.nbytes:
                found.append(tensor)
    return found


def packed_bytes(info: GgufInfo) -> int:
    """Bytes that a file's matrices take when they are packed.

    The system can then drop the file's own pages, as they are not read again, except for a token embedding.
    """
    shared = "output.weight" not in info.tensors
    return sum(t.nbytes for t in matrices(info) if shared or t.name != "token_embd.weight")


def left_to_llama(info: GgufInfo) -> list[TensorInfo]:
    """The quantized tensors of a file that the kernels do not multiply with, and that llama.cpp may repack."""
    taken = {tensor.name for tensor in matrices(info)}
    return [t for t in info.tensors.values() if t.name not in taken and t.type not in AS_STORED]


def _places(handle: int) -> dict[str, set[int]]:
    """Where the weights of a loaded model are, by tensor name; a tied head is listed beside the embedding."""
    assert _dll is not None
    tensors, name_of, data_of = (_dll[name] for name in (TENSORS, "ggml_get_name", "ggml_get_data"))
    pointer = ctypes.c_void_p
    tensors.restype, tensors.argtypes = pointer, [pointer]
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [pointer]
    data_of.restype, data_of.argtypes = pointer, [pointer]
    first, end = (pointer.from_address(tensors(handle) + at).value or 0 for at in (0, struct.calcsize("P")))
    found: dict[str, set[int]] = {}
    for pair in range(first, end, PAIR):
        tensor = pointer.from_address(pair + SECOND).value
        if data := data_of(tensor):
            found.setdefault((name_of(tensor) or b"").decode("utf-8", "replace"), set()).add(data)
    return found


def _as_in_file(file: BinaryIO, tensor: TensorInfo, address: int) -> bool:
    """Whether a tensor is in memory as in the file: llama.cpp may have repacked it, or the file is another now."""
    for at in (0, max(tensor.nbytes - SEEN, 0)):
        file.seek(tensor.offset + at)
        size = min(SEEN, tensor.nbytes)
        if ctypes.string_at(address + at, size) != file.read(size):
            return False
    return True


class PackedMatrices:
    """The matrices of one loaded model that refspec's kernels multiply with."""

    def __init__(self, index: int, nbytes: int) -> None:
        self.index = index
        self.nbytes = nbytes  # of the file; a matrix is packed when it is first multiplied with

    def switch(self, on: bool) -> None:
        """Leave the multiplications to llama.cpp, or do them again; not while it computes."""
        native.lib.rs_matmul_switch(self.index, on)
        native.lib.rs_matmul_attend(on)

    @property
    def calls(self) -> int:
        """How many multiplications llama.cpp has asked for."""
        return int(native.lib.rs_matmul_calls(self.index))

    def note(self, info: GgufInfo) -> str:
        """What a user should know of it, in one line."""
        whole = sum(t.nbytes for t in info.tensors.values())
        line = f"{info.path.name}: fast kernels ({instructions()}) for {self.nbytes / 1e6:.0f} of {whole / 1e6:.0f} MB"
        left = sorted({t.type for t in left_to_llama(info) if t.name != "token_embd.weight"})
        return f"{line}; {', '.join(left)} stays with llama.cpp, so checking several guesses is slow" if left else line


def register(info: GgufInfo, handle: int) -> PackedMatrices | None:
    """Hand the matrices of a model that was just loaded to the kernels; None where there is no place for them.

    Those that are not in memory as in the file are left to llama.cpp.
    """
    places = _places(handle)
    with open(info.path, "rb") as file:
        found = sorted(
            (address, tensor)
            for tensor in matrices(info)
            for address in places.get(tensor.name, ())
            if _as_in_file(file, tensor, address)
        )
    if not found:
        return None
    ffi = native.ffi
    addresses = ffi.new("uintptr_t[]", [address for address, _ in found])
    types = ffi.new("int32_t[]", [tensor.type_id for _, tensor in found])
    rows, columns = (ffi.new("size_t[]", [tensor.shape[axis] for _, tensor in found]) for axis in (0, 1))
    index = native.lib.rs_matmul_announce(addresses, types, rows, columns, len(found))
    if index < 0:
        return None
    native.lib.rs_matmul_attend(True)
    nbytes = sum(tensor.nbytes for tensor in {tensor.name: tensor for _, tensor in found}.values())
    return PackedMatrices(index, nbytes)


def unregister(packed: PackedMatrices | None) -> None:
    """Forget a model's matrices, before llama.cpp frees them."""
    if packed is not None:
        native.lib.rs_matmul_forget(packed.index)
