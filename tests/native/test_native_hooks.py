"""Feature gathering, and the evaluation callback run on a made-up ggml:

tensors are small integers, their data NumPy arrays.
"""

import ctypes

import numpy as np
import pytest
from capture_harness import CaptureError, CaptureFunctions, EvalCapture
from hypothesis import given, settings
from hypothesis import strategies as st

from refspec import native
from refspec.errors import ShapeError
from refspec.reference import ops

needs_c = pytest.mark.skipif(native.backend != "c", reason="the C module is not built")


class FakeGraph:
    """Tensors by handle, and the four functions of ggml that read them."""

    def __init__(self) -> None:
        self.tensors: dict[int, tuple[bytes, np.ndarray, int]] = {}  # handle -> name, data, bytes per element
        self.reads = 0
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._kept = (
            ctypes.CFUNCTYPE(pointer, pointer)(self._name),
            ctypes.CFUNCTYPE(None, pointer, pointer, size, size)(self._get),
            ctypes.CFUNCTYPE(ctypes.c_int64, pointer)(lambda t: self.tensors[t][1].size),
            ctypes.CFUNCTYPE(size, pointer)(lambda t: self.tensors[t][1].size * self.tensors[t][2]),
        )
        self._names: dict[bytes, ctypes.Array[ctypes.c_char]] = {}
        addresses = [ctypes.cast(function, pointer).value or 0 for function in self._kept]
        self.functions = CaptureFunctions(*addresses)

    def _name(self, tensor: int) -> int:
        name = self.tensors[tensor][0]
        return ctypes.addressof(self._names.setdefault(name, ctypes.create_string_buffer(name)))

    def _get(self, tensor: int, target: int, offset: int, size: int) -> None:
        self.reads += 1
        data = np.ascontiguousarray(self.tensors[tensor][1], dtype=np.float32)
        ctypes.memmove(target, data.ctypes.data + offset, size)

    def run(self, capture: EvalCapture, *nodes: tuple[str, np.ndarray], element_size: int = 4) -> list[bool]:
        """What the scheduler does with each node: ask, then show if wanted. Returns the answers to `ask`."""
        callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(capture.callback)
        answers = []
        for name, data in nodes:
            handle = 16 * (len(self.tensors) + 1)
            self.tensors[handle] = (name.encode(), data, element_size)
            answers.append(bool(callback(handle, True, capture.user_data)))
            if answers[-1]:
                assert callback(handle, False, capture.user_data), "the callback must never cancel the computation"
        return answers


def rows(n: int, width: int = 4, start: int = 0) -> np.ndarray:
    return (np.arange(n * width, dtype=np.float32) + 1000 * start).reshape(n, width)


@needs_c
def test_wanted_tensors_are_copied_and_no_other_is_asked_for() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1", "l_out-12"], 4, 8, graph.functions)
    a, b = rows(3), rows(3, start=1)
    names = ["l_out-0", "l_out-1", "l_out-12", "l_out-1 (view)", "l_out-121", "norm-1"]
    answers = graph.run(capture, *zip(names, [b, a, b, b, b, b], strict=True))
    assert answers == [False, True, True, False, False, False]
    assert graph.reads == 2
    for got, expected in zip(capture.states(3), (a, b), strict=True):
        assert np.array_equal(got, expected)


@needs_c
def test_rows_of_several_micro_batches_are_appended_in_order() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1", "l_out-2"], 4, 8, graph.functions)
    parts = [rows(3), rows(3, start=1), rows(1, start=2)]
    for part in parts:
        graph.run(capture, ("l_out-1", part), ("l_out-2", -part))
    assert np.array_equal(capture.states(7)[0], np.concatenate(parts))
    assert np.array_equal(capture.states(7)[1], -np.concatenate(parts))


@needs_c
def test_reset_starts_a_new_decode() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1"], 4, 2, graph.functions)
    graph.run(capture, ("l_out-1", rows(3)))
    with pytest.raises(CaptureError, match=r"'l_out-1' got more rows than the 2"):
        capture.states(3)
    capture.reset()
    graph.run(capture, ("l_out-1", rows(2, start=5)))
    assert np.array_equal(capture.states(2)[0], rows(2, start=5))


@needs_c
@pytest.mark.parametrize("batches", [[9], [8, 1], [3, 3, 3, 3], [1000]])
def test_overflow_is_flagged_and_nothing_is_written_past_the_buffer(batches: list[int]) -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1"], 4, 8, graph.functions)
    guarded = np.full((12, 4), -7, np.float32)  # the buffer with a guard behind it
    capture._struct.buffers[0] = native.ffi.cast("float *", guarded.ctypes.data)
    for start, n in enumerate(batches):
        graph.run(capture, ("l_out-1", rows(n, start=start)))
    assert np.array_equal(guarded[8:], np.full((4, 4), -7))
    assert np.array_equal(guarded[:8], np.concatenate([rows(n, start=s) for s, n in enumerate(batches)])[:8])
    with pytest.raises(CaptureError, match="more rows"):
        capture.states(8)


@needs_c
def test_a_half_precision_tensor_is_refused_unread() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1"], 4, 8, graph.functions)
    graph.run(capture, ("l_out-1", rows(3)), element_size=2)
    assert graph.reads == 0
    with pytest.raises(CaptureError, match="'l_out-1' is not float32"):
        capture.states(3)


@needs_c
def test_a_tensor_of_another_width_is_refused_unread() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1", "l_out-2"], 4, 8, graph.functions)
    graph.run(capture, ("l_out-2", rows(3, width=5)))
    assert graph.reads == 0
    with pytest.raises(CaptureError, match="'l_out-2' has a size that is no multiple of 4"):
        capture.states(3)


@needs_c
def test_a_tensor_that_never_came_is_an_error_not_old_rows() -> None:
    graph = FakeGraph()
    capture = EvalCapture(["l_out-1", "missing"], 4, 8, graph.functions)
    graph.run(capture, ("l_out-1", rows(3)), ("l_out-1", rows(0)))
    with pytest.raises(CaptureError, match="'missing' gave 0 rows for a decode of 3"):
        capture.states(3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.integers(1, 40),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 5),
)
def test_gathering_is_concatenation_with_each_state_normed(
    seed: int, n_rows: int, width: int, n_states: int, normed: bool, spare: int
) -> None:
    rng = np.random.default_rng(seed)
    states = list(rng.standard_normal((n_states, n_rows, width)).astype(np.float32))
    gains = list(rng.standard_normal((n_states, width)).astype(np.float32)) if normed else None
    expected = states if gains is None else [native.rms_norm(s, g, 1e-5) for s, g in zip(states, gains, strict=True)]
    out = np.full((n_rows + 1, n_states * width + spare), -7, np.float32)
    got = native.gather_features(states, n_rows, width, norms=gains, eps=1e-5, out=out)
    assert np.array_equal(got, np.concatenate(expected, axis=1))
    assert (out[n_rows:] == -7).all() and (out[:, n_states * width :] == -7).all()
    if gains is not None:
        numpy = [ops.rms_norm(s, g, 1e-5) for s, g in zip(states, gains, strict=True)]
        np.testing.assert_allclose(got, np.concatenate(numpy, axis=1), rtol=1e-5)


@needs_c
@pytest.mark.parametrize("in_place", [False, True])
def test_the_c_gathering_norms_rows_that_already_lie_side_by_side(in_place: bool) -> None:
    lib, ffi = native.lib, native.ffi
    x = np.random.default_rng(0).standard_normal((5, 3 * 20)).astype(np.float32)
    gains = np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    expected = [native.rms_norm(x[:, 20 * s : 20 * s + 20], gains[s], 1e-5) for s in range(3)]
    out = x if in_place else np.empty_like(x)
    states = ffi.new("float *[]", [ffi.cast("float *", x.ctypes.data + 80 * s) for s in range(3)])
    weights = ffi.new("float *[]", [ffi.cast("float *", gains.ctypes.data + 80 * s) for s in range(3)])
    lib.rs_gather_features(ffi.cast("float *", out.ctypes.data), states, weights, 1e-5, 5, 3, 20, 60, 60)
    assert np.array_equal(out, np.concatenate(expected, axis=1))


def test_gathering_takes_addresses_and_rows_of_longer_buffers() -> None:
    a, b = rows(5), rows(5, start=1)
    got = native.gather_features([a.ctypes.data, b], 3, 4)
    assert np.array_equal(got, np.concatenate([a[:3], b[:3]], axis=1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.gather_features([rows(3), rows(2)], 3, 4),
        lambda: native.gather_features([rows(3), 0], 3, 4),
        lambda: native.gather_features([rows(3)], 3, 5),
        lambda: native.gather_features([rows(3)], 3, 4, norms=[np.ones(3, np.float32)]),
        lambda: native.gather_features([rows(3)], 3, 4, norms=[]),
        lambda: native.gather_features([rows(3)], 3, 4, out=np.empty((2, 4), np.float32)),
        lambda: native.gather_features([rows(3)], 3, 4, out=np.empty((3, 3), np.float32)),
        lambda: native.gather_features([rows(3)], 3, 4, out=np.empty((3, 4))),  # type: ignore[arg-type]
        lambda: native.gather_features([rows(3)], 3, 4, out=np.empty((4, 3), np.float32).T),
    ],
)
def test_gathering_refuses_what_does_not_fit(call: object) -> None:
    with pytest.raises(ShapeError):
        call()  # type: ignore[operator]
