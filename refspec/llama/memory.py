"""How much memory this process may still use: of the machine, of its container, of its own limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# (limit, use, the part of it that is the cache of files) of a control group, version 2 and version 1
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available() -> int | None:
    """Bytes that are free without swapping, the cache of files included; None where the system does not say."""
    return min((*_machine(), *_containers(), *_own()), default=None)


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
