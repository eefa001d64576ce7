"""What an adaptive policy has learned, kept in the user's cache directory from one process to the next.

A policy that knows nothing has to find out what steps cost, how far the drafter can be trusted and what outputs gain,
and pays for it with the first outputs; who runs one prompt at a time would pay each time. Costs are measured or known
from `tune` where possible, for another program may have been running when they were learned; the stored ones are for
targets of which a step takes too long to measure many. One file per target, drafter, machine and settings: with other
settings steps cost something else. It is stale where a record of `tune` would be (`tuning/store.py`). Never needed:
what cannot be read is learned again, what cannot be written is not stored, and no output depends on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from refspec.adaptive.base import P, Policy
from refspec.adaptive.costs import Costs
from refspec.tuning import store

FORMAT = 2  # of the file; another one is stale


class Memory:
    """The policies of one pair under some settings (JSON)."""

    def __init__(self, model: store.Name, drafter: store.Name, settings: Mapping[str, Any]) -> None:
        """Raises OSError where a file is not there any more."""
        self._place = store.path(model, drafter)
        self._identity = store.identity(model, drafter) | {"policy": FORMAT}
        self._settings = json.dumps(settings, sort_keys=True)

    def path(self, kind: type[Policy], most: int) -> Path:
        """Where such a policy is stored."""
        key = json.dumps([self._place.name, self._settings, kind.__name__, most])
        return self._place.with_name(f"window-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json")

    def find(self, kind: type[P], most: int, costs: Costs | None = None) -> P | None:
        """A policy that goes on where the last one was left, with newer `costs` if given; None where stale."""
        try:
            stored = json.loads(self.path(kind, most).read_text("utf-8"))
            if stored["identity"] != self._identity:
                return None
            return kind.resumed(most, store.sound(stored["state"]), costs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError):
            return None

    def keep(self, policy: Policy) -> None:
        """Store what a policy has learned, in place of what was stored before."""
        with suppress(OSError):
            store.write(self.path(type(policy), policy.most), {"identity": self._identity, "state": policy.state()})
