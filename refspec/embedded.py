"""The pair that comes with the package: where its files are, and the settings measured to suit it.

Not a loader. `refspec/models/defaults.json` holds what was chosen from measured costs (draft_max, threads,
threads_batch); a key that is absent falls back to the defaults of `refspec.load`. `penalties` in it keeps so small a
model from repeating itself.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from refspec.errors import CheckpointError
from refspec.reference.penalties import Penalties

TARGET, DRAFTER, DRAFTER_PRENORM = "target.gguf", "drafter.gguf", "drafter-prenorm.gguf"
SMOLLM2_DRAFTER = "smollm2-drafter.gguf"  # for a target that is a package of its own (`named/names.py`)


def folder() -> Path:
    """The directory of the embedded models, whether or not they are in it."""
    return Path(str(files("refspec"))) / "models"


def path(name: str) -> Path:
    """The file of an embedded model; CheckpointError when this installation does not have it."""
    found = folder() / name
    if not found.is_file():
        raise CheckpointError(f"{found}: the embedded model is missing from this installation; name a GGUF file (-m)")
    return found


def defaults() -> dict[str, Any]:
    """Settings for the embedded pair; empty when the file is absent."""
    found = folder() / "defaults.json"
    return dict(json.loads(found.read_text("utf-8"))) if found.is_file() else {}


def penalties() -> Penalties:
    """Penalties that the embedded pair decodes under, unless others are asked for."""
    return Penalties(**defaults().get("penalties", {}))
