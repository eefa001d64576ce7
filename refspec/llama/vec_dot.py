"""ggml's dot products of a quantized matrix row with a vector, as addresses for C (native/eagle3.c).

There is one function for each weight type, the one llama.cpp's processor backend multiplies with, so that a matrix is
used in the type its file stores and on the instructions this build of llama.cpp was made for. ggml's tables of them are
structs of a header that no package ships: their layout is checked against known types first.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import numpy as np

from refspec.gguf.header import GgufInfo
from refspec.gguf.types import weight_type
from refspec.llama import api
from refspec.native import PackedMatrix


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = [
        ("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64), ("size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p), ("from_float_ref", ctypes.c_void_p),
    ]  # fmt: skip


class _CpuTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu`."""

    _fields_ = [
        ("from_float", ctypes.c_void_p), ("vec_dot", ctypes.c_void_p), ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    ]  # fmt: skip


class Functions(NamedTuple):
    """Addresses of ggml's functions for one type of weights, and how many numbers a row is a multiple of."""

    dot: int
    pack: int  # 0: dot takes float32
    unpack: int
    block: int


F32, F16, Q8_0 = 0, 1, 8
_KNOWN = (F32, F16, Q8_0)  # each takes inputs of its own type


@cache
def functions(type_id: int) -> Functions | None:
    """What multiplies rows of a ggml type with float32 inputs; None where this llama.cpp has no such function."""
    tables, known = _tables(), weight_type(type_id)
    if tables is None or known is None:
        return None
    traits, cpu = tables
    here, there = traits(type_id).contents, cpu(type_id).contents
    other = weight_type(there.vec_dot_type)
    if (here.block, here.size) != (known.block, known.nbytes) or not there.vec_dot or other is None:
        return None
    pack = 0 if other.id == F32 else cpu(other.id).contents.from_float
    if pack is None or (here.to_float is None and type_id != F32):
        return None
    return Functions(there.vec_dot, pack, here.to_float or 0, int(np.lcm(known.block, other.block)))


@cache
def _tables() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    """The two tables of this llama.cpp; None where they are missing, or three known types read otherwise."""
    traits, cpu = api.type_traits, api.type_traits_cpu
    if traits is None or cpu is None:
        return None
    traits.restype, cpu.restype = ctypes.POINTER(_Traits), ctypes.POINTER(_CpuTraits)
    for kind in _KNOWN:
        here, there, known = traits(kind), cpu(kind), weight_type(kind)
        if not here or not there or known is None or here.contents.name != known.name.lower().encode():
            return None
        if (here.contents.block, here.contents.size) != (known.block, known.nbytes):
            return None
        if there.contents.vec_dot_type != kind or not 1 <= there.contents.rows <= 8 or not there.contents.vec_dot:
            return None
    return traits, cpu


def packed_matrix(info: GgufInfo, name: str) -> PackedMatrix | None:
    """A matrix as its file stores it; None for float32, and for types or widths without a dot product here."""
    tensor = info.tensors[name]
    if tensor.type == "F32" or (found := functions(tensor.type_id)) is None or tensor.shape[1] % found.block:
        return None
    data = np.fromfile(info.path, np.uint8, tensor.nbytes, offset=tensor.offset).reshape(tensor.shape[0], -1)
    return PackedMatrix(data, found.dot, found.pack, found.unpack)
