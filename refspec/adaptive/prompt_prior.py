"""What outputs after prompts like this one gained: all that is known of an output before anything of it was drafted.

Outputs differ more than steps do: one on a subject that the drafter hardly knows never pays, and a few steps cannot
tell. Two things are known when a prompt has been read, its length and the drafter's mean log-probability along its last
tokens, and outputs whose prompts are near in both gain alike (Nadaraya-Watson regression, Gaussian weights):

    expected  =  (n_0 m + sum_i w_i g_i) / (n_0 + sum_i w_i n_i)        w_i = exp(-d_i^2 / 2)
    d_i^2     =  ((log2 length - log2 length_i) / LENGTH_SCALE)^2 + ((logp - logp_i) / LOGP_SCALE)^2

g_i is what the first n_i <= FIRST speculating steps of output i gained in plain tokens, m the mean gain of a step over
all outputs, and n_0 the steps it is worth. logp is of the drafter's likeliest token over SURVEYED positions; where it
is not known of both, outputs differ by length only, which matters by itself: it makes every token of a batch dearer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIRST = 16  # steps of an output that count: those that were hardly chosen by what came of the others
OUTPUTS = 100  # remembered
MEAN, MEAN_STEPS = 0.1, 60.0  # the first guess of m, and the steps it is worth
ALL = 8.0  # n_0: with less, one output that lost would keep all that are like it from being tried
LENGTH_SCALE, LOGP_SCALE = 2.0, 0.1  # in factors of 2 and in nats
SURVEYED = 16  # positions of the prompt


@dataclass
class _Output:
    length: float  # of the prompt, binary logarithm
    logp: float  # nan: not known
    gain: float = 0.0
    steps: int = 0

    def likeness(self, other: _Output) -> float:
        far = ((self.length - other.length) / LENGTH_SCALE) ** 2
        apart = (self.logp - other.logp) / LOGP_SCALE
        return math.exp(-(far + (0.0 if math.isnan(apart) else apart * apart)) / 2)


class PromptPrior:
    """`expected` is the gain expected of a step of the output begun last, as it was when that began."""

    def __init__(self) -> None:
        self._outputs: deque[_Output] = deque(maxlen=OUTPUTS)
        self.begin(0)

    def __len__(self) -> int:
        """Outputs remembered."""
        return len(self._outputs)

    def begin(self, held: int, mean_log_probability: float = math.nan) -> None:
        """An output whose prompt left `held` positions; for the same one again where more became known of it."""
        self._now = now = _Output(math.log2(held + 1), mean_log_probability)
        gains, steps = MEAN * MEAN_STEPS, MEAN_STEPS
        like_gains = like_steps = 0.0
        for other in self._outputs:
            gains, steps, weight = gains + other.gain, steps + other.steps, now.likeness(other)
            like_gains, like_steps = like_gains + weight * other.gain, like_steps + weight * other.steps
        self.expected = (ALL * gains / steps + like_gains) / (ALL + like_steps)

    def add(self, gain: float) -> None:
        """What a step of the output begun last gained, in plain tokens; steps after the first few do not count."""
        now = self._now
        if now.steps == FIRST:
            return
        if not now.steps:
            self._outputs.append(now)
        now.gain, now.steps = now.gain + gain, now.steps + 1

    def state(self) -> list[list[float | None]]:
        """The outputs remembered, for `resume`: length, mean log-probability (None: not known), gain and steps."""
        return [[o.length, None if math.isnan(o.logp) else o.logp, o.gain, o.steps] for o in self._outputs]

    def resume(self, outputs: Sequence[Sequence[Any]]) -> None:
        """Remember such outputs; ValueError or TypeError for others."""
        found = [
            _Output(float(length), math.nan if logp is None else float(logp), float(gain), int(steps))
            for length, logp, gain, steps in outputs
        ]
        if not all(output.length >= 0 and 0 < output.steps <= FIRST for output in found):
            raise ValueError("outputs have a length and steps")
        self._outputs.extend(found)
