"""Arrays written as a safetensors file, damaged values included, which the writer of `refspec export` refuses."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refspec.convert.checkpoint_out import bfloat16
from refspec.convert.safetensors_io import DTYPES

NAMES = {kind: name for name, kind in DTYPES.items() if name != "BF16"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str | None = None) -> Path:
    """Write `tensors`; `dtype` F32, F16 or BF16 converts the float ones."""
    header, blobs, at = {}, [], 0
    for name, array in tensors.items():
        kind = dtype if dtype and array.dtype.kind == "f" else NAMES[array.dtype]
        data = bfloat16(array) if kind == "BF16" else np.ascontiguousarray(array, DTYPES[kind])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + data.nbytes]}
        blobs.append(data.tobytes())
        at += data.nbytes
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return Path(path)
