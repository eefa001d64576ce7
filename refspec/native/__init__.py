"""The door to the C module: the names of `refspec/reference/ops.py` and `refspec/reference/verify.py`, from C where it
is built, else from NumPy.

`backend` says which: "c" or "numpy"; REFSPEC_BACKEND=numpy|c decides, and `check()` raises what is wrong with it.
Integers and decisions are bit-equal in both, floats differ by the order of summation only (tests/agreement states the
bounds), and in both a row's result never depends on its neighbours. This package serves as the `ops` argument of
Eagle3Drafter: `Eagle3Drafter(config, weights, native)`.
"""

from refspec.native.eagle3 import Eagle3Chain, Eagle3Rows, PackedMatrix, StepResult, Team
from refspec.native.hooks import all_finite, argmax_prob, draft_feedback, gather_features
from refspec.native.module import BACKENDS, backend, check, ffi, lib, path
from refspec.native.ops import argmax, attention, gather_rows, matvec, quantize_q8_0, rms_norm, rope, softmax, swiglu
from refspec.native.tree import top_probs, verify_tree_deterministic, verify_tree_rejection, without
from refspec.native.verify import (
    MatchRule,
    c_sampler,
    coin,
    invert_cdf,
    p_target,
    residual,
    sample,
    verify_deterministic,
    verify_rejection,
)

__all__ = [
    "BACKENDS",
    "Eagle3Chain",
    "Eagle3Rows",
    "MatchRule",
    "PackedMatrix",
    "StepResult",
    "Team",
    "all_finite",
    "argmax",
    "argmax_prob",
    "attention",
    "backend",
    "c_sampler",
    "check",
    "coin",
    "draft_feedback",
    "ffi",
    "gather_features",
    "gather_rows",
    "invert_cdf",
    "lib",
    "matvec",
    "p_target",
    "path",
    "quantize_q8_0",
    "residual",
    "rms_norm",
    "rope",
    "sample",
    "softmax",
    "swiglu",
    "top_probs",
    "verify_deterministic",
    "verify_rejection",
    "verify_tree_deterministic",
    "verify_tree_rejection",
    "without",
]
