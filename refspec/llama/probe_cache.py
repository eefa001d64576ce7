"""What is slow to find out about this llama.cpp on this processor, found once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from refspec.gguf.complete import whole
from refspec.gguf.recast import cache_directory
from refspec.llama import api

Answer = TypeVar("Answer", bool, int)


def ask_once(question: str, about: Sequence[object], ask: Callable[[], Answer], kind: type[Answer]) -> Answer:
    """What `ask` answered the first time for this library, processor and `about` (JSON), while the file lasts."""
    answer = cache_directory() / f"{question}-{_key(about)}.json"
    try:
        known = json.loads(answer.read_text("utf-8"))["answer"]
        if type(known) is kind:
            return known
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    found = ask()
    try:
        answer.parent.mkdir(parents=True, exist_ok=True)
        with whole(answer) as partial:
            partial.write_text(json.dumps({"answer": found}), "utf-8")
    except OSError:
        pass  # it is asked again next time
    return found


def _key(about: Sequence[object]) -> str:
    """A hash of the library as it is on disk, the processor's flags, and what is asked about."""
    path = api.library_path()
    known: list[object] = [path, list(about)]
    try:
        state = os.stat(path)
        known += [state.st_size, state.st_mtime_ns]
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known += sorted({line for line in lines if line.startswith(("flags", "model name"))})
    except OSError:
        pass
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
