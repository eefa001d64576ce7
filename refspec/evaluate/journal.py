"""A JSONL file of finished pieces of work: a killed run continues from it, a run with other settings is refused.

The first line holds the settings, every further line one finished piece under its key. A line cut short is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from refspec.errors import CheckpointError, UsageError

PART = 1 << 20  # bytes hashed at both ends of a file: weights of a retrained model differ there


class Journal:
    """`done` holds the pieces of the file by key; a context manager that keeps the file open for `add`."""

    def __init__(self, path: str | None, kind: str, settings: Mapping[str, Any]) -> None:
        """Without a path nothing is kept; CheckpointError for another kind of file, UsageError for other settings."""
        self.done: dict[str, dict[str, Any]] = {}
        self._file = None
        if path is None:
            return
        header = {"format": kind, "settings": json.loads(json.dumps(settings))}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            kept = Path(path).read_bytes() if Path(path).exists() else b""
            whole = kept[: kept.rfind(b"\n") + 1]
            rows = [json.loads(line) for line in whole.splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: {error}; name another --out") from None
        if rows:
            _same(path, rows[0], header)
            try:
                self.done = {str(row["key"]): dict(row["value"]) for row in rows[1:]}
            except (TypeError, KeyError, ValueError):
                raise CheckpointError(f"{path}: a line of it is damaged; remove it, or name another --out") from None
        elif kept:
            raise CheckpointError(f"{path}: is not a record of this command; name another --out")
        self._file = open(path, "r+b" if kept else "wb")  # noqa: SIM115 - closed by __exit__
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not rows:
            self._line(header)

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep one finished piece."""
        self.done[key] = value
        self._line({"key": key, "value": value})

    def _line(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def _same(path: str, found: Any, wanted: dict[str, Any]) -> None:
    """UsageError naming the first setting that differs, CheckpointError where there are none."""
    known = isinstance(found, dict) and found.get("format") == wanted["format"]
    if not known or not isinstance(found.get("settings"), dict):
        raise CheckpointError(f"{path}: is not a record of this command; name another --out")
    before, now = found["settings"], wanted["settings"]
    for key in (*now, *(k for k in before if k not in now)):
        if before.get(key) != now.get(key):
            was, given = (json.dumps(values.get(key))[:80] for values in (before, now))
            raise UsageError(f"{path}: was begun with {key} = {was}, now {given}; give the same, or another --out")


def fingerprint(path: str | Path) -> str:
    """16 hex digits that tell a file, or a directory's files, from another of its name: size and both ends, hashed."""
    digest = hashlib.sha256()
    files = sorted(p for p in Path(path).iterdir() if p.is_file()) if Path(path).is_dir() else [Path(path)]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if len(files) > 1 else ''} {size}".encode())
        with open(file, "rb") as data:
            digest.update(data.read(PART))
            data.seek(max(0, size - PART))
            digest.update(data.read(PART))
    return digest.hexdigest()[:16]
