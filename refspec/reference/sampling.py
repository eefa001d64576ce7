"""From logits to the target's distribution, and from one coin to one token.

What it is: the one definition of the distribution that speculation must reproduce (`p_target`), the draw from it by
inverse CDF, and counter-based coins. What it is not: a random number generator with state; every coin is a function of
(seed, position, stream). Source of the coins: splitmix64 (Steele, Lea and Flood 2014).

The C twin (native/sampling.c) returns the same bits, because it does the same arithmetic in the same order. That is
why sums are sequential here (`np.cumsum(...)[-1]`, not the pairwise `np.sum`) and why `exp` is spelled out.

Order of the transforms, llama.cpp's default chain, because users carry their settings over from there:

    penalties (`penalties.py`) -> logit bias -> top-k -> top-p -> min-p -> temperature -> softmax

The filters therefore look at the distribution at temperature 1, after the bias, and a higher temperature never lets in
tokens that they removed. Departures from llama.cpp: probabilities are float64, and ties go to the lowest token id.

Legend: V vocabulary, n count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from refspec.errors import BackendError, ShapeError, UsageError
from refspec.reference.penalties import Penalties

# Streams keep the coins of different purposes independent. TARGET, ACCEPT and RESIDUAL coins are looked at once per
# output position. A position can be drafted again after a rejection, so drafting in verify step s uses the stream
# DRAFT + s: reusing the coin of a discarded draft is lossy as soon as the draft length depends on that draft.
TARGET, ACCEPT, RESIDUAL, DRAFT = 0, 1, 2, 3

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64


@dataclass(frozen=True)
class Sampler:
    """What turns logits into a distribution; the defaults are greedy decoding without filters. Raises UsageError."""

    temperature: float = 0.0  # >= 0; 0 is argmax
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # (0, 1]; 1 is off
    min_p: float = 0.0  # [0, 1], relative to the most probable token; 0 is off
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit; -inf forbids it
    penalties: Penalties = field(default_factory=Penalties)  # applied before, by the caller, who knows the output
    bias_ids: NDArray[np.int32] = field(init=False, repr=False, compare=False)  # [n] logit_bias as arrays
    bias_values: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # [n]

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise UsageError(f"{name}: {value!r} is not a finite number")
        if self.temperature < 0:
            raise UsageError(f"temperature: {self.temperature} is negative; use 0 for greedy decoding")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p: {self.top_p} is outside (0, 1]; use 1 to switch it off")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p: {self.min_p} is outside [0, 1]; use 0 to switch it off")
        if not _is_int(self.top_k) or not 0 <= self.top_k < 2**31:
            raise UsageError(f"top_k: {self.top_k!r} is not an integer >= 0; use 0 to switch it off")
        bias = dict(self.logit_bias)
        for token, value in bias.items():
            if not _is_int(token) or not 0 <= token < 2**31:
                raise UsageError(f"logit_bias: token id {token!r} is not an integer >= 0")
            if isinstance(value, bool) or not isinstance(value, Real) or not value < math.inf:  # NaN fails too
                raise UsageError(f"logit_bias: {value!r} for token {token} is neither a finite number nor -inf")
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "bias_ids", np.array(list(bias), dtype=np.int32))
        object.__setattr__(self, "bias_values", np.array(list(bias.values()), dtype=np.float64))

    @property
    def greedy(self) -> bool:
        """Whether the distribution is one-hot, so that coins are ignored."""
        return self.temperature == 0


def p_target(logits: NDArray[np.floating], sampler: Sampler) -> NDArray[np.float64]:
    """The distribution of the next token, float64 [V], from logits [V]; BackendError for NaN, +inf, all -inf."""
    biased, best = _biased(logits, sampler)  # [V], argmax
    if sampler.greedy:
        p = np.zeros(len(biased))  # [V]
        p[best] = 1.0
        return p
    top = float(biased[best])
    x = biased.astype(np.float64)  # [V]
    with np.errstate(over="ignore"):  # a huge negative quotient is -inf, whose weight is the 0 we want
        if 0 < sampler.top_k < len(x) or sampler.top_p < 1 or sampler.min_p > 0:
            x[~_survivors(x, top, sampler)] = -np.inf
        weights = exp_nonpositive((x - top) / sampler.temperature)  # [V]
    return weights / np.cumsum(weights)[-1]


def invert_cdf(p: NDArray[np.float64], coin: float) -> int:
    """The lowest index whose cumulative probability exceeds coin in [0, 1); never an index with p = 0. p is [V].

    The coin is scaled by the rounded sum of p, so the last positive index keeps its share whatever the rounding.
    """
    if not 0 <= coin < 1:
        raise UsageError(f"coin: {coin} is outside [0, 1)")
    cumulative = np.cumsum(p)  # [V], sequential in index order
    total = cumulative[-1]
    if not 0 < total < math.inf:
        raise BackendError(f"probabilities sum to {total}; cannot draw a token from them")
    return int(np.searchsorted(cumulative, coin * total, side="right"))


def sample(logits: NDArray[np.floating], sampler: Sampler, coin: float) -> int:
    """One token from logits [V]: invert_cdf(p_target(logits, sampler), coin), at temperature 0 without forming p."""
    if sampler.greedy:
        return _biased(logits, sampler)[1]
    return invert_cdf(p_target(logits, sampler), coin)


def coin(seed: int, position: int, stream: int = 0) -> float:
    """A uniform multiple of 2^-53 in [0, 1), a pure function of its arguments (splitmix64's finaliser, three times).

    `position` is the index of the output token, `stream` one of TARGET, ACCEPT, RESIDUAL, DRAFT + verify step.
    """
    h = _mix(int(seed) + _GOLDEN)
    h = _mix(h + (int(position) + 1) * _GOLDEN)
    h = _mix(h + (int(stream) + 1) * _GOLDEN)
    return (h >> 11) * 2.0**-53


def coins(seed: int, position: int, n: int, stream: int = 0) -> NDArray[np.float64]:
    """The coins of `n` consecutive positions from `position` on, float64 [n]."""
    return np.array([coin(seed, position + i, stream) for i in range(n)], dtype=np.float64)


def exp_nonpositive(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x for x <= 0 within 2 ulp, 0 below -708; x and result float64 [V].

    Written out because np.exp and C's exp differ in the last bit, and from one CPU to the next; with only + - * and
    integer shifts, the same logits and seed give the same token everywhere. x = n ln 2 + r with |r| <= ln(2)/2,
    e^x = 2^n times the Taylor series of e^r to r^13, whose remainder is below 2^-57.
    """
    zero = x < -708.0  # 2^n must stay a normal number; e^-708 is 3e-308
    x = np.where(zero, 0.0, x)  # [V]
    n = (0.5 - x * _LOG2_E).astype(np.int64)  # [V], -n of the docstring; truncation rounds because x <= 0
    r = (x + n * _LN2_HIGH) + n * _LN2_LOW  # [V]
    y = np.full_like(r, _TAYLOR[-1])  # [V]
    for c in _TAYLOR[-2::-1]:
        y *= r
        y += c
    y *= ((1023 - n) << 52).view(np.float64)  # the bit pattern of 2^-n
    y[zero] = 0.0
    return y


_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # ln 2 in two parts: the first ends in 21 zero bits, so n * high is exact
_LN2_LOW = 1.9082149292705877e-10
_TAYLOR = tuple(1.0 / math.factorial(i) for i in range(14))


def _biased(logits: NDArray[np.floating], sampler: Sampler) -> tuple[NDArray[np.floating], int]:
    """Logits with the bias added (the input itself when there is none), and the argmax, lowest index on ties."""
    x = np.asarray(logits)
    if x.ndim != 1 or len(x) == 0:
        raise ShapeError(f"logits: shape {x.shape} is not [V]; pass one row at a time")
    if len(sampler.bias_ids):
        if sampler.bias_ids.max() >= len(x):
            raise UsageError(f"logit_bias: token id {sampler.bias_ids.max()} is outside the vocabulary of {len(x)}")
        x = x.astype(np.float64)
        x[sampler.bias_ids] += sampler.bias_values
    best = int(np.argmax(x))  # NumPy's argmax stops at a NaN, so x[best] shows NaN, +inf and all -inf
    if not math.isfinite(x[best]):
        if x[best] == -math.inf:
            raise BackendError("target logits: every token has logit -inf; relax logit_bias or check the model")
        raise BackendError(f"target logits: {x[best]} at token {best}; the model's weights or its input are damaged")
    return x, best


def _survivors(x: NDArray[np.float64], top: float, sampler: Sampler) -> NDArray[np.bool_]:
    """Which tokens top-k, top-p and min-p keep, in that order: bool [V] from biased logits x [V] and their maximum."""
    keep = np.ones(len(x), dtype=bool)  # [V]
    if 0 < sampler.top_k < len(x):
        kth = np.partition(x, len(x) - sampler.top_k)[len(x) - sampler.top_k]
        keep = x > kth
        ties = np.flatnonzero(x == kth)
        keep[ties[: sampler.top_k - np.count_nonzero(keep)]] = True
    weights = np.where(keep, exp_nonpositive(x - top), 0.0)  # [V], the maximum weighs exactly 1
    if sampler.top_p < 1:
        kept = np.flatnonzero(keep)
        order = kept[np.argsort(-x[kept], kind="stable")]  # by logit, not weight: weights can tie by rounding
        mass = np.cumsum(weights[order])
        n = int(np.searchsorted(mass, sampler.top_p * np.cumsum(weights)[-1], side="left")) + 1
        keep[order[n:]] = False
    if sampler.min_p > 0:
        keep &= weights >= sampler.min_p
    return keep


def _mix(z: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
