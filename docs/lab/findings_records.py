"""The recorded runs that findings are derived from: a folder of one folder a job.

Each holds `job.json` (of the grid) and the records of `refspec drift` and `refspec acceptance`, as `refspec
findings measure` left them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refspec.errors import CheckpointError
from refspec.evaluate import acceptance_report, drift_report

JOB = "refspec-grid-job-1"
NORMALIZED = {"feature_norm": "per_state", "feedback": "post_norm", "residual": "raw", "attention_reg": 0.0}
PLAIN = {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw", "attention_reg": 0.0}


class Recorded(NamedTuple):
    """One job of the grid and the records made of it, by name."""

    job: dict[str, Any]
    records: dict[str, dict[str, Any]]

    def variant(self, switches: Mapping[str, Any]) -> str | None:
        """The variant that has these switches."""
        return next((name for name in self.job["variants"] if switches_of(self.job, name) == switches), None)


def switches_of(job: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The switches of a variant of a job, those left out of the plan included."""
    return NORMALIZED | job["variants"][variant]


def read(folder: Path) -> list[Recorded]:
    """Every job with its records, ordered by name; CheckpointError for a file that is none, or a folder without any."""
    found = []
    for file in sorted(folder.glob("*/job.json")):
        job = _json(file)
        if job.get("format") != JOB:
            raise CheckpointError(
                f"{file}: `format` is not {JOB!r}; name a folder made by python docs/lab findings measure"
            )
        records = {other.stem: _json(other) for other in sorted(file.parent.glob("*.json")) if other != file}
        for name, record in records.items():
            if record.get("format") not in (drift_report.FORMAT, acceptance_report.FORMAT):
                raise CheckpointError(
                    f"{file.parent / name}.json: `format` {record.get('format')!r} is no record of drift or acceptance"
                )
        found.append(Recorded(job, records))
    if not found:
        raise CheckpointError(f"{folder}: holds no */job.json; name a folder made by python docs/lab findings measure")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}; measure it again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not an object; measure it again")
    return found
