"""What the bad cases share: a directory, a registry, and ways to load pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.target import LlamaTarget

IDS = [3, 4, 5, 6, 7, 8, 9]
home = Path()  # set by bad_cases.main
Cases = dict[str, tuple[str, str, Callable[[], Any]]]  # name -> (error class, words in the message, what to do)


def registry() -> tuple[Cases, Callable[[str, str, str], Callable[[Callable[[], Any]], Callable[[], Any]]]]:
    """An empty set of cases and the decorator that fills it."""
    cases: Cases = {}

    def case(name: str, error: str, words: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        def add(call: Callable[[], Any]) -> Callable[[], Any]:
            assert name not in cases
            cases[name] = (error, words, call)
            return call

        return add

    return cases, case


def load(path: Path, **settings: Any) -> LlamaTarget:
    return LlamaTarget(path, **{"n_ctx": 64, "n_threads": 1, **settings})


def good(**settings: Any) -> LlamaTarget:
    return load(tiny.target(home / "good.gguf"), capture_layers=tiny.LAYERS, **settings)


def plain(layers: list[int]) -> LlamaTarget:
    return load(tiny.target(home / "good.gguf"), capture_layers=layers)


def run(target: LlamaTarget) -> None:
    target.tokenize("hello")
    target.decode(IDS)


def pair(path: Path, **settings: Any) -> tuple[LlamaTarget, LlamaEagle3Drafter]:
    target = good(**settings)
    return target, LlamaEagle3Drafter(path, target, n_threads=1)


def drafted(path: Path) -> LlamaEagle3Drafter:
    target, drafter = pair(path)
    target.decode(IDS)
    drafter.extend(np.array([*IDS[1:], 5]), target.features())
    drafter.draft(4)
    drafter.keep_alive = target  # type: ignore[attr-defined]
    return drafter


def raw(name: str, content: bytes) -> Path:
    path = home / name
    path.write_bytes(content)
    return path


def with_nan(a: np.ndarray) -> np.ndarray:
    """A copy with one NaN."""
    a = a.copy()
    a.flat[1] = np.nan
    return a
