"""GGUF files <-> metadata, tensors and drafters.

A drafter that stock llama.cpp computes exactly is written as llama.cpp's architecture `eagle3`, any other as
`refspec-eagle3`, which stock llama.cpp refuses instead of computing something else; refspec loads it with the override
general.architecture=eagle3. What llama.cpp has no tensor for is metadata (`refspec.*`): it refuses unknown tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from refspec import native
from refspec.errors import CheckpointError, UsageError, reads_file
from refspec.gguf import drafter_meta as meta
from refspec.gguf.blocks import DIRECT, Blocks, Progress
from refspec.gguf.complete import complete
from refspec.gguf.header import FilePath, GgufInfo, GgufSource, TensorInfo, parse_header
from refspec.gguf.lazy import Lazy
from refspec.gguf.types import weight_type
from refspec.reference.config import DrafterConfig, FeatureNorm, RopeStyle, check_weights, weight_shapes

__all__ = [
    "FILE_TYPES", "OUTTYPES", "GgufInfo", "TensorInfo", "TensorOut", "Typed", "copy_metadata", "interleave_rows",
    "outtype_for", "read_drafter", "read_gguf_header", "read_tensor", "tensor_rows", "write_drafter", "write_gguf",
]  # fmt: skip

# The weight types refspec writes; gguf quantizes these without a C library.
OUTTYPES = {
    "f32": GGMLQuantizationType.F32, "f16": GGMLQuantizationType.F16, "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0, "i64": GGMLQuantizationType.I64,
}  # fmt: skip
# general.file_type: llama.cpp's numbers for "mostly this type"
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
_RAW = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8, "I16": np.int16, "I32": np.int32,
        "I64": np.int64}  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """A metadata value with the GGUF types it must be written with (for copies from another file)."""

    value: Any
    type_id: int
    item_type: int | None = None


@dataclass(frozen=True)
class TensorOut:
    """One tensor to write; `type` is a key of OUTTYPES; `load` gives the array, whole or in blocks."""

    name: str
    shape: tuple[int, ...]
    type: str
    load: Callable[[], np.ndarray] | Lazy

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        block, size = GGML_QUANT_SIZES[OUTTYPES[self.type]]
        return int(np.prod(self.shape, dtype=np.int64)) // block * size


@reads_file
def read_gguf_header(source: GgufSource) -> GgufInfo:
    """Read and check the header of a GGUF file: types known, every tensor inside the file; else `CheckpointError`.

    A header that was read already is returned as it is.
    """
    if isinstance(source, GgufInfo):
        return source
    path = Path(source)
    raw = parse_header(path)
    tensors = {}
    for name, shape, type_id, offset in raw.tensors:
        if (kind := weight_type(type_id)) is None:
            raise CheckpointError(f"{path}: tensor {name!r} has the unknown type {type_id}; update gguf")
        elements = int(np.prod([int(d) for d in shape], dtype=object))
        if shape[-1] % kind.block:
            raise CheckpointError(f"{path}: tensor {name!r} has rows of {shape[-1]}, not a multiple of {kind.block}")
        nbytes, start = elements // kind.block * kind.nbytes, raw.data_offset + offset
        if start + nbytes > raw.file_size:
            raise CheckpointError(
                f"{path}: truncated: tensor {name!r} ends at byte {start + nbytes} of {raw.file_size}; get it again"
            )
        tensors[name] = TensorInfo(name, shape, type_id, kind.name, start, nbytes)
    placed = sorted(tensors.values(), key=lambda t: t.offset)
    for one, following in pairwise(placed):
        if one.offset + one.nbytes > following.offset:
            both = f"tensors {one.name!r} and {following.name!r}"
            raise CheckpointError(f"{path}: {both} overlap; the file is damaged, get it again")
    arch = raw.metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        raise CheckpointError(f"{path}: metadata key 'general.architecture' is missing; this is not a model")
    return GgufInfo(path, arch, raw.metadata, raw.value_types, tensors, raw.file_size)


def read_tensor(info: GgufInfo, name: str) -> np.ndarray:
    """Load one tensor: float32 (dequantized) or its integer type; `CheckpointError` if absent or not finite."""
    if name not in info.tensors:
        raise CheckpointError(f"{info.path}: tensor {name!r} is missing; convert the model again")
    t = info.tensors[name]
    data = np.fromfile(info.path, dtype=np.uint8, count=t.nbytes, offset=t.offset)
    if data.nbytes != t.nbytes:
        raise CheckpointError(f"{info.path}: truncated inside tensor {name!r}; get the file again")
    if t.type in _RAW:
        array = data.view(_RAW[t.type]).reshape(t.shape)
        if array.dtype.kind == "i":
            return array
        array = array.astype(np.float32)
    else:
        try:
            rows = dequantize(data.reshape(int(np.prod(t.shape[:-1])), -1), GGMLQuantizationType(t.type_id))
        except NotImplementedError:
            raise CheckpointError(f"{info.path}: tensor {name!r} has type {t.type}, which gguf cannot read") from None
        array = rows.astype(np.float32, copy=False).reshape(t.shape)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{info.path}: tensor {name!r} holds NaN or infinite values; the file is damaged")
    return array


def tensor_rows(info: GgufInfo, name: str) -> Lazy:
    """One tensor, read (and dequantized) a few rows at a time; `CheckpointError` as `read_tensor`."""
    if name not in info.tensors or len(shape := info.tensors[name].shape) < 2:
        raise CheckpointError(f"{info.path}: matrix {name!r} is missing; convert the model again")

    def rows(first: int, last: int) -> np.ndarray:
        t = info.tensors[name]
        count, size = last - first, t.nbytes // shape[0]
        part = replace(t, shape=(count, *shape[1:]), offset=t.offset + first * size, nbytes=count * size)
        return read_tensor(replace(info, tensors={name: part}), name)

    return Lazy(shape, rows)


def rope_divisors(info: GgufInfo, prefix: str, head_dim: int) -> np.ndarray | None:
    """What every RoPE frequency is divided by [hd/2], linear scaling included; None where it is 1 throughout."""
    own = read_tensor(info, "rope_freqs.weight") if "rope_freqs.weight" in info.tensors else None
    kind = info.optional(f"{prefix}.rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        raise CheckpointError(f"{info.path}: {prefix}.rope.scaling.type = {kind!r} is not supported; only linear is")
    factor = np.float32(info.optional(f"{prefix}.rope.scaling.factor", float, 1.0) if kind == "linear" else 1.0)
    if factor == 1.0:
        return own
    return (np.ones(head_dim // 2, np.float32) if own is None else own) * factor


def copy_metadata(info: GgufInfo, *prefixes: str) -> dict[str, Typed]:
    """The metadata of `info` whose keys start with one of `prefixes`, ready for `write_gguf`."""
    return {k: Typed(v, *info.value_types[k]) for k, v in info.metadata.items() if k.startswith(prefixes)}


def outtype_for(shape: tuple[int, ...], outtype: str) -> str:
    """The type a float tensor gets: vectors f32, rows that are not whole blocks f16, all others `outtype`."""
    if outtype not in OUTTYPES or outtype == "i64":
        raise UsageError(f"outtype {outtype!r} is unknown; choose one of {', '.join(FILE_TYPES)}")
    if len(shape) < 2:
        return "f32"
    return outtype if shape[-1] % GGML_QUANT_SIZES[OUTTYPES[outtype]][0] == 0 else "f16"


def _add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, Typed):
        if isinstance(value.value, list) and not value.value:
            return  # gguf cannot write an empty array
        item = None if value.item_type is None else GGUFValueType(value.item_type)
        writer.add_key_value(key, _bytes(value.value), GGUFValueType(value.type_id), item)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)  # the type llama.cpp reads sizes and token ids with
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_key_value(key, _bytes(value), GGUFValueType.STRING)
    else:
        writer.add_array(key, [_bytes(v) for v in value])


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(v) for v in value]
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def write_gguf(
    path: FilePath,
    arch: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorOut],
    progress: Progress | None = None,
    source: str | None = None,
) -> Path:
    """Write a GGUF file, one block in memory at a time; the final name appears only when the file is complete.

    Metadata: bool, int (uint32), float (float32), str, lists of one of them, or `Typed`. `progress` is told the bytes
    of each block; `source` is where the values come from, for messages. Raises `CheckpointError`.
    """
    path, tensors = Path(path), list(tensors)
    total = sum(t.nbytes for t in tensors)
    told = None if progress is None else lambda nbytes: progress(nbytes, total)
    with complete(path) as partial, closing(GGUFWriter(partial, arch)) as writer:
        for key, value in metadata.items():
            if key != "general.architecture":
                _add_value(writer, key, value)
        for t in tensors:
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, raw_dtype=OUTTYPES[t.type])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            writer.write_tensor_data(cast(Any, _blocks(Path(source or path), t, told)))
    return path


def _quantized(array: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Rows [R, W] float32 in a quantized type; Q8_0 in C where it is built, four times faster and the same bytes."""
    if kind == GGMLQuantizationType.Q8_0 and native.lib is not None and array.ndim == 2:
        return native.quantize_q8_0(array)
    return cast(np.ndarray, quantize(array, kind))


def _blocks(path: Path, t: TensorOut, progress: Callable[[int], None] | None) -> Blocks:
    kind, stored = OUTTYPES[t.type], None
    if isinstance(t.load, Lazy):
        stored = t.load.bits_type if (t.load.bits_type, t.type) in DIRECT else None
        arrays: Iterable[np.ndarray] = t.load.blocks(as_bits=stored is not None)
    else:
        arrays = (np.asarray(load()) for load in [t.load])
    return Blocks(path, t.name, t.shape, t.type, t.nbytes, arrays, lambda x: _quantized(x, kind), progress, stored)


def interleave_rows(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder q or k rows [heads*hd, ...] from half-split pairs (i, i + hd/2) to interleaved pairs (2i, 2i + 1)."""
    grouped = weight.reshape(-1, 2, head_dim // 2, *weight.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(weight.shape)


def interleaved(weight: np.ndarray | Lazy, head_dim: int) -> np.ndarray | Lazy:
    """`interleave_rows` of an array, or of a lazy one head by head."""
    if isinstance(weight, Lazy):
        return weight.reordered(lambda rows: interleave_rows(rows, head_dim), unit=head_dim)
    return interleave_rows(weight, head_dim)


@reads_file
def read_drafter(path: GgufSource) -> tuple[DrafterConfig, dict[str, np.ndarray]]:
    """Load a drafter GGUF as (config, weights float32, d2t int64 absolute), RoPE style interleaved as in the file.

    `token_embd` and `output` are absent from the weights when the file leaves them to the target. `CheckpointError` for
    anything that is not a complete drafter, including a tensor nothing would use.
    """
    info = read_gguf_header(path)
    config = meta.from_metadata(info)
    weights: dict[str, np.ndarray] = {}
    for tensor in info.tensors:
        if (name := meta.weights_name(tensor)) is None:
            raise CheckpointError(f"{info.path}: tensor {tensor!r} is not part of an EAGLE-3 drafter; convert it again")
        weights[name] = read_tensor(info, tensor)
    for name, values in meta.fc_norm_values(info, config).items():
        weights[name] = np.array(values, np.float32)
    if (divisors := rope_divisors(info, meta.STOCK_ARCH, config.head_dim)) is not None:
        weights["rope_freqs"] = divisors
    _check(config, weights, str(info.path))
    return config, weights


def _check(config: DrafterConfig, weights: Mapping[str, np.ndarray | Lazy], source: str) -> None:
    required, _ = weight_shapes(config)
    # Tensors left to the target are checked when the pair is opened; here zeros without memory replace them, and lazy
    # tensors, whose values are checked when they are written.
    lent = {n: np.broadcast_to(np.float32(0), required[n]) for n in meta.SHARED if n not in weights}
    held = {n: np.broadcast_to(np.float32(0), a.shape) if isinstance(a, Lazy) else a for n, a in weights.items()}
    check_weights(config, {**lent, **held}, source)


def write_drafter(
    path: FilePath,
    config: DrafterConfig,
    weights: Mapping[str, np.ndarray | Lazy],
    *,
    outtype: str = "f32",
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    source: str | None = None,
) -> Path:
    """Write a drafter GGUF; matrices (which may be `Lazy`) become `outtype`, vectors stay f32, d2t int64.

    The architecture name is `eagle3` only if stock llama.cpp computes exactly this drafter. Without `tokenizer.*` keys
    in `metadata` (copy the target's) the file says it has no tokenizer. Half-split q and k rows are reordered.
    """
    _check(config, weights, source or str(path))
    arch = meta.REFSPEC_ARCH if meta.stock_reasons(config) else meta.STOCK_ARCH
    values: dict[str, Any] = {**meta.to_metadata(config), **(metadata or {})}
    values.setdefault("tokenizer.ggml.model", "none")
    if config.feature_norm is FeatureNorm.PER_STATE:
        for i in range(config.n_states):
            norm = weights[f"fc_norm.{i}"]
            values[meta.FC_NORM_KEY.format(i)] = (
                (norm.load() if isinstance(norm, Lazy) else norm).astype(np.float32).tolist()
            )
    tensors = []
    for name, array in weights.items():
        if name.startswith("fc_norm."):
            continue
        if config.rope_style is RopeStyle.HALF_SPLIT and name in meta.ROTATED:
            array = interleaved(array, config.head_dim)
        kind = "i64" if name == "d2t" else outtype_for(array.shape, outtype)
        load = array if isinstance(array, Lazy) else lambda array=array: array  # type: ignore[misc]
        tensors.append(TensorOut(meta.TENSORS[name], array.shape, kind, load))
    return write_gguf(path, arch, values, tensors, progress, source)
