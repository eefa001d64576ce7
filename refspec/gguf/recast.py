"""The same model with other weight types: F32 for reproducible runs, Q8_0 and Q4_0 to measure their cost and gain.

Not a converter: everything but the weight type is copied. `recast` keeps its result in the user's cache directory,
named after the content it came from; `write_as` writes where the user says.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from refspec.errors import CheckpointError, UsageError
from refspec.gguf import io
from refspec.gguf.blocks import Progress
from refspec.gguf.header import FilePath, GgufInfo, GgufSource

FILE_TYPE = "general.file_type"
LIMIT = 4 << 30  # bytes; a larger file should be the user's decision, made with a converter


def cache_directory() -> Path:
    """Where recast models are kept: REFSPEC_CACHE, or the platform's cache directory.

    Without a home directory it is one that cannot be made: what is kept only to save time is then not kept.
    """
    if named := os.environ.get("REFSPEC_CACHE"):
        return Path(named)
    given = Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME") or "")
    if given.is_absolute() and sys.platform != "darwin":
        return given / "refspec"
    try:
        home = Path.home()
    except RuntimeError:
        return Path(os.devnull) / "refspec"
    if os.name == "nt":
        return home / "refspec"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "refspec"


def is_f32(path: GgufSource) -> bool:
    """Whether every floating-point tensor of a GGUF file is F32."""
    return all(t.type in ("F32", "I64", "I32") for t in io.read_gguf_header(path).tensors.values())


def recast(path: GgufSource, outtype: str) -> Path:
    """A copy of a GGUF file with its matrices as `outtype` (f32 f16 bf16 q8_0 q4_0), from the cache if it is there.

    F16, BF16 and quantized weights become F32 exactly. Raises CheckpointError for the file, UsageError above 4 GiB.
    """
    info = io.read_gguf_header(path)
    weights = sum(4 * math.prod(t.shape) for t in info.tensors.values())
    if weights > LIMIT:
        raise UsageError(
            f"{info.path}: with {outtype} weights it could take {weights / 2**30:.1f} GiB, refspec recasts up to "
            f"{LIMIT >> 30}; convert it with llama.cpp's llama-quantize"
        )
    out = cache_directory() / f"{info.path.stem}-{_digest(info.path)}-{outtype}.gguf"
    with suppress(CheckpointError):  # another file under its name is written again
        held = io.read_gguf_header(out).tensors
        if {name: t.shape for name, t in held.items()} == {name: t.shape for name, t in info.tensors.items()}:
            return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out.parent}: cannot be made ({error.strerror or error}); name a directory to write to with REFSPEC_CACHE"
        ) from None
    return write_as(info, out, outtype)


def write_as(info: GgufInfo, out: FilePath, outtype: str, progress: Progress | None = None) -> Path:
    """Write a copy of a GGUF file to `out` with the types of `io.outtype_for`.

    Raises CheckpointError for the file and for `out`, UsageError for an unknown type.
    """
    tensors = [
        io.TensorOut(
            t.name, t.shape, "i64" if t.type == "I64" else io.outtype_for(t.shape, outtype),
            lambda name=t.name: io.read_tensor(info, name),  # type: ignore[misc]
        )
        for t in info.tensors.values()
    ]  # fmt: skip
    metadata = io.copy_metadata(info, "")
    if FILE_TYPE in metadata:
        metadata[FILE_TYPE] = io.Typed(io.FILE_TYPES[outtype], *info.value_types[FILE_TYPE])
    return io.write_gguf(out, info.arch, metadata, tensors, progress)


def _digest(path: Path) -> str:
    """Twelve hexadecimal digits of the file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
