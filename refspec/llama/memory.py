"""How much memory this process may still use (of the machine, its container, its own limit), and what a cache takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from refspec.gguf.header import GgufInfo

BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5}  # of one value in a key/value cache
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# (limit, use, the part of it that is the cache of files) of a control group, version 2 and version 1
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available() -> int | None:
    """Bytes that are free without swapping, the cache of files included; None where the system does not say."""
    return min((*_machine(), *_containers(), *_own()), default=None)


def position_bytes(info: GgufInfo, kv_type: str) -> int:
    """Bytes that one position takes in the key/value cache, at least: the rows of each layer's key and value matrices.

    0 where the tensors do not show it.
    """
    rows, mixed = dict[int, int](), set[int]()
    prefix = "eagle3" if info.arch == "refspec-eagle3" else info.arch
    layers, later, shared, heads = (
        n if type(n := info.metadata.get(f"{prefix}.{key}")) is int else 0
        for key in ("block_count", "nextn_predict_layers", "attention.shared_kv_layers", "attention.head_count")
    )
    for name, tensor in info.tensors.items():
        if (found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) is None:
            continue
        layer, kind = int(found[1]), found[2]
        if kind.startswith("ssm_"):
            mixed.add(layer)
        elif kind in ("attn_k", "attn_v", "attn_kv_a_mqa"):
            rows[layer] = rows.get(layer, 0) + tensor.shape[0]
        elif kind == "attn_qkv" and heads and layer not in mixed:
            head = info.metadata.get(f"{prefix}.attention.key_length")
            queries = heads * head if type(head) is int else tensor.shape[-1]
            rows[layer] = max(tensor.shape[0] - queries, 0)
    own = [n for layer, n in rows.items() if layer not in mixed and layer < layers - later - shared]
    return int(sum(own) * BITS[kv_type] / 8)


def _machine() -> Iterator[int]:
    if (kib := _field(PROC / "meminfo", "MemAvailable:")) is not None:
        yield kib << 10


def _containers() -> Iterator[int]:
    """What every control group above this process leaves of its limit."""
    for line in (_read(PROC / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        here = root / path.lstrip("/")
        # inside a container the path may be that of the host; its own group is then the root
        for folder in [here, *here.parents] if here.is_dir() else [root]:
            yield from _group(folder, *FILES[bool(controllers)])
            if folder == root:
                break


def _group(folder: Path, limit: str, use: str, cache: str) -> Iterator[int]:
    most, used = _read(folder / limit), _read(folder / use)
    if most is not None and used is not None and most.strip().isdigit():
        yield max(int(most) - int(used) + (_field(folder / "memory.stat", cache) or 0), 0)


def _own() -> Iterator[int]:
    """What is left of the limit of this process's addresses (ulimit -v)."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY and (kib := _field(PROC / "self/status", "VmSize:")) is not None:
        yield max(most - (kib << 10), 0)


def _field(file: Path, name: str) -> int | None:
    """The number after a name in a file of names and numbers."""
    for line in (_read(file) or "").splitlines():
        if line.startswith(name):
            return int(line[len(name) :].split()[0])
    return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        return None
