"""llama.cpp as a set of raw functions: the only file that imports `llama_cpp`.

Not a wrapper with opinions: it loads the library once, keeps its log silent but remembers the last error lines, and
binds every function refspec calls with addresses as plain integers, because a pointer object per call costs more than
the call. Callers decide what may be called; nothing here protects from an abort.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from refspec.errors import BackendError
from refspec.llama import matmul_hook

# Without it an abort inside ggml starts a debugger on the user's machine before the process ends.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

# llama.cpp's threads spin at every barrier of its graph, with GNU OpenMP up to 300,000 turns. Beside a program that
# keeps the processors busy they take the time of the very thread they wait for: the embedded model fell from 1300 to
# 1-4 tokens/s beside a training on as many threads as processors. With fewer turns they sleep sooner: 7 tokens/s at
# 30,000, 10 to 38 at 20,000, 19 at 10,000. On an idle machine 20,000 turns cost plain decoding nothing measurable and
# the embedded pair's speculation 3 to 5 % (the threads sleep while the drafter runs); 10,000 cost plain decoding 5 %,
# 500 four fifths. A larger model loses the same few microseconds of a longer step. GNU OpenMP reads this when it is
# loaded, with llama.cpp.
SPIN = "20000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)

_refused = matmul_hook.make_visible()  # a name that is visible before llama.cpp is loaded wins
try:
    from llama_cpp import __version__ as _version
    from llama_cpp import llama_cpp as api
except Exception as error:  # a missing or broken shared library raises OSError, RuntimeError or FileNotFoundError
    raise BackendError(f"llama-cpp-python does not load ({error}); pip install 'llama-cpp-python>=0.3.36'") from None

VERSION: str = _version  # of llama-cpp-python, which pins llama.cpp
_dll = ctypes.CDLL(api._lib._name)  # own function objects: the prototypes set by llama_cpp stay as they are
matmul_hook.connect(_dll, _refused)

_ERROR, _CONTINUED = 4, 5  # ggml_log_level
_errors: deque[str] = deque(maxlen=8)
_last_level = 0


def _log(level: int, text: bytes | None, _user: int | None) -> None:
    global _last_level
    line = (text or b"").decode("utf-8", "replace").strip()
    if level != _CONTINUED:
        _last_level = level
    if _last_level == _ERROR and line:
        _errors.append(line)


def forget_errors() -> None:
    """Drop the error lines seen so far, before a call whose failure the next ones explain."""
    _errors.clear()


def reason(default: str = "no reason given") -> str:
    """What llama.cpp said about the failure just seen: its first error line, without the C function's name."""
    if not _errors:
        return default
    line = _errors[0]
    head, _, tail = line.partition(": ")
    return tail if tail and " " not in head else line


def _bind(names: str | tuple[str, ...], restype: Any, *argtypes: Any) -> Any:
    """The first of `names` the library exports, with its prototype; None when there is none."""
    for name in (names,) if isinstance(names, str) else names:
        try:
            function = _dll[name]  # indexing gives a fresh function object each time
        except AttributeError:
            continue
        function.restype, function.argtypes = restype, list(argtypes)
        return function
    return None


class Batch(ctypes.Structure):
    """`struct llama_batch` with addresses as integers."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p), ("embd", ctypes.c_void_p), ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p), ("seq_id", ctypes.c_void_p), ("logits", ctypes.c_void_p),
    ]  # fmt: skip


_P, _I, _U, _B, _S = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_bool, ctypes.c_char_p

# models
load_model = _bind("llama_model_load_from_file", _P, _S, api.llama_model_params)
free_model = _bind("llama_model_free", None, _P)
model_vocab = _bind("llama_model_get_vocab", _P, _P)
model_n_ctx_train = _bind("llama_model_n_ctx_train", _I, _P)
model_n_embd = _bind("llama_model_n_embd", _I, _P)
model_n_layer = _bind("llama_model_n_layer", _I, _P)
model_n_head = _bind("llama_model_n_head", _I, _P)
model_has_encoder = _bind("llama_model_has_encoder", _B, _P)
model_has_decoder = _bind("llama_model_has_decoder", _B, _P)
model_is_recurrent = _bind("llama_model_is_recurrent", _B, _P)
model_is_hybrid = _bind("llama_model_is_hybrid", _B, _P)
model_is_diffusion = _bind("llama_model_is_diffusion", _B, _P)
# vocabularies
vocab_type = _bind("llama_vocab_type", ctypes.c_int, _P)
vocab_size = _bind("llama_vocab_n_tokens", _I, _P)
vocab_is_eog = _bind("llama_vocab_is_eog", _B, _P, _I)
vocab_bos = _bind("llama_vocab_bos", _I, _P)
vocab_add_bos = _bind("llama_vocab_get_add_bos", _B, _P)
tokenize = _bind("llama_tokenize", _I, _P, _S, _I, _P, _I, _B, _B)
token_to_piece = _bind("llama_token_to_piece", _I, _P, _I, _P, _I, _I, _B)
# contexts
new_context = _bind("llama_init_from_model", _P, _P, api.llama_context_params)
free_context = _bind("llama_free", None, _P)
context_memory = _bind("llama_get_memory", _P, _P)
context_n_ctx = _bind("llama_n_ctx", _U, _P)
context_n_batch = _bind("llama_n_batch", _U, _P)
context_n_ubatch = _bind("llama_n_ubatch", _U, _P)
context_n_rs_seq = _bind("llama_n_rs_seq", _U, _P)
memory_clear = _bind("llama_memory_clear", None, _P, _B)
memory_seq_rm = _bind("llama_memory_seq_rm", _B, _P, _I, _I, _I)
memory_seq_cp = _bind("llama_memory_seq_cp", None, _P, _I, _I, _I, _I)
memory_seq_keep = _bind("llama_memory_seq_keep", None, _P, _I)
encode = _bind("llama_encode", _I, _P, Batch)
decode = _bind("llama_decode", _I, _P, Batch)
get_logits_ith = _bind("llama_get_logits_ith", _P, _P, _I)
# samplers, to be compared with
chain_params = _bind("llama_sampler_chain_default_params", api.llama_sampler_chain_params)
sampler_chain = _bind("llama_sampler_chain_init", _P, api.llama_sampler_chain_params)
sampler_chain_add = _bind("llama_sampler_chain_add", None, _P, _P)
sampler_grammar = _bind("llama_sampler_init_grammar", _P, _P, _S, _S)
sampler_greedy = _bind("llama_sampler_init_greedy", _P)
sampler_sample = _bind("llama_sampler_sample", _I, _P, _P, _I)
sampler_free = _bind("llama_sampler_free", None, _P)
# staged functions: exported with C++ names (Itanium, then MSVC), absent from some builds
set_nextn = _bind(
    ("llama_set_embeddings_nextn", "_Z26llama_set_embeddings_nextnP13llama_contextbb",
     "?llama_set_embeddings_nextn@@YAXPEAUllama_context@@_N1@Z"), None, _P, _B, _B)  # fmt: skip
get_nextn = _bind(
    ("llama_get_embeddings_nextn", "_Z26llama_get_embeddings_nextnP13llama_context",
     "?llama_get_embeddings_nextn@@YAPEAMPEAUllama_context@@@Z"), _P, _P)  # fmt: skip
set_layer_input = _bind(
    ("llama_set_embeddings_layer_inp", "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
     "?llama_set_embeddings_layer_inp@@YAXPEAUllama_context@@I_N@Z"), None, _P, _U, _B)  # fmt: skip
get_layer_input = _bind(
    ("llama_get_embeddings_layer_inp", "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
     "?llama_get_embeddings_layer_inp@@YAPEAMPEAUllama_context@@I@Z"), _P, _P, _U)  # fmt: skip

system_info = _bind("llama_print_system_info", _S)  # bytes: the instructions the library was built for

# the OpenMP library of ggml, where it has one, for `openmp.py`; GNU's entry point, which LLVM's library has too
team_parallel = _bind("GOMP_parallel", None, _P, _P, ctypes.c_uint, ctypes.c_uint)
team_rank = _bind("omp_get_thread_num", ctypes.c_int)
team_size = _bind("omp_get_num_threads", ctypes.c_int)

# tables of weight types, for `vec_dot.py`; they return addresses of structs
type_traits = _bind("ggml_get_type_traits", _P, ctypes.c_int)
type_traits_cpu = _bind("ggml_get_type_traits_cpu", _P, ctypes.c_int)


def library_path() -> str:
    """The file of libllama."""
    return str(api._lib._name)


def ggml_library() -> ctypes.CDLL:
    """The library that exports ggml's own functions (tensor names, tensor reads), for the evaluation callback."""
    if hasattr(_dll, "ggml_backend_tensor_get"):  # dlsym also searches the dependencies of libllama
        return _dll
    folder = os.path.dirname(library_path())
    stem = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(sys.platform, "libggml-base.so")
    return ctypes.CDLL(os.path.join(folder, stem))


_stderr = 2  # where the last line goes, also while `_quietly` has redirected descriptor 2
_turn = threading.Lock()  # descriptor 2 and the error lines belong to the process: one model is loaded at a time


@contextmanager
def loading(params: Any) -> Iterator[None]:
    """Around `load_model` with these parameters: one thread at a time, in silence, ended early by Ctrl-C.

    A signal handler in Python would run inside llama.cpp's log callback, where an exception is lost. So handlers wait:
    the load is given up at the next tensor, and they run when the block ends, which then raises what they raise.
    """
    check_process()
    global _used
    with _turn:
        _used = True
        forget_errors()
        with delayed_signals() as caught, _quietly():
            callback = api.llama_progress_callback(lambda _done, _user: not caught)
            params.progress_callback = callback
            yield


@contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """Signals whose handlers are Python's are listed while the block runs; the handlers run after it."""
    caught: list[int] = []
    handlers: dict[int, Any] = {}

    def later(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    if threading.current_thread() is threading.main_thread():  # nowhere else do handlers run
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(number, later)
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(caught):
            handlers[number](number, None)


@contextmanager
def _quietly() -> Iterator[None]:
    """Drop what ggml prints to descriptor 2 past every log callback (it does so about damaged weights)."""
    global _stderr
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):  # no standard error to protect
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    _stderr = saved
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        _stderr = 2


_used = False  # a model has been loaded in this process, or in the one it was forked from
forked_from = 0  # the process whose threads and locks llama.cpp believes to be here


def _after_fork() -> None:
    global forked_from
    forked_from = forked_from or (os.getppid() if _used else 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_process() -> None:
    """BackendError in a process forked after a model was loaded: llama.cpp's threads are not in it, it would hang."""
    if forked_from:
        raise BackendError(
            f"process {os.getpid()} was forked from {forked_from}, which had loaded a model; its threads are not here: "
            "start the process with the method 'spawn', or load models only after the fork"
        )


def _abort(message: bytes | None) -> None:
    """At a check of llama.cpp that no rule of refspec foresees: one line and exit code 1, no core dump."""
    text = " ".join((message or b"").decode("utf-8", "replace").split()).rpartition("/src/")[2]
    line = f"llama.cpp stopped at an internal check ({text[:160]}); a file or setting is unusable, please report it"
    try:
        sys.stdout.flush()
        os.write(_stderr, f"{line}\n".encode())
    finally:
        os._exit(1)


EvalCallback = api.ggml_backend_sched_eval_callback
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml_type
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type

_log_callback = api.llama_log_callback(_log)  # lives as long as this module, as it must
api.llama_log_set(_log_callback, ctypes.c_void_p(0))
_abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_abort)
_set_abort = getattr(ggml_library(), "ggml_set_abort_callback", None)
if _set_abort is not None:
    _set_abort.restype, _set_abort.argtypes = None, [type(_abort_callback)]
    _set_abort(_abort_callback)
api.llama_backend_init()


def model_params(
    *, n_gpu_layers: int, check_tensors: bool, arch_override: str | None, repack: bool = True
) -> tuple[Any, Any]:
    """Parameters for `load_model` and the object that must stay alive during the call."""
    params = api.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    params.check_tensors = check_tensors
    params.use_extra_bufts = repack  # weights repacked for this processor's instructions, where llama.cpp can
    overrides: Any = (api.llama_model_kv_override * 2)()  # the second one, with an empty key, ends the list
    if arch_override is not None:
        overrides[0].tag = 3  # LLAMA_KV_OVERRIDE_TYPE_STR
        overrides[0].key = b"general.architecture"
        overrides[0].value.val_str = arch_override.encode()
        params.kv_overrides = overrides
    return params, overrides


def context_params(**values: Any) -> Any:
    """Default context parameters with `values` set; a name the library does not know is an error of refspec."""
    params = api.llama_context_default_params()
    names = {name for name, *_ in params._fields_}
    for name, value in values.items():
        if name not in names:
            raise BackendError(f"this llama-cpp-python has no context parameter {name!r}; install 0.3.36 or newer")
        setattr(params, name, value)
    return params


def schema_to_gbnf(schema: str) -> str:
    """llama.cpp's grammar of a JSON schema."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    return str(json_schema_to_gbnf(schema))
