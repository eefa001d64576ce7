"""The tree rules behind one set of names: NumPy, native/tree.c by ctypes with its status codes, and the extension as
users run it.

As verify_backends.py, which this builds on.
"""

import ctypes
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from verify_backends import SOURCES, _address, _checked, _pointers, _sampler, compiler

from refspec import native
from refspec.reference import tree_verify
from refspec.reference.sampling import Sampler
from refspec.reference.tree import Tree
from refspec.reference.tree_verify import TreeVerdict

BAD_TREE = -8


@dataclass(frozen=True)
class TreeBackend:
    """One implementation of the tree rules."""

    name: str
    deterministic: Callable[..., TreeVerdict]
    rejection: Callable[..., TreeVerdict]
    without: Callable[..., np.ndarray]


NUMPY = TreeBackend(
    "numpy", tree_verify.verify_tree_deterministic, tree_verify.verify_tree_rejection, tree_verify.without
)
EXTENSION = TreeBackend("extension", native.verify_tree_deterministic, native.verify_tree_rejection, native.without)


def load_c(directory: Path) -> TreeBackend:
    """Compile native/tree.c with what it calls into `directory` and wrap it."""
    library = directory / "tree.so"
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    sources = [str(SOURCES / name) for name in ("tree.c", "sampling.c", "ops.c")]
    subprocess.run([*(compiler() or "cc").split(), *flags, "-o", str(library), *sources, "-lm"], check=True)
    return _wrap(ctypes.CDLL(str(library)))


def _wrap(c: Any) -> TreeBackend:
    size = ctypes.c_size_t

    def prepared(logits: Any, tree: Tree) -> tuple[Any, ...]:
        rows, pointers = _pointers(logits, np.float32)
        draft, parents = np.array(tree.tokens, np.int32), np.array(tree.parents, np.int32)
        tokens, path = np.full(len(rows), -1, np.int32), np.full(len(rows), -1, np.int32)
        p, order = np.empty(len(rows[0])), np.empty(len(rows[0]), np.int32)
        return rows, pointers, draft, parents, tokens, path, p, order

    def deterministic(logits: Any, tree: Tree, sampler: Sampler, coins: Any) -> TreeVerdict:
        rows, pointers, draft, parents, tokens, path, p, order = prepared(logits, tree)
        u = np.array(coins, dtype=np.float64)
        accepted = _checked(
            c.rs_verify_tree_deterministic(
                _address(tokens), _address(path), pointers, _address(draft), _address(parents), _sampler(sampler),
                _address(u),
                _address(p), _address(order), size(len(draft)), size(len(rows[0])),
            )
        )  # fmt: skip
        return TreeVerdict(path[:accepted].tolist(), tokens[: accepted + 1].tolist())

    def rejection(logits: Any, tree: Tree, sampler: Sampler, accept: Any, residual: Any) -> TreeVerdict:
        rows, pointers, draft, parents, tokens, path, p, order = prepared(logits, tree)
        u, v = np.array(accept, dtype=np.float64), np.array(residual, dtype=np.float64)
        distributions = [
            None if law is None else np.array(law, dtype=np.float64) for law in tree.distributions or [None] * len(rows)
        ]
        q_pointers = (ctypes.c_void_p * len(distributions))(
            *[None if law is None else law.ctypes.data for law in distributions]
        )
        q = np.empty_like(p)
        accepted = _checked(
            c.rs_verify_tree_rejection(
                _address(tokens), _address(path), pointers, _address(draft), _address(parents), q_pointers,
                _sampler(sampler),
                _address(u), _address(v), _address(p), _address(q), _address(order), size(len(draft)), size(u.shape[1]),
                size(len(rows[0])),
            )
        )  # fmt: skip
        return TreeVerdict(path[:accepted].tolist(), tokens[: accepted + 1].tolist())

    def without(q: np.ndarray, token: int) -> np.ndarray:
        rest = np.array(q, dtype=np.float64)
        c.rs_without.restype = None
        c.rs_without(_address(rest), ctypes.c_int32(token), size(len(rest)))
        return rest

    return TreeBackend("c", deterministic, rejection, without)
