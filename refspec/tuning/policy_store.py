"""What an adaptive window has learned, kept in the user's cache directory from one process to the next.

A window that knows nothing has to find out what steps cost, how far the drafter can be trusted and what texts gain, and
pays for it with the first texts; somebody who runs one prompt at a time would pay each time. What steps cost is
measured or known from `tune` where that is possible, for another program may have been running when it was learned; the
costs that are kept are for targets of which a step takes too long to measure many. One file per target, drafter,
machine and settings: with other settings steps cost something else. It is stale where a record of `tune` would be
(`tune_store.py`). Not a measurement and never needed: what cannot be read is learned again, what cannot be written is
not kept, and no text depends on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from refspec.adaptive.base import P, Policy
from refspec.adaptive.costs import Costs
from refspec.tuning import store

FORMAT = 1  # of the file; another one is stale


class Memory:
    """The windows of one pair under some settings (JSON)."""

    def __init__(self, model: store.Name, drafter: store.Name, settings: Mapping[str, Any]) -> None:
        """Raises OSError where a file is not there any more."""
        self._place = store.path(model, drafter)
        self._identity = store.identity(model, drafter) | {"window": FORMAT}
        self._settings = json.dumps(settings, sort_keys=True)

    def path(self, window: type[Policy], most: int) -> Path:
        """Where such a window is kept."""
        key = json.dumps([self._place.name, self._settings, window.__name__, most])
        return self._place.with_name(f"window-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")

    def find(self, window: type[P], most: int, costs: Costs | None = None) -> P | None:
        """A window that goes on from where the last one was left, with newer `costs` if given;

        None where none was kept or it no longer holds.
        """
        try:
            kept = json.loads(self.path(window, most).read_text("utf-8"))
            if kept["identity"] != self._identity:
                return None
            return window.resumed(most, _finite(kept["state"]), costs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None

    def keep(self, window: Policy) -> None:
        """Keep what a window has learned, in place of what was kept before."""
        with suppress(OSError):
            store.write(self.path(type(window), window.most), {"identity": self._identity, "state": window.state()})


def _finite(state: Any) -> Any:
    """The state itself; ValueError where a number in it is infinite or none."""
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        _finite(value)
    if isinstance(state, float) and not math.isfinite(state):
        raise ValueError(f"{state} is no number")
    return state
