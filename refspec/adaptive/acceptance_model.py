"""How likely a drafted token is accepted: the drafter's own confidence, calibrated on what was accepted, by depth.

A drafter's probability says what it believes, not how often it is right, and it is right less often the deeper the
chain. So the chance that a token is accepted, given that those before it are, is counted in cells of confidence and
depth. Each cell leans on its whole bin, and the bin on the confidence itself:

    bin(b)      =  (accepted_b + 2 c) / (judged_b + 2)              c the drafter's probability (1/2 if it gives none)
    cell(b, d)  =  (accepted_bd + 8 bin(b)) / (judged_bd + 8)       d = 0, 1, 2, 3 and deeper
    depth(d)    =  (accepted_d + 6 depth(d - 1)) / (judged_d + 6)   where no confidence is known yet

A token that was not drafted for its low confidence counts in `depth` with its chance, or only sure tokens would count.
Counts decay, so drift is followed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
UNKNOWN = len(EDGES) + 1  # the bin of drafters that give no confidence
BINS, DEPTHS = UNKNOWN + 1, 4  # the last depth is for all deeper ones too
FIRST = 0.6  # acceptance of a first token before anything was seen
KEEP = 1 - 1 / 500  # of every count, per count added to the same cell


class AcceptanceModel:
    """Counts [judged, accepted] by bin [BINS], cell [BINS * DEPTHS] and depth [most], and the chances they give."""

    def __init__(self, most: int) -> None:
        self.bins, self.cells, self.depths = ([[0.0, 0.0] for _ in range(n)] for n in (BINS, BINS * DEPTHS, most))

    def chance(self, confidence: float, depth: int) -> float:
        """Probability that the token drafted at `depth` (0 = first) is accepted if all before it are."""
        b = _bin(confidence)
        judged, accepted = self.bins[b]
        guess = (accepted + 2 * (0.5 if b == UNKNOWN else confidence)) / (judged + 2)
        judged, accepted = self.cells[b * DEPTHS + min(depth, DEPTHS - 1)]
        return (accepted + 8 * guess) / (judged + 8)

    def by_depth(self) -> list[float]:
        """[most] the same without a confidence."""
        chances, before = [], FIRST
        for judged, accepted in self.depths:
            before = (accepted + 6 * before) / (judged + 6)
            chances.append(before)
        return chances

    def learn(self, confidences: Sequence[float], drafted: int, accepted: int, refused: float | None = None) -> None:
        """Count one step: what follows the first rejected token was not judged.

        `refused` is the confidence of the token before which the draft ended, if it did.
        """
        if refused is not None and drafted == accepted == len(confidences) < len(self.depths):
            _count(self.depths[drafted], self.chance(refused, drafted))
        for i in range(min(drafted, accepted + 1)):
            self.see(confidences[i] if i < len(confidences) else math.nan, i, i < accepted)

    def see(self, confidence: float, depth: int, accepted: bool) -> None:
        """Count one judged token, those before it having been accepted."""
        b = _bin(confidence)
        _count(self.bins[b], accepted)
        _count(self.cells[b * DEPTHS + min(depth, DEPTHS - 1)], accepted)
        _count(self.depths[min(depth, len(self.depths) - 1)], accepted)

    def forget(self, most: float) -> None:
        """Keep no more than `most` of any count: what was seen long ago is a guess, to be overruled soon."""
        for count in (*self.bins, *self.cells, *self.depths):
            if count[0] > most:
                count[:] = most, count[1] * most / count[0]

    def state(self) -> dict[str, Any]:
        """All counts, for `resume`."""
        return {"bins": self.bins, "cells": self.cells, "depths": self.depths}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from such counts; ValueError or TypeError where they are not of this model."""
        for name, held in self.state().items():
            counts = [[float(judged), float(accepted)] for judged, accepted in state[name]]
            if len(counts) != len(held) or not all(0 <= accepted <= judged + 1e-9 for judged, accepted in counts):
                raise ValueError(f"{name} are not of this model")
            setattr(self, name, counts)


def _count(count: list[float], accepted: float) -> None:
    count[0] = count[0] * KEEP + 1
    count[1] = count[1] * KEEP + accepted


def _bin(confidence: float) -> int:
    return UNKNOWN if math.isnan(confidence) else bisect_right(EDGES, confidence)
