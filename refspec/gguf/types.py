"""ggml's weight types by number: name, numbers in a block, bytes of a block. Reading and writing them is `io.py`."""

from __future__ import annotations

from typing import NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType


class WeightType(NamedTuple):
    """One type; a row of a matrix is a whole number of blocks."""

    id: int
    name: str
    block: int
    nbytes: int


def weight_type(type_id: int) -> WeightType | None:
    """The type `type_id`, None if the gguf package does not know it."""
    try:
        kind = GGMLQuantizationType(type_id)
        return WeightType(type_id, kind.name, *GGML_QUANT_SIZES[kind])
    except (ValueError, KeyError):
        return None
