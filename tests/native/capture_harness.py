"""rs_capture for tests: the struct filled from Python, its errors turned into exceptions.

The engine has its own, on llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refspec.native import ffi, lib


class CaptureError(Exception):
    """An rs_capture_error, or fewer rows than expected."""


class CaptureFunctions(NamedTuple):
    """Addresses of the four ggml functions that EvalCapture calls."""

    get_name: int  # ggml_get_name
    tensor_get: int  # ggml_backend_tensor_get
    nelements: int  # ggml_nelements
    nbytes: int  # ggml_nbytes


class EvalCapture:
    """Copies tensors of a graph by name while it runs;

    `callback` and `user_data` are what the engine gives to the context.
    """

    ERRORS = (
        "",
        "got more rows than the {capacity} it has room for",
        "is not float32",
        "has a size that is no multiple of {width}",
    )

    def __init__(self, names: Sequence[str], width: int, capacity: int, functions: CaptureFunctions) -> None:
        """Buffers for `capacity` rows of `width` floats per name."""
        self.names, self.width, self.capacity = tuple(names), width, capacity
        self.buffers = [np.zeros((capacity, width), dtype=np.float32) for _ in names]  # n_states x [capacity, W]
        kept = [ffi.new("char[]", name.encode()) for name in names]
        arrays = [ffi.from_buffer("float[]", buffer) for buffer in self.buffers]
        self._rows = ffi.new("size_t[]", len(names))
        names_c, buffers_c = ffi.new("const char *[]", kept), ffi.new("float *[]", arrays)
        self._struct = ffi.new("rs_capture *")
        s = self._struct
        s.get_name = ffi.cast("const char *(*)(const struct ggml_tensor *)", functions.get_name)
        s.tensor_get = ffi.cast("void (*)(const struct ggml_tensor *, void *, size_t, size_t)", functions.tensor_get)
        s.nelements = ffi.cast("int64_t (*)(const struct ggml_tensor *)", functions.nelements)
        s.nbytes = ffi.cast("size_t (*)(const struct ggml_tensor *)", functions.nbytes)
        s.names, s.buffers, s.rows = names_c, buffers_c, self._rows
        s.n_states, s.width, s.capacity = len(names), width, capacity
        self._alive: tuple[Any, ...] = (kept, arrays, names_c, buffers_c)
        self.reset()

    @property
    def callback(self) -> int:
        """Address of the function for `cb_eval`."""
        return int(ffi.cast("intptr_t", ffi.addressof(lib, "rs_eval_callback")))

    @property
    def user_data(self) -> int:
        """Address for `cb_eval_user_data`; valid while this object lives."""
        return int(ffi.cast("intptr_t", self._struct))

    def reset(self) -> None:
        """Forget the rows and the error of the last decode; call it before each one."""
        lib.rs_capture_reset(self._struct)

    def states(self, rows: int) -> list[np.ndarray]:
        """The captured states of a decode of `rows` rows: n_states views [T, W], valid until reset.

        Raises CaptureError.
        """
        if error := self._struct.error:
            what = self.ERRORS[error].format(capacity=self.capacity, width=self.width)
            raise CaptureError(f"{self.names[self._struct.error_state]!r} {what}")
        for name, seen in zip(self.names, self._rows, strict=True):
            if seen != rows:
                raise CaptureError(
                    f"{name!r} gave {seen} rows for a decode of {rows}; this architecture names it otherwise"
                )
        return [buffer[:rows] for buffer in self.buffers]
