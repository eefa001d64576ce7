"""Files that appear under their names when they are complete, and not before: whatever ends the process.

A write goes to `NAME.PID.partial` and is renamed at its end. What a killed process left of one is locked by nobody and
goes when that file is written next.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from refspec.errors import CheckpointError

try:
    import fcntl
except ImportError:  # on Windows what is left of a killed process stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` that becomes `path` when the block ends well and is removed when it does not; OSError."""
    _sweep(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another process may be writing the same file
    with open(partial, "wb") as lock:
        try:
            _taken(lock)
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """As `whole`; CheckpointError where the file cannot be written."""
    try:
        with whole(path) as partial:
            yield partial
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from None


def _sweep(path: Path) -> None:
    """Remove what nobody is writing any more."""
    for name in glob.glob(glob.escape(str(path)) + ".*.partial") if fcntl is not None else ():
        with suppress(OSError), open(name, "rb") as left:
            if _taken(left):
                os.unlink(name)


def _taken(file: IO[bytes]) -> bool:
    """Whether nobody else held the lock of a file, which is now ours until it is closed."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl is not None
    except OSError:  # held, or a file system without locks
        return False
