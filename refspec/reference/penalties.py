"""How the tokens so far change the next token's logits: repetition, presence and frequency penalties, and DRY.

What it is: the transform itself, logits in, logits out. What it is not: a sampler with state; the history is an
argument. A target with penalties is therefore just another target, whose logits are a function of the tokens before
them, and everything proven of a target holds for it. The C twin (native/penalties.c) returns the same bits.

Penalties come before every filter of `sampling.py`, as in llama.cpp. Let c(v) be the number of times token v is among
the last `repeat_last_n` tokens of the history. The logit x of every v with c(v) > 0 becomes

    (x * repeat if x <= 0 else x / repeat)  -  c(v) * frequency  -  presence

(Keskar 2019, CTRL, section 4.1, and OpenAI's API). DRY ("don't repeat yourself"): let L be the length of the longest
end of the history that occurred before with v after it, so that v would prolong a repetition. Its logit becomes

    x  -  multiplier * base^(L - allowed_length)     if L >= allowed_length

A repetition does not reach back beyond the newest sequence breaker, and no breaker is punished.

Departures from llama.cpp: sums are float64, rounded once; a breaker is one token that contains one of the given
strings; tokens of the prompt count only if asked; a logit bias is added after the penalties, not before.

Legend: V vocabulary, n tokens of history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import numpy.typing as npt

from refspec.errors import UsageError

Breaks = Sequence[bool] | npt.NDArray[np.bool_]  # [n] whether a token of the history is a sequence breaker

LARGEST = 1e30  # base^(L - allowed_length) grows no further: no logit is left to lose


@dataclass(frozen=True)
class Penalties:
    """Named as llama.cpp's options; the defaults are off. Raises UsageError."""

    repeat: float = 1.0  # > 0, 1 is off
    presence: float = 0.0
    frequency: float = 0.0
    repeat_last_n: int = 64  # newest tokens that the three above count; -1 is all, 0 is off
    dry_multiplier: float = 0.0  # >= 0, 0 is off
    dry_base: float = 1.75  # >= 1
    dry_allowed_length: int = 2  # a repetition of fewer tokens is free; >= 1
    dry_last_n: int = -1  # newest tokens that DRY looks at; -1 is all, 0 is off
    dry_breakers: Sequence[str] = ("\n", ":", '"', "*")
    prompt: bool = False  # whether the tokens of the prompt count, as in llama.cpp

    def __post_init__(self) -> None:
        for name in ("repeat", "presence", "frequency", "dry_multiplier", "dry_base"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise UsageError(f"{name}: {value!r} is not a finite number")
        for name, least in (("repeat_last_n", -1), ("dry_last_n", -1), ("dry_allowed_length", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**31:
                raise UsageError(f"{name}: {value!r} is not an integer >= {least}")
        if self.repeat <= 0:
            raise UsageError(f"repeat: {self.repeat} is not above 0; use 1 to switch it off")
        if self.dry_multiplier < 0:
            raise UsageError(f"dry_multiplier: {self.dry_multiplier} is negative; use 0 to switch it off")
        if self.dry_base < 1:
            raise UsageError(f"dry_base: {self.dry_base} is below 1: longer repetitions would be punished less")
        if isinstance(self.dry_breakers, str) or not all(isinstance(text, str) and text for text in self.dry_breakers):
            raise UsageError(f"dry_breakers: {self.dry_breakers!r} must be strings of at least one character")
        object.__setattr__(self, "dry_breakers", tuple(self.dry_breakers))

    def times(self, share: float) -> Penalties:
        """Penalties that take `share` as much from a logit; the factor `repeat` is raised to that power."""
        scaled = {name: share * getattr(self, name) for name in ("presence", "frequency", "dry_multiplier")}
        return replace(self, repeat=self.repeat**share, **scaled)

    @property
    def counting(self) -> bool:
        """Whether repeat, presence or frequency is on."""
        return self.repeat_last_n != 0 and (self.repeat != 1 or self.presence != 0 or self.frequency != 0)

    @property
    def dry(self) -> bool:
        """Whether DRY is on."""
        return self.dry_multiplier > 0 and self.dry_last_n != 0

    @property
    def on(self) -> bool:
        """Whether any logit changes."""
        return self.counting or self.dry

    @property
    def breaking(self) -> bool:
        """Whether there are sequence breakers to look for."""
        return self.dry and bool(self.dry_breakers)

    def breaks(self, token: bytes) -> bool:
        """Whether a token, given by its bytes, is a sequence breaker."""
        return any(breaker.encode() in token for breaker in self.dry_breakers)


NO_PENALTIES = Penalties()


def penalize(
    logits: npt.NDArray[np.floating], history: Sequence[int] | npt.NDArray[np.integer], penalties: Penalties,
    breaks: Breaks = (),
) -> npt.NDArray[np.floating]:  # fmt: skip
    """Logits [V] of the token that follows `history` [n], as a new array of the same type."""
    out, tokens = np.array(logits), np.asarray(history, np.int64)
    if penalties.counting and len(tokens):
        ids, counts = np.unique(_newest(tokens, penalties.repeat_last_n), return_counts=True)
        x = out[ids].astype(np.float64)
        x = np.where(x <= 0, x * penalties.repeat, x / penalties.repeat)
        out[ids] = x - counts * penalties.frequency - penalties.presence
    if penalties.dry:
        for token, length in continuations(tokens, penalties, breaks).items():
            factor = penalties.dry_multiplier * _power(penalties.dry_base, length - penalties.dry_allowed_length)
            out[token] = float(out[token]) - factor
    return out


def continuations(history: npt.NDArray[np.integer], penalties: Penalties, breaks: Breaks = ()) -> dict[int, int]:
    """Token -> length L of the longest repetition it would prolong, where L >= dry_allowed_length."""
    tokens = _newest(history, penalties.dry_last_n)
    limit = len(tokens)
    for back in range(min(len(tokens), len(breaks))):
        if breaks[len(breaks) - 1 - back]:
            limit = back
            break
    if limit < penalties.dry_allowed_length or len(tokens) <= penalties.dry_allowed_length:
        return {}
    backward = tokens[::-1].tolist()
    found: dict[int, int] = {}
    for j, same in enumerate(common_beginnings(backward)):
        if j and min(same, limit) >= penalties.dry_allowed_length and not (len(breaks) and breaks[len(breaks) - j]):
            found[backward[j - 1]] = max(found.get(backward[j - 1], 0), min(same, limit))
    return found


def common_beginnings(x: Sequence[int]) -> list[int]:
    """[n] how many elements x and x[j:] share at their beginning: the Z-function (Gusfield 1997, 1.4), in O(n)."""
    n = len(x)
    z = [n] * min(n, 1) + [0] * (n - 1)
    left = right = 0  # x[left:right] equals a beginning of x; no such part found so far ends later
    for j in range(1, n):
        same = min(z[j - left], right - j) if j < right else 0
        while j + same < n and x[same] == x[j + same]:
            same += 1
        z[j] = same
        if j + same > right:
            left, right = j, j + same
    return z


def _newest(tokens: npt.NDArray[np.integer], n: int) -> npt.NDArray[np.integer]:
    return tokens if n < 0 or n >= len(tokens) else tokens[len(tokens) - n :]


def _power(base: float, exponent: int) -> float:
    """base^exponent by multiplication, bit for bit as in C; stops at LARGEST or a little above."""
    out = 1.0
    for _ in range(exponent if base > 1 else 0):
        if out >= LARGEST:
            break
        out *= base
    return out
