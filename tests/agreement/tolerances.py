"""How closely NumPy and C must agree, each bound with its reason. Integers, copies and decisions have no tolerance.

u = 2^-24 is the largest relative error of one float32 rounding. A sum of n terms in any order errs by at most n u times
the sum of the magnitudes (Higham 2002, eq. 4.4); NumPy and C add in different orders, so they differ by at most twice
that.
"""

import numpy as np

U = 2.0**-24
TINY = 1e-37  # below this float32 is subnormal and relative bounds end


def matvec(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """matvec: n products, each rounded once, and n - 1 additions, on both sides."""
    n = x.shape[1]
    return 2 * (n + 1) * U * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T) + TINY


def norm(n: int) -> float:
    """rms_norm, relative: a sum of n squares on both sides, halved by the root; sqrt, two divisions, eps, weight:

    6 roundings.
    """
    return (n + 2 * 6) * U


def exponentials(n: int) -> float:
    """softmax and swiglu, relative: exp errs by 1 ulp in C and up to 4 in NumPy's vector code; C adds n/16 terms per
    lane and NumPy at most 16 + log2(n) in its pairwise sum; the subtraction of the maximum is one rounding, the same on
    both sides."""
    return (n / 16 + 4 + 16 + np.log2(max(n, 2)) + 2 * 5 + 4) * U


def rotation(x: np.ndarray) -> np.ndarray:
    """rope: sine and cosine in float64 on both sides, then rounded: one ulp apart at most; two products, one sum."""
    return 6 * U * np.repeat(np.abs(x).max(axis=-1, keepdims=True), x.shape[-1], axis=-1) * 2


# One row of a drafter, relative to the largest magnitude in the compared array: about ten sums of up to 150 products in
# series. Their worst cases would add up to 1e-4, their random errors to 1e-6; seen at most 6e-7 (ROW) and 1.4e-6
# (CHAIN).
ROW = 5e-6
# The k-th chained row carries the errors of the k - 1 before it.
CHAIN = 2e-5
