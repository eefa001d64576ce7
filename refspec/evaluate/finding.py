"""A finding of `refspec check`, and its levels."""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, MISFIT = "ok", "note", "misfit"


class Finding(NamedTuple):
    """What was checked and found: `level` is ok, note (worth knowing) or misfit, `cause` the likely reason."""

    about: str
    level: str
    said: str
    cause: str = ""
