"""Integers and decimal numbers between bounds, as grammar nodes."""

from __future__ import annotations

from decimal import Decimal
from math import floor

from refspec.grammar.nodes import DIGIT, EMPTY, NOTHING, Alt, Node, Repeat, chars, seq, text

MANY = Repeat(DIGIT, 0, None)
FIRST = chars([(49, 57)])  # 1 to 9


def integer(low: int | None, high: int | None) -> Node:
    """Integers from low to high, both included, None is without end; no leading zeros, no -0."""
    options: list[Node] = []
    if low is None or low < 0:
        options.append(seq("-", _whole(1 if high is None or high >= -1 else -high, None if low is None else -low)))
    if high is None or high >= 0:
        options.append(_whole(0 if low is None or low < 0 else low, high))
    return Alt(tuple(options))


def number(low: Decimal | None, high: Decimal | None) -> Node:
    """Decimal numbers from low to high, both included; with an exponent only where there is no bound."""
    if low is None and high is None:
        fraction, exponent = seq(".", Repeat(DIGIT, 1, None)), seq(chars([(69, 69), (101, 101)]), _sign(), DIGIT, MANY)
        return seq(Repeat(text("-"), 0, 1), _whole(0, None), Repeat(fraction, 0, 1), Repeat(exponent, 0, 1))
    options: list[Node] = []
    if low is None or low < 0:
        options.append(
            seq("-", _real(Decimal(0) if high is None or high >= 0 else -high, None if low is None else -low))
        )
    if high is None or high >= 0:
        options.append(_real(Decimal(0) if low is None or low < 0 else low, high))
    return Alt(tuple(options))


def _sign() -> Node:
    return Repeat(chars([(43, 43), (45, 45)]), 0, 1)


def _real(low: Decimal, high: Decimal | None) -> Node:
    """Numbers >= 0 without a sign: an integer, and a fraction where the integer is next to a bound."""
    if high is not None and high < low:
        return NOTHING
    bottom, top = floor(low), None if high is None else floor(high)
    after_low = _digits(low)
    if top == bottom:
        return seq(str(bottom), _fraction(after_low, _digits(high)))
    options: list[Node] = [seq(str(bottom), _fraction(after_low, None))]
    options.append(seq(_whole(bottom + 1, None if top is None else top - 1), _fraction("", None)))
    if top is not None:
        options.append(seq(str(top), _fraction("", _digits(high))))
    return Alt(tuple(options))


def _digits(x: Decimal | None) -> str:
    """The digits after the point, without zeros at the end."""
    assert x is not None
    return format(x, "f").partition(".")[2].rstrip("0")


def _fraction(low: str, high: str | None) -> Node:
    """Nothing, or a point and digits, between 0.low and 0.high (None is 1)."""
    some = seq(".", _between(low, high, True))
    return some if low else Alt((EMPTY, some))


def _between(low: str, high: str | None, needed: bool) -> Node:
    """Digits d with 0.low <= 0.d <= 0.high; at least one if `needed`."""
    if not low and high is None:
        return Repeat(DIGIT, 1 if needed else 0, None)
    if high == "" and low == "":
        return Repeat(text("0"), 1 if needed else 0, None)
    options: list[Node] = [] if needed or low else [EMPTY]
    first, last = int(low[:1] or 0), 9 if high is None else int(high[:1] or 0)
    for digit in range(first, last + 1):
        below = low[1:] if digit == first else ""
        above = high[1:] if high is not None and digit == last else None
        options.append(seq(str(digit), _between(below, above, False)))
    return Alt(tuple(options))


def _whole(low: int, high: int | None) -> Node:
    """Integers >= 0 from low to high."""
    if high is not None and high < low:
        return NOTHING
    options: list[Node] = []
    if low == 0:
        options.append(text("0"))
        low = 1
    width = len(str(low))
    while high is None or low <= high:
        if high is None and low == 10 ** (width - 1):
            options.append(seq(FIRST, Repeat(DIGIT, width - 1, None)))
            break
        top = 10**width - 1 if high is None else min(high, 10**width - 1)
        options.append(_same_width(str(low), str(top)))
        low, width = 10**width, width + 1
    return Alt(tuple(options))


def _same_width(low: str, high: str) -> Node:
    """Numbers of as many digits, from low to high."""
    if not low:
        return EMPTY
    if set(low) == {"0"} and set(high) == {"9"}:
        return Repeat(DIGIT, len(low), len(low))
    options: list[Node] = []
    a, b = int(low[0]), int(high[0])
    for digit in range(a, b + 1):
        rest = low[1:] if digit == a else "0" * (len(low) - 1), high[1:] if digit == b else "9" * (len(low) - 1)
        options.append(seq(str(digit), _same_width(*rest)))
    return Alt(tuple(options))
