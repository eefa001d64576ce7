"""NumPy = C = llama.cpp: one EAGLE-3 drafter per switch combination, the same rows through all of them, and how far
apart they are.

C is asked twice: its kernels one by one under the reference, and as the drafter that refspec runs tiny files on
("own").

Run as a program (`make agree`) it prints one table and exits with 1 when a difference exceeds the tolerance. The
drafters are tiny and random, written for llama.cpp by tests/engine/tiny.py and read back by refspec; F32 weights, F32
cache, flash attention off, so that only the order of float32 sums differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

import tiny

from refspec import native
from refspec.gguf.io import read_drafter
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.native_eagle3 import NativeEagle3Drafter
from refspec.llama.target import LlamaTarget
from refspec.reference import ops
from refspec.reference.config import FeatureNorm, Feedback, Residual
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.eagle3_forward import output_norm

PREFIX, DEPTH = 40, 6
# Logits reach about 20; two float32 engines that add in different orders were seen 1e-5 apart after six chained rows.
TOLERANCE = 1e-4
STRICT: dict[str, Any] = dict(kv_type="f32", flash_attn="off", n_threads=1)


class Chain(NamedTuple):
    """What one engine made of the prefix and DEPTH chained rows."""

    logits: np.ndarray  # [DEPTH, D]
    states: np.ndarray  # [DEPTH, H], before the final norm
    tokens: list[int]  # [DEPTH] drafted


class Row(NamedTuple):
    """One line of the table: the largest absolute difference of logits, and whether all drafted the same tokens."""

    feature_norm: str
    feedback: str
    residual: str
    numpy_c: float | None  # None when the C module is not built
    numpy_llama: float
    c_llama: float | None
    own_llama: float | None  # logits only
    same_tokens: bool

    @property
    def worst(self) -> float:
        """The largest of them, NaN if one is NaN."""
        return float(
            np.max([x for x in (self.numpy_c, self.numpy_llama, self.c_llama, self.own_llama) if x is not None])
        )


def by_llama(path: Path, target: LlamaTarget, tokens: np.ndarray, features: np.ndarray) -> Chain:
    """The chain llama.cpp runs, with refspec's norms around it."""
    drafter = LlamaEagle3Drafter(path, target, **STRICT)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    drafter.probe = lambda depth, logits, state: seen.append((logits, state))
    drafter.extend(tokens, features)
    drafted = drafter.draft(DEPTH).tokens.tolist()
    drafter.close()
    ids = read_drafter(path)[1].get("d2t", np.arange(tiny.V))
    return Chain(np.array([logits[ids] for logits, _ in seen]), np.array([state for _, state in seen]), drafted)


def by_reference(path: Path, backend: Any, tokens: np.ndarray, features: np.ndarray, forced: list[int]) -> Chain:
    """The same by the reference on `backend`, along the tokens llama.cpp drafted."""
    config, weights = read_drafter(path)
    drafter = Eagle3Drafter(config, weights, backend)
    drafter.extend(tokens, features)
    drafted = drafter.draft(DEPTH).tokens.tolist()
    drafter.reset()
    rows = drafter.forward_rows(tokens, features, is_target_feature=True)
    logits, states = [rows.logits[-1]], [rows.h[-1]]
    for token in forced[:-1]:
        rows = drafter.forward_rows(np.array([token]), rows.state_out[-1:], is_target_feature=False)
        logits.append(rows.logits[-1])
        states.append(rows.h[-1])
    assert config.feedback is not Feedback.POST_NORM or np.array_equal(
        rows.state_out, output_norm(config, drafter.weights, rows.h, backend)
    ), "the chained state is not the normed one"
    return Chain(np.array(logits), np.array(states), drafted)


def by_own(path: Path, target: LlamaTarget, tokens: np.ndarray, features: np.ndarray, forced: list[int]) -> Chain:
    """The same by NativeEagle3Drafter; states are not kept there."""
    drafter = NativeEagle3Drafter(path, target)
    drafter.extend(tokens, features)
    drafted = drafter.draft(DEPTH).tokens.tolist()
    drafter._chain.restart()
    logits = [drafter._chain.logits().copy()]
    for i, token in enumerate(forced[:-1]):
        assert drafter._chain.follow(token, len(tokens) + i) == native.lib.RS_OK
        logits.append(drafter._chain.logits().copy())
    return Chain(np.array(logits), np.zeros((DEPTH, 0), np.float32), drafted)


def apart(a: Chain, b: Chain) -> float:
    """Largest absolute difference of logits and, where both kept them, states."""
    states = np.abs(a.states - b.states).max() if a.states.size and b.states.size else 0.0
    return max(float(np.abs(a.logits - b.logits).max()), float(states))


def table(directory: Path) -> Iterator[Row]:
    """One Row per switch combination, on features captured from a running target."""
    target = LlamaTarget(tiny.target(directory / "target.gguf"), n_ctx=64, capture_layers=tiny.LAYERS, **STRICT)
    ids = np.random.default_rng(11).integers(3, tiny.V, PREFIX + 1)
    target.decode(ids[:-1], logits="none")
    tokens, features = ids[1:], target.features().copy()
    for norm, feedback, residual in product(FeatureNorm, Feedback, Residual):
        switches = dict(feature_norm=norm.value, feedback=feedback.value, residual=residual.value)
        path = tiny.drafter(directory / "drafter.gguf", **switches)
        llama = by_llama(path, target, tokens, features)
        numpy = by_reference(path, ops, tokens, features, llama.tokens)
        in_c = by_reference(path, native, tokens, features, llama.tokens) if native.backend == "c" else None
        own = by_own(path, target, tokens, features, llama.tokens) if native.backend == "c" else None
        yield Row(
            **switches,
            numpy_c=apart(numpy, in_c) if in_c else None,
            numpy_llama=apart(numpy, llama),
            c_llama=apart(in_c, llama) if in_c else None,
            own_llama=apart(own, llama) if own else None,
            same_tokens=all(chain.tokens == llama.tokens for chain in (numpy, in_c, own) if chain),
        )
    target.close()


def main() -> int:
    """Print the table; 1 when an engine disagrees."""
    print(
        f"One drafter per row: {PREFIX} rows from captured features, {DEPTH} chained rows; "
        "largest difference of logits and states"
    )
    print(
        f"{'feature norm':<13}{'feedback':<11}{'residual':<10}{'NumPy - C':>11}{'NumPy - llama.cpp':>19}"
        f"{'C - llama.cpp':>15}{'own - llama.cpp':>17}  tokens"
    )
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for row in table(Path(directory)):
            rows.append(row)
            differences = zip((row.numpy_c, row.numpy_llama, row.c_llama, row.own_llama), (11, 19, 15, 17), strict=True)
            numbers = "".join(f"{'-' if x is None else format(x, '.1e'):>{width}}" for x, width in differences)
            tokens = "equal" if row.same_tokens else "DIFFER"
            print(f"{row.feature_norm:<13}{row.feedback:<11}{row.residual:<10}{numbers}  {tokens}")
    worst, good = float(np.max([row.worst for row in rows])), all(row.same_tokens for row in rows)
    passed = good and worst <= TOLERANCE
    print(f"largest difference {worst:.1e}, tolerance {TOLERANCE:.0e}: {'agreed' if passed else 'NOT AGREED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
