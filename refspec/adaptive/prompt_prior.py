"""What texts like this one gained: all that is known of a text before anything of it was drafted.

Texts differ more than steps do: a text whose language or subject the drafter hardly knows never pays, and a few steps
cannot tell. Two things can be told of a text when its prompt has been read, its length and how sure the drafter was
along its last tokens, and texts that are near in both gain alike (Nadaraya-Watson regression, Gaussian weights):

    usual  =  (n_0 m + sum_i w_i g_i) / (n_0 + sum_i w_i n_i)        w_i = exp(-d_i^2 / 2)
    d_i^2  =  ((log2 length - log2 length_i) / LENGTHS)^2 + ((sureness - sureness_i) / SURENESSES)^2

g_i is what the first n_i <= FIRST speculating steps of text i gained in plain tokens, m the mean gain of a step over
all texts, and n_0 the steps it is worth. Sureness is the mean log probability of the drafter's likeliest token over
SURVEYED rows; where it is not known of both texts they differ by length only. After a long prompt several rows are
dearer beside one, so the length matters by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIRST = 16  # steps of a text: those that were hardly chosen by what came of the others
TEXTS = 100  # remembered
USUAL, USUAL_STEPS = 0.1, 60.0  # the first guess of m, and the steps it is worth
ALL = 8.0  # n_0: with less, one text that lost would keep all that are like it from being tried
LENGTHS, SURENESSES = 2.0, 0.1  # what two texts may differ by and still be alike, in factors of 2 and in nats
SURVEYED = 16  # rows of the prompt


@dataclass
class _Text:
    length: float  # binary logarithm
    sureness: float  # nan: not known
    gain: float = 0.0
    steps: int = 0

    def likeness(self, other: _Text) -> float:
        far = ((self.length - other.length) / LENGTHS) ** 2
        apart = (self.sureness - other.sureness) / SURENESSES
        return math.exp(-(far + (0.0 if math.isnan(apart) else apart * apart)) / 2)


class Alike:
    """`usual` is the gain expected of a step of the text begun last, as it was when that began."""

    def __init__(self) -> None:
        self._texts: deque[_Text] = deque(maxlen=TEXTS)
        self.begin(0)

    def begin(self, held: int, sureness: float = math.nan) -> None:
        """A text whose prompt left `held` positions; for the same one again where more became known of it."""
        self._text = text = _Text(math.log2(held + 1), sureness)
        gains, steps = USUAL * USUAL_STEPS, USUAL_STEPS
        like_gains = like_steps = 0.0
        for other in self._texts:
            gains, steps, weight = gains + other.gain, steps + other.steps, text.likeness(other)
            like_gains, like_steps = like_gains + weight * other.gain, like_steps + weight * other.steps
        self.usual = (ALL * gains / steps + like_gains) / (ALL + like_steps)

    def __len__(self) -> int:
        """Texts remembered."""
        return len(self._texts)

    def state(self) -> list[list[float | None]]:
        """The texts remembered, for `resume`: length, sureness (None: not known), gain and steps of each."""
        return [
            [text.length, None if math.isnan(text.sureness) else text.sureness, text.gain, text.steps]
            for text in self._texts
        ]

    def resume(self, texts: Sequence[Sequence[Any]]) -> None:
        """Remember such texts; ValueError or TypeError for others."""
        found = [
            _Text(float(length), math.nan if sureness is None else float(sureness), float(gain), int(steps))
            for length, sureness, gain, steps in texts
        ]
        if not all(text.length >= 0 and 0 < text.steps <= FIRST for text in found):
            raise ValueError("texts have a length and steps")
        self._texts.extend(found)

    def add(self, gain: float) -> None:
        """What a step of the text begun last gained, in plain tokens; steps after the first few are not asked for."""
        text = self._text
        if text.steps == FIRST:
            return
        if not text.steps:
            self._texts.append(text)
        text.gain, text.steps = text.gain + gain, text.steps + 1
