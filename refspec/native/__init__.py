"""The reference in C: the names of `refspec/reference`, from the C module where it is built, else from NumPy.

    ops        operations of a drafter           verify, tree   sampling and the lossless rules
    penalties  repetition penalties              eagle3         rows and chains of the EAGLE-3 drafter
    hooks      what happens between calls of llama.cpp          module   finding and loading the C module
    grammar    tokens through an automaton of bytes

`backend` says which is used, "c" or "numpy"; REFSPEC_BACKEND=numpy|c decides. Integers and decisions are bit-equal in
both, floats differ only by the order of summation (tests/agreement states the bounds), and in both a row's result never
depends on the other rows. The package can be the `ops` argument of a drafter: `Eagle3Drafter(config, weights, native)`.
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
    "BACKENDS", "Eagle3Chain", "Eagle3Rows", "MatchRule", "PackedMatrix", "StepResult", "Team", "all_finite", "argmax",
    "argmax_prob", "attention", "backend", "c_sampler", "check", "coin", "draft_feedback", "ffi", "gather_features",
    "gather_rows", "invert_cdf", "lib", "matvec", "p_target", "path", "quantize_q8_0", "residual", "rms_norm", "rope",
    "sample", "softmax", "swiglu", "top_probs", "verify_deterministic", "verify_rejection",
    "verify_tree_deterministic", "verify_tree_rejection", "without",
]  # fmt: skip
