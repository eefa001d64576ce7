"""The draft vocabulary of a checkpoint: d2t as absolute target ids, however it is stored, and heads that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from refspec.convert.report import Resolved
from refspec.errors import CheckpointError, UsageError
from refspec.gguf.lazy import Lazy

OFFSETS, ABSOLUTE = "offsets", "absolute"


def absolute_d2t(
    d2t: np.ndarray, t2d: np.ndarray | None, vocab_size: int, where: str, given: Any = None
) -> tuple[np.ndarray, str]:
    """Absolute ascending target ids [D] and how they were stored: offsets (id = j + d2t[j]) or absolute.

    Only a reading that gives ascending ids in range, exactly those t2d marks, is valid; `CheckpointError` if none is,
    or if two are and `given` (--d2t) does not decide.
    """
    if given not in (None, OFFSETS, ABSOLUTE):
        raise UsageError(f"--d2t {given!r} is unknown; choose one of {OFFSETS}, {ABSOLUTE}")
    if d2t.ndim != 1 or not len(d2t) or d2t.dtype.kind not in "iu":
        raise CheckpointError(f"{where}: d2t is {list(d2t.shape)} of {d2t.dtype}, expected a list of whole numbers")
    if t2d is not None and (t2d.shape != (vocab_size,) or int(t2d.astype(bool).sum()) != len(d2t)):
        marked = int(t2d.astype(bool).sum())
        raise CheckpointError(
            f"{where}: t2d marks {marked} of {t2d.size} tokens, but d2t has {len(d2t)} and the vocabulary {vocab_size}"
        )
    ids = d2t.astype(np.int64)
    readings = {OFFSETS: np.arange(len(ids)) + ids, ABSOLUTE: ids}
    valid = {
        how: r for how, r in readings.items()
        if r.min() >= 0 and r.max() < vocab_size and (np.diff(r) > 0).all()
        and (t2d is None or t2d.astype(bool)[r].all())
    }  # fmt: skip
    if given is not None:
        valid = {how: r for how, r in valid.items() if how == given}
    if not valid:
        raise CheckpointError(f"{where}: d2t does not map {len(d2t)} draft tokens to ascending ids below {vocab_size}"
                              + ("" if t2d is None else " that t2d marks") + "; the checkpoint is damaged")  # fmt: skip
    arrays = list(valid.values())
    if len(arrays) == 2 and not np.array_equal(arrays[0], arrays[1]):
        raise CheckpointError(f"{where}: without t2d, d2t can be offsets or ids; decide with --d2t offsets|absolute")
    how = next(iter(valid))
    return valid[how], how


def check_identity(d2t: np.ndarray | None, t2d: np.ndarray | None, where: str) -> None:
    """A full draft vocabulary may carry tables that say so (SpecForge does), and no others."""
    if d2t is not None and d2t.any() and not np.array_equal(d2t, np.arange(len(d2t))):
        raise CheckpointError(f"{where}: d2t is not the identity, but draft_vocab_size is vocab_size; correct the size")
    if t2d is not None and not t2d.all():
        raise CheckpointError(f"{where}: t2d leaves tokens out, but draft_vocab_size is vocab_size; correct the size")


def check_head_rows(head: Lazy, ids: np.ndarray, where: str) -> None:
    """Refuse a head whose rows were picked with the offsets, as TorchSpec did: neighbours repeat where ids run on."""
    offsets = ids - np.arange(len(ids))
    same = np.flatnonzero((np.diff(offsets) == 0) & (offsets[1:] != 0))[:32]
    pairs = [head.rows(int(j), int(j) + 2) for j in same if j + 2 <= head.shape[0]]
    if len(pairs) > 1 and all(np.array_equal(a, b) and a.any() for a, b in pairs):
        raise CheckpointError(
            f"{where}: rows {same[0]} and {same[0] + 1} of lm_head are equal, as are all that d2t's offsets repeat: "
            "the head was pruned with offsets for ids (a TorchSpec bug); prune the full checkpoint again"
        )


def resolved(how: str, t2d: np.ndarray | None, given: Any) -> Resolved:
    """How d2t was read and what confirms it."""
    if given is not None:
        return Resolved(how, "override --d2t")
    return Resolved(how, "the only reading t2d confirms" if t2d is not None else "the only reading in order and range")
