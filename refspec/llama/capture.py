"""Two ways to take hidden states out of a running target: llama.cpp's staged layer inputs, or its eval callback.

Both give boundary k, the residual stream that enters layer k, for every token of a decode, output or not, across
micro-batches, in order. Staged is cheaper and needs an architecture that marks its layer inputs; the callback finds the
tensor `l_out-(k-1)` in any graph that names it. Legend: T tokens of a decode, N captured states, Ht target width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refspec import native
from refspec.errors import BackendError
from refspec.llama import api

Floats = npt.NDArray[np.float32]


class Views:
    """NumPy views of llama.cpp's buffers; making one costs microseconds, and the addresses rarely change."""

    def __init__(self) -> None:
        self._views: dict[tuple[int, int, int], Floats] = {}

    def at(self, address: int, rows: int, width: int) -> Floats:
        """float32 [rows, width] at an address that must stay valid while the view is read."""
        key = (address, rows, width)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= 256:  # stale addresses, after llama.cpp has grown a buffer
                self._views.clear()
            flat = (ctypes.c_float * (rows * width)).from_address(address)
            view = self._views[key] = np.ctypeslib.as_array(flat).reshape(rows, width)
        return view


class Capture(Protocol):
    """One way of capturing; `collect` is called after every successful decode of T tokens."""

    callback: Any  # evaluation callback for the context's parameters, or None
    callback_data: int

    def switch(self, handle: int, on: bool) -> None: ...
    def begin(self) -> None: ...
    def collect(self, handle: int, out: Floats) -> None: ...


class StagedCapture:
    """Layer inputs through llama.cpp's staged API."""

    callback: Any = None
    callback_data = 0

    def __init__(self, layers: Sequence[int], views: Views) -> None:
        self._layers, self._views = tuple(layers), views

    def switch(self, handle: int, on: bool) -> None:
        """Ask for the layer inputs, or no longer."""
        for k in self._layers:
            api.set_layer_input(handle, k, on)

    def begin(self) -> None:
        """Nothing to do: the buffers are llama.cpp's."""

    def collect(self, handle: int, out: Floats) -> None:
        """Copy the states of the last decode into out [T, N, Ht]."""
        rows, _, width = out.shape
        for i, k in enumerate(self._layers):
            out[:, i] = self._views.at(api.get_layer_input(handle, k), rows, width)


class CallbackCapture:
    """`l_out-N` tensors through the evaluation callback: in C where the module is built, in Python otherwise."""

    def __init__(
        self, layers: Sequence[int], width: int, capacity: int, path: Path, *, use_c: bool | None = None
    ) -> None:
        self._names = [b"l_out-%d" % (k - 1) for k in layers]
        self._wanted = self._names
        self._width, self._capacity, self._path = width, capacity, path
        self._buffers = np.empty((len(self._names), capacity, width), np.float32)
        self._rows = [0] * len(self._names)
        self._problem: BaseException | None = None
        ggml = api.ggml_library()
        if (native.lib is not None) if use_c is None else use_c:
            self._state: tuple[Any, ...] | None = _c_state(ggml, self._names, self._buffers)
            address = int(native.ffi.cast("uintptr_t", native.ffi.addressof(native.lib, "rs_eval_callback")))
            self.callback: Any = api.EvalCallback(address)
            self.callback_data = int(native.ffi.cast("uintptr_t", self._state[0]))
        else:
            self._state = None
            self._get_name = prototype(ggml, "ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
            self._nbytes = prototype(ggml, "ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
            self._nelements = prototype(ggml, "ggml_nelements", ctypes.c_int64, ctypes.c_void_p)
            size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
            self._read = prototype(ggml, "ggml_backend_tensor_get", None, pointer, pointer, size_t, size_t)
            self.callback, self.callback_data = api.EvalCallback(self._on_node), 0

    def switch(self, handle: int, on: bool) -> None:
        """Off, the callback asks for no tensor; it stays installed, llama.cpp has no way to take it out."""
        self._wanted = self._names if on else []
        if self._state is not None:
            self._state[0].n_states = len(self._wanted)

    def begin(self) -> None:
        """Forget the states of the previous decode."""
        if self._state is not None:
            native.lib.rs_capture_reset(self._state[0])
        else:
            self._rows, self._problem = [0] * len(self._names), None

    def collect(self, handle: int, out: Floats) -> None:
        """Copy the states of the last decode into out [T, N, Ht]; BackendError when the graph did not show them all."""
        if self._state is not None:
            state = self._state[0]
            got, error = list(self._state[1]), int(state.error)
            if error:
                what = {1: "more states than tokens", 2: "values that are not float32", 3: "states of another width"}
                name = self._names[state.error_state].decode()
                raise BackendError(
                    f"{self._path}: {name} has {what.get(error, f'error {error}')}; its states cannot be captured"
                )
        else:
            if self._problem is not None:  # llama.cpp cannot carry a Python exception, so it was kept for here
                problem, self._problem = self._problem, None
                raise problem
            got = self._rows
        for i, (name, n) in enumerate(zip(self._names, got, strict=True)):
            if n != len(out):
                raise BackendError(
                    f"{self._path}: captured {name.decode()} of {n} of {len(out)} tokens; use another architecture"
                )
            out[:, i] = self._buffers[i, :n]

    def _on_node(self, tensor: int, ask: bool, _user: int | None) -> bool:
        try:
            name = self._get_name(tensor)
            if name not in self._wanted:
                return not ask
            if not ask and self._problem is None:
                self._append(self._names.index(name), tensor)
            return True
        except BaseException as error:  # also KeyboardInterrupt: an exception here would stop the computation unnoticed
            self._problem = self._problem or error
            return True

    def _append(self, i: int, tensor: int) -> None:
        elements, nbytes = self._nelements(tensor), self._nbytes(tensor)
        rows, first = elements // self._width, self._rows[i]
        if nbytes != 4 * elements or rows * self._width != elements or first + rows > self._capacity:
            name = self._names[i].decode()
            raise BackendError(
                f"{self._path}: {name} has {elements} values in {nbytes} bytes, not states of {self._width}"
            )
        self._read(tensor, self._buffers[i, first:].ctypes.data, 0, nbytes)
        self._rows[i] += rows


def prototype(ggml: ctypes.CDLL, name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of the library, with its types."""
    function = ggml[name]
    function.restype, function.argtypes = restype, list(argtypes)
    return function


def _c_state(ggml: ctypes.CDLL, names: Sequence[bytes], buffers: Floats) -> tuple[Any, ...]:
    """(rs_capture, its row counts, what must stay alive): ggml's functions as addresses, the buffers as pointers."""
    ffi = native.ffi

    def address(name: str) -> int:
        return ctypes.cast(ggml[name], ctypes.c_void_p).value or 0

    n, capacity, width = buffers.shape
    strings = [ffi.new("char[]", name) for name in names]
    name_array = ffi.new("char *[]", strings)
    rows = ffi.new("size_t[]", n)
    pointers = ffi.new("float *[]", [ffi.cast("float *", buffers[i].ctypes.data) for i in range(n)])
    state = ffi.new("rs_capture *")
    for field, name in (("get_name", "ggml_get_name"), ("tensor_get", "ggml_backend_tensor_get"),
                        ("nelements", "ggml_nelements"), ("nbytes", "ggml_nbytes")):  # fmt: skip
        setattr(state, field, ffi.cast(ffi.typeof(getattr(state, field)), address(name)))
    state.names, state.buffers, state.rows = name_array, pointers, rows
    state.n_states, state.width, state.capacity = n, width, capacity
    native.lib.rs_capture_reset(state)
    return state, rows, (strings, name_array, pointers)
