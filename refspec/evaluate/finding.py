"""What `refspec check` finds: one thing looked at, how bad it is, and what most likely made it so."""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, MISFIT = "ok", "note", "misfit"


class Finding(NamedTuple):
    """One thing looked at: `level` is ok, note (worth knowing) or misfit; `cause` is what most likely made it so."""

    about: str
    level: str
    said: str
    cause: str = ""
