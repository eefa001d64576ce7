"""Whether the tensors of a checkpoint have the shapes that its config.json says, in the checkpoint's own names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refspec.convert.shared_tensors import Tensors
from refspec.errors import CheckpointError, ShapeError
from refspec.gguf.drafter_meta import SHARED
from refspec.reference.config import DrafterConfig, weight_shapes


def check_tensors(c: DrafterConfig, tensors: Tensors, names: Mapping[str, str], where: str) -> None:
    """Raise ShapeError for a shape, CheckpointError for a missing or unused tensor or a vector that is not finite.

    `names`: refspec's name -> the stored one. Matrices are not read here; their values are looked at when they are
    written.
    """
    required, optional = weight_shapes(c)
    for ours, shape in (required | optional).items():
        if (held := tensors.get(ours)) is None:
            if ours in required and ours not in SHARED:
                raise CheckpointError(f"{where}: no tensor for {ours!r} {list(shape)}; get the checkpoint again")
            continue
        theirs = names.get(ours, ours)
        if held.shape != shape:
            raise ShapeError(f"{where}: tensor {theirs!r} is {list(held.shape)}, config.json says {list(shape)}")
        if isinstance(held, np.ndarray) and held.dtype.kind == "f" and not np.isfinite(held).all():
            raise CheckpointError(f"{where}: tensor {theirs!r} holds NaN or infinite values; the checkpoint is damaged")
    if unused := sorted(tensors.keys() - required.keys() - optional.keys()):
        theirs = names.get(unused[0], unused[0])
        raise CheckpointError(f"{where}: tensor {theirs!r} has no use with these switches; --ignore {theirs} if right")
