"""ggml's own products of a packed matrix row with a vector, as addresses for C (native/eagle3.c).

Not an engine: one function per weight type, the ones llama.cpp's processor backend multiplies with, so that a matrix is used in the type
its file stores it in and on whatever instructions this build of llama.cpp was made for. The tables they stand in are structs of a header
that ships with no package; their layout is checked by what they say of types known here, and where it does not fit there are none.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from refspec.engine import lib
from refspec.formats.gguf_header import GgufInfo
from refspec.native import PackedMatrix


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    ]


class _CpuTraits(ctypes.Structure):
    """`struct ggml_type_traits_cpu`."""

    _fields_ = [
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    ]


class Functions(NamedTuple):
    """Addresses of ggml's functions for one type of weights, and how many numbers it packs together."""

    dot: int
    pack: int  # 0: dot takes float32
    unpack: int
    block: int


_KNOWN = {GGMLQuantizationType.F32: 0, GGMLQuantizationType.F16: 1, GGMLQuantizationType.Q8_0: 8}  # the type each is multiplied with


@cache
def functions(type_id: int) -> Functions | None:
    """What multiplies rows of a ggml type with float32 inputs; None where this build of llama.cpp does not say."""
    tables = _tables()
    if tables is None or type_id not in GGML_QUANT_SIZES:
        return None
    traits, cpu = tables
    kind = GGMLQuantizationType(type_id)
    here, there = traits(kind).contents, cpu(kind).contents
    if (here.block, here.size) != GGML_QUANT_SIZES[kind] or not there.vec_dot:
        return None
    other = GGMLQuantizationType(there.vec_dot_type)
    pack = 0 if other is GGMLQuantizationType.F32 else cpu(other).contents.from_float
    if pack is None or (here.to_float is None and kind is not GGMLQuantizationType.F32):
        return None
    block = int(np.lcm(here.block, GGML_QUANT_SIZES[other][0]))
    return Functions(there.vec_dot, pack, here.to_float or 0, block)


@cache
def _tables() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    """The two tables of this llama.cpp, if they are there and hold what is known of three types."""
    traits, cpu = lib.type_traits, lib.type_traits_cpu
    if traits is None or cpu is None:
        return None
    traits.restype, cpu.restype = ctypes.POINTER(_Traits), ctypes.POINTER(_CpuTraits)
    for kind, other in _KNOWN.items():
        here, there = traits(kind), cpu(kind)
        if not here or not there or here.contents.name != kind.name.lower().encode():
            return None
        if (here.contents.block, here.contents.size) != GGML_QUANT_SIZES[kind]:
            return None
        if there.contents.vec_dot_type != other or not 1 <= there.contents.rows <= 8 or not there.contents.vec_dot:
            return None
    return traits, cpu


def packed_matrix(info: GgufInfo, name: str) -> PackedMatrix | None:
    """A matrix as its file stores it; None for float32 and for types or widths this llama.cpp multiplies otherwise."""
    tensor = info.tensors[name]
    if tensor.type == "F32" or (found := functions(tensor.type_id)) is None or tensor.shape[1] % found.block:
        return None
    data = np.fromfile(info.path, np.uint8, tensor.nbytes, offset=tensor.offset).reshape(tensor.shape[0], -1)
    return PackedMatrix(data, found.dot, found.pack, found.unpack)
