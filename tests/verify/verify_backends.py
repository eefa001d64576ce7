"""The implementations under test behind one set of names.

`numpy` is refspec.reference.sampling and refspec.reference.verify. `c` is native/sampling.c compiled here (with ops.c)
into a temporary directory and loaded with ctypes: it needs a C compiler but no extension, and shows status codes
(`CError`) that the extension turns into Python errors. `extension` is refspec.native when the C module is built, as
users run it.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refspec import native
from refspec.reference import sampling, verify
from refspec.reference.verify import Verdict

SOURCES = Path(__file__).resolve().parents[2] / "native"
BAD_TOKEN, NOT_FINITE, BAD_LAW, BAD_COIN = -1, -4, -6, -7


class CError(Exception):
    """A negative status of a C function."""

    def __init__(self, status: int):
        super().__init__(f"status {status}")
        self.status = status


@dataclass(frozen=True)
class Backend:
    """One implementation of sampling and verification."""

    name: str
    coin: Callable[..., float]
    p_target: Callable[..., np.ndarray]
    invert_cdf: Callable[..., int]
    sample: Callable[..., int]
    residual: Callable[..., np.ndarray]
    verify_deterministic: Callable[..., Verdict]
    verify_rejection: Callable[..., Verdict]


NUMPY = Backend(
    "numpy",
    sampling.coin,
    sampling.p_target,
    sampling.invert_cdf,
    sampling.sample,
    verify.residual,
    verify.verify_deterministic,
    verify.verify_rejection,
)

EXTENSION = Backend(
    "extension",
    native.coin,
    native.p_target,
    native.invert_cdf,
    native.sample,
    native.residual,
    native.verify_deterministic,
    native.verify_rejection,
)


class _CSampler(ctypes.Structure):
    _fields_ = [
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("top_k", ctypes.c_int32),
        ("n_bias", ctypes.c_int32),
        ("bias_ids", ctypes.c_void_p),
        ("bias_values", ctypes.c_void_p),
    ]


def compiler() -> str | None:
    """The system's C compiler, or None."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def load_c(directory: Path) -> Backend:
    """Compile native/sampling.c and ops.c into `directory` and wrap it."""
    library = directory / "sampling.so"
    flags = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    sources = [str(SOURCES / name) for name in ("sampling.c", "ops.c")]
    subprocess.run([*(compiler() or "cc").split(), *flags, "-o", str(library), *sources, "-lm"], check=True)
    return _wrap(ctypes.CDLL(str(library)))


def _sampler(sampler: sampling.Sampler) -> Any:
    return ctypes.byref(
        _CSampler(
            sampler.temperature,
            sampler.top_p,
            sampler.min_p,
            sampler.top_k,
            len(sampler.bias_ids),
            sampler.bias_ids.ctypes.data,
            sampler.bias_values.ctypes.data,
        )
    )


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(rows: Any, dtype: Any) -> tuple[list[np.ndarray], Any]:
    kept = [np.ascontiguousarray(row, dtype=dtype) for row in rows]  # the caller holds them while C reads
    return kept, (ctypes.c_void_p * max(len(kept), 1))(*[row.ctypes.data for row in kept])


def _checked(status: int) -> int:
    if status < 0:
        raise CError(status)
    return status


def _wrap(c: Any) -> Backend:
    size = ctypes.c_size_t
    c.rs_coin.restype = ctypes.c_double
    c.rs_coin.argtypes = [ctypes.c_uint64] * 3
    for name in ("p_target", "invert_cdf", "sample", "verify_deterministic", "verify_rejection"):
        getattr(c, f"rs_{name}").restype = ctypes.c_int32
    c.rs_residual.restype = None

    def scratch(vocab: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full(vocab, np.nan), np.full(vocab, -7, dtype=np.int32)  # poisoned: nothing may be read unwritten

    def p_target(logits: np.ndarray, sampler: sampling.Sampler) -> np.ndarray:
        row = np.ascontiguousarray(logits, dtype=np.float32)
        p, order = scratch(len(row))
        _checked(c.rs_p_target(_address(p), _address(order), _address(row), _sampler(sampler), size(len(row))))
        return p

    def invert_cdf(p: np.ndarray, coin: float) -> int:
        row = np.ascontiguousarray(p, dtype=np.float64)
        return _checked(c.rs_invert_cdf(_address(row), ctypes.c_double(coin), size(len(row))))

    def sample(logits: np.ndarray, sampler: sampling.Sampler, coin: float) -> int:
        row = np.ascontiguousarray(logits, dtype=np.float32)
        p, order = scratch(len(row))
        u = ctypes.c_double(coin)
        return _checked(c.rs_sample(_address(row), _sampler(sampler), u, _address(p), _address(order), size(len(row))))

    def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        rest = np.array(p, dtype=np.float64)
        q = np.ascontiguousarray(q, dtype=np.float64)
        c.rs_residual(_address(rest), _address(rest), _address(q), size(len(rest)))  # in place, as the verifier uses it
        return rest

    def verify_deterministic(logits: Any, draft: Any, sampler: sampling.Sampler, coins: Any) -> Verdict:
        rows, pointers = _pointers(logits, np.float32)
        tokens = np.full(len(rows), -1, dtype=np.int32)
        proposed = np.array(draft, dtype=np.int32)
        u = np.array(coins, dtype=np.float64)
        p, order = scratch(len(rows[0]))
        accepted = _checked(
            c.rs_verify_deterministic(
                _address(tokens), pointers, _address(proposed), _sampler(sampler), _address(u), _address(p),
                _address(order), size(len(proposed)), size(len(rows[0])),
            )
        )  # fmt: skip
        return Verdict(accepted, tokens[: accepted + 1].tolist())

    def verify_rejection(
        logits: Any, draft: Any, q_draft: Any, sampler: sampling.Sampler, accept_coins: Any, residual_coins: Any
    ) -> Verdict:
        rows, pointers = _pointers(logits, np.float32)
        _held, q_pointers = _pointers(q_draft, np.float64)
        tokens = np.full(len(rows), -1, dtype=np.int32)
        proposed = np.array(draft, dtype=np.int32)
        u = np.array(accept_coins, dtype=np.float64)
        v = np.array(residual_coins, dtype=np.float64)
        p, order = scratch(len(rows[0]))
        accepted = _checked(
            c.rs_verify_rejection(
                _address(tokens), pointers, _address(proposed), q_pointers, _sampler(sampler), _address(u), _address(v),
                _address(p), _address(order), size(len(proposed)), size(len(rows[0])),
            )
        )  # fmt: skip
        return Verdict(accepted, tokens[: accepted + 1].tolist())

    def coin(seed: int, position: int, stream: int = 0) -> float:
        return float(c.rs_coin(seed % 2**64, position, stream))

    return Backend("c", coin, p_target, invert_cdf, sample, residual, verify_deterministic, verify_rejection)
