"""Finds and loads the compiled module refspec._native; the only file that imports it.

REFSPEC_BACKEND=numpy|c decides; unset takes C if it is built, and says so on stderr if it is not. REFSPEC_NATIVE_PATH
names another build of the module (the sanitizer run uses it). Decided once, at import. An error is raised by `check` or
by the first use, so that `import refspec` works and the command line can print one line.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

import numpy as np

from refspec.errors import BackendError, RefspecError, ShapeError
from refspec.reference.ops import Array

BACKENDS = ("numpy", "c")


def _load(wanted: str, path: str) -> ModuleType | None:
    """The compiled module; None when NumPy is wanted or nothing is compiled; `path` names another build."""
    if wanted not in ("", *BACKENDS):
        raise RefspecError(f"REFSPEC_BACKEND = {wanted!r} is unknown; set it to {' or '.join(BACKENDS)}, or unset it")
    if wanted == "numpy":
        return None
    try:
        if not path:
            return importlib.import_module("refspec._native")
        loader = ExtensionFileLoader("refspec._native", path)
        module = module_from_spec(ModuleSpec(loader.name, loader, origin=path))
        loader.exec_module(module)
        return module
    except ImportError as error:
        asked = f"REFSPEC_NATIVE_PATH = {path}" if path else "REFSPEC_BACKEND = c" if wanted else ""
        if asked:  # falling back would hide the reason
            raise BackendError(f"{asked}: {error}; build the module with: python native/build_ffi.py") from None
        print(f"refspec: running on NumPy ({error}); for speed: python native/build_ffi.py", file=sys.stderr)
        return None


class _Refused:
    """In place of a C module that was asked for and cannot be loaded: any use raises the reason."""

    def __init__(self, reason: RefspecError) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise self._reason


_module: ModuleType | None = None
ffi: Any = None
lib: Any = None
backend = "numpy"
try:
    _module = _load(os.environ.get("REFSPEC_BACKEND", ""), os.environ.get("REFSPEC_NATIVE_PATH", ""))
    if _module is not None:
        ffi, lib, backend = _module.ffi, _module.lib, "c"
except RefspecError as _reason:
    ffi, lib, backend = _Refused(_reason), _Refused(_reason), "refused"


def check() -> None:
    """Raise now what the first use of a refused backend would raise; for programs, before their work starts."""
    if backend == "refused":
        _ = lib.rs_build


def path() -> str:
    """The file of the compiled module."""
    assert _module is not None and _module.__spec__ is not None
    return str(_module.__spec__.origin)


def floats(x: Array) -> Array:
    """x as C-contiguous float32, itself when it already is."""
    return np.ascontiguousarray(x, dtype=np.float32)


def to_c(x: np.ndarray[Any, Any]) -> Any:
    """A C pointer into a contiguous array, which it keeps alive; C writes only to arrays made in this package."""
    return ffi.from_buffer(_C_TYPES[x.dtype.char], x)


_C_TYPES = {
    np.dtype(np.float32).char: "float[]",
    np.dtype(np.float64).char: "double[]",
    np.dtype(np.int64).char: "int64_t[]",
    np.dtype(np.int32).char: "int32_t[]",
}


def require(condition: bool, message: str) -> None:
    """Raise ShapeError unless `condition`: C trusts its sizes, so every shape is checked on this side."""
    if not condition:
        raise ShapeError(message)
