"""How likely a drafted token is to stand: the drafter's own confidence, calibrated on what was accepted, and acceptance
by depth.

A drafter's probability says what it believes, not how often it is right, and it is trusted less the deeper the chain.
So the chance that a token stands, given that those before it do, is counted in cells of confidence and depth, each cell
leaning on its whole bin, the bin on the confidence itself:

    bin(b)      =  (hits_b + 2 c) / (n_b + 2)                  c the drafter's probability (1/2 where it gives none)
    cell(b, d)  =  (hits_bd + 8 bin(b)) / (n_bd + 8)           d = 0, 1, 2, 3 and deeper

Depth alone, where no confidence is known yet:  depth(d) = (hits_d + 6 depth(d - 1)) / (n_d + 6). A token that was not drafted because its
confidence was low counts there with its chance, or the depths would be judged by the sure tokens only. Counts decay:
drift is followed.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence

EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
UNKNOWN = len(EDGES) + 1  # the bin of drafters that give no confidence
BINS, DEPTHS = UNKNOWN + 1, 4  # the last depth is for all deeper ones too
FIRST = 0.6  # acceptance of a first token before anything was seen
KEEP = 1 - 1 / 500  # of every count, per count added to the same cell


class Belief:
    """Counts and the chances that follow from them.

    Counts are flat arrays of (judged, stood), which C reads and writes too (native/window.c): `bins` [B], `cells` [B,
    DEPTHS], `depths` [most].
    """

    def __init__(self, most: int) -> None:
        self.bins = array("d", bytes(16 * BINS))
        self.cells = array("d", bytes(16 * BINS * DEPTHS))
        self.depths = array("d", bytes(16 * most))

    def chance(self, confidence: float, depth: int) -> float:
        """Probability that the token drafted at `depth` (0 = first) stands if all before it do."""
        b = _bin(confidence)
        guess = (self.bins[2 * b + 1] + 2 * (0.5 if b == UNKNOWN else confidence)) / (self.bins[2 * b] + 2)
        at = 2 * (b * DEPTHS + min(depth, DEPTHS - 1))
        return (self.cells[at + 1] + 8 * guess) / (self.cells[at] + 8)

    def by_depth(self) -> list[float]:
        """[most] the same without a confidence."""
        out, before = [], FIRST
        for at in range(0, len(self.depths), 2):
            before = (self.depths[at + 1] + 6 * before) / (self.depths[at] + 6)
            out.append(before)
        return out

    def learn(self, confidences: Sequence[float], drafted: int, accepted: int, refused: float | None = None) -> None:
        """Count one step: the accepted tokens stood, the next one, if drafted, did not; what follows it was not judged.

        `refused` is the confidence of the token the draft was ended before, if it was.
        """
        if refused is not None and drafted == accepted == len(confidences) < len(self.depths) // 2:
            _count(self.depths, 2 * drafted, self.chance(refused, drafted))
        for i in range(min(drafted, accepted + 1)):
            self.see(confidences[i] if i < len(confidences) else math.nan, i, i < accepted)

    def forget(self, most: float) -> None:
        """Keep no more than `most` of any count: what was seen long ago is a guess, to be overruled soon."""
        for counts in (self.bins, self.cells, self.depths):
            for at in range(0, len(counts), 2):
                if counts[at] > most:
                    counts[at], counts[at + 1] = most, counts[at + 1] * most / counts[at]

    def state(self) -> dict[str, list[float]]:
        """All counts, for `resume`."""
        return {name: list(getattr(self, name)) for name in ("bins", "cells", "depths")}

    def resume(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from such counts; ValueError where they are not of this belief."""
        for name, held in (("bins", self.bins), ("cells", self.cells), ("depths", self.depths)):
            counts = [float(x) for x in state[name]]
            if len(counts) != len(held) or not all(
                0 <= stood <= judged + 1e-9 for judged, stood in zip(counts[::2], counts[1::2], strict=True)
            ):
                raise ValueError(f"{name} are not of this belief")
            for i, count in enumerate(counts):  # in place: C reads and writes them too
                held[i] = count

    def see(self, confidence: float, depth: int, stood: bool) -> None:
        """Count one judged token, those before it having stood."""
        b = _bin(confidence)
        _count(self.bins, 2 * b, stood)
        _count(self.cells, 2 * (b * DEPTHS + min(depth, DEPTHS - 1)), stood)
        _count(self.depths, min(2 * depth, len(self.depths) - 2), stood)


def _count(counts: array[float], at: int, stood: float) -> None:
    counts[at] = counts[at] * KEEP + 1
    counts[at + 1] = counts[at + 1] * KEEP + stood


def _bin(confidence: float) -> int:
    return UNKNOWN if math.isnan(confidence) else bisect_right(EDGES, confidence)
