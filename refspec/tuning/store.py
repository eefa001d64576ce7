"""What `refspec tune` measured, kept in the user's cache directory: one file per target, drafter and machine.

A record is stale, and then not used, when a model file has another size or time of change, when llama.cpp is another
version, or when the machine has another processor. Not a measurement: `evaluate/tune.py` makes records.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refspec.adaptive.costs import Costs
from refspec.errors import UsageError
from refspec.gguf.complete import whole
from refspec.gguf.recast import cache_directory

FORMAT = 4  # of the record; another one is stale


class Found(NamedTuple):
    """A record that fits, or none and why (empty when nothing was ever stored)."""

    record: dict[str, Any] | None
    why: str

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that were chosen, of a record that fits."""
        return dict(self.record["chosen"]) if self.record else {}

    def costs(self) -> dict[str, Any] | None:
        """What steps cost with them, as `adaptive.costs.Costs.of` reads it."""
        return dict(self.record["costs"]) if self.record else None


NOT_TUNED = Found(None, "")
Name = str | os.PathLike[str] | None

PARTS = {"format": "refspec", "engine": "llama.cpp", "machine": "the machine", "files": "a model file"}
KERNELS = {"auto": "refspec's kernels", "repack": "repacked weights", "stored": "weights as stored"}


# What may be chosen, and of which values.
CHOSEN: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("threads", "threads_batch", "threads_draft"), lambda n: type(n) is int and 1 <= n <= 512),
    **dict.fromkeys(("pair_rows", "lookup"), lambda on: type(on) is bool),
    "draft_max": lambda n: type(n) is int and 0 <= n <= 64, "matmul": lambda name: name in KERNELS,
    "flash_attn": lambda name: name in ("off", "on", "auto"), "kv_type": lambda name: name in ("f32", "f16", "q8_0"),
}  # fmt: skip
LARGEST, LONGEST = 1e12, 1 << 16  # of a number and of a list that was measured or learned


def sound(state: Any) -> Any:
    """What was stored, itself; ValueError where a number or a size in it cannot have been measured or learned."""
    if isinstance(state, (dict, list)) and len(state) > LONGEST:
        raise ValueError(f"{len(state)} values are too many")
    for value in (*state, *state.values()) if isinstance(state, dict) else state if isinstance(state, list) else ():
        sound(value)
    if isinstance(state, (int, float)) and not abs(state) <= LARGEST:
        raise ValueError(f"{state} is no number")
    if isinstance(state, str) and state.lstrip("-").isdigit() and abs(int(state[:20])) > LONGEST:
        raise ValueError(f"{state[:20]} is no size")
    return state


def described(chosen: Mapping[str, Any]) -> str:
    """Settings in one line."""
    parts = []
    if "threads" in chosen:
        several = chosen.get("threads_batch", chosen["threads"])
        parts.append(f"threads {chosen['threads']} for one token, {several} for several")
    if "flash_attn" in chosen:
        parts.append(f"flash attention {chosen['flash_attn']}")
    if "kv_type" in chosen:
        parts.append(f"{chosen['kv_type']} cache")
    if "matmul" in chosen:
        parts.append(KERNELS[chosen["matmul"]])
    if chosen.get("pair_rows"):
        parts.append("single tokens in pairs")
    if "draft_max" in chosen:
        parts.append(f"draft length {chosen['draft_max']}")
    return ", ".join(parts)


def identity(model: Name, drafter: Name) -> dict[str, Any]:
    """What a record holds for: the files as they are, the engine, the machine."""
    from refspec.llama import api

    files = [_file(name) for name in (model, drafter)]
    return {"format": FORMAT, "engine": api.VERSION, "machine": machine(), "files": files}


def machine() -> str:
    """The processor by name, and how many of it this process may use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    return f"{platform.machine()} {name} x {len(affinity(0)) if affinity else os.cpu_count()}"


def path(model: Name, drafter: Name) -> Path:
    """Where the record of a pair on this machine is."""
    key = json.dumps([machine(), *(None if name is None else os.path.realpath(name) for name in (model, drafter))])
    return cache_directory() / f"tune-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def save(model: Name, drafter: Name, record: dict[str, Any]) -> Path:
    """Store a record; returns its file. Raises UsageError when it cannot be written."""
    out = path(model, drafter)
    try:
        write(out, {"identity": identity(model, drafter), **record})
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error}); set REFSPEC_CACHE") from None
    return out


def write(out: Path, record: dict[str, Any]) -> None:
    """Write a file as a whole or not at all; OSError when it cannot be written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        partial.write_text(json.dumps(record), "utf-8")


def find(model: Name, drafter: Name) -> Found:
    """The record of a pair, if there is one and it still holds."""
    file = path(model, drafter)
    try:
        record = json.loads(file.read_text("utf-8"))
        stored = record["identity"]
        now = identity(model, drafter)
        for key, what in PARTS.items():
            if stored.get(key) != now[key]:
                return Found(None, f"what `refspec tune` stored is stale: {what} has changed; run it again")
        for name, value in record["chosen"].items():
            if not CHOSEN[name](value):
                raise ValueError(name)
        if not record["costs"]["target"]:
            raise ValueError("costs")
        Costs.of(sound(record["costs"]))
    except (FileNotFoundError, NotADirectoryError):
        return NOT_TUNED
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return Found(None, f"{file} is damaged; run `refspec tune` again")
    return Found(record, "")


def _file(name: Name) -> list[Any] | None:
    if name is None:
        return None
    about = os.stat(name)
    return [os.path.realpath(name), about.st_size, about.st_mtime_ns]
