"""A window's decisions in C (native/window.c), for drafts that C makes by itself; `adaptive/policy.py` is the policy,
and the twin.

Holds no numbers of its own but costs and chances by depth, which change now and then: counts are read and written where
the window has them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from refspec.native.module import ffi, lib


class NativeWindow:
    """`rs_window` for drafts of up to `most` tokens; `c` is None without C."""

    def __init__(self, most: int, edges: Sequence[float], **counts: array[float]) -> None:
        """Edges [B - 2] between bins of confidence; counts:

        a Belief's bins [B, 2], cells [B, depths, 2], depths [most, 2], and surplus [most, 2].
        """
        self.c: Any = None
        if lib is None:
            return
        self.c = c = ffi.new("rs_window *")
        fields = {"cost": most + 1, "depth": most, "limits": most, "gains": most, "chances": most}
        self._arrays = {name: ffi.new("double[]", size) for name, size in fields.items()} | {
            "edges": ffi.new("double[]", list(edges))
        }
        self._arrays |= {name: ffi.from_buffer("double[]", held) for name, held in counts.items()}
        for name, pointer in self._arrays.items():
            setattr(c, name, pointer)
        c.most, c.n_bins, c.n_depths = most, len(edges) + 2, len(counts["cells"]) // len(counts["bins"])

    def know(
        self, cost: Sequence[float], depth: Sequence[float], *, home: int, rate: float, change: float, row: float
    ) -> None:
        """Seconds of a step by tokens drafted [most + 1], chances by depth [most], and the numbers that `rs_window` has
        under these names.
        """
        if self.c is None:
            return
        self._arrays["cost"][0 : len(cost)] = cost
        self._arrays["depth"][0 : len(depth)] = depth
        self.c.home, self.c.rate, self.c.change, self.c.row = home, rate, change, row

    def decide(self, before: int, room: int, confidences: Sequence[float]) -> tuple[list[bool], int]:
        """What C decides where these are the confidences of the tokens asked about:

        which are stopped at, and how many are kept.
        """
        hopeful = lib.rs_window_plan(self.c, before, room)
        stops: list[bool] = []
        while len(stops) < min(hopeful, len(confidences)) and not any(stops):
            stops.append(bool(lib.rs_window_stop(self.c, len(stops), confidences[len(stops)])))
        return stops, int(lib.rs_window_keep(self.c, before, len(stops) - sum(stops)))

    def learn(self, confidences: Sequence[float], stopped: bool, drafted: int, accepted: int) -> None:
        """`rs_window_learn` for the confidences of all tokens asked about."""
        lib.rs_window_learn(self.c, ffi.new("float[]", list(confidences)), len(confidences), stopped, drafted, accepted)
