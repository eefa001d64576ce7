"""What a conversion did and why: every resolved fact with its source, and what the user should know."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple


class Resolved(NamedTuple):
    """One fact and where it came from, for example `post_norm` from `config.json norm_output = true`."""

    value: Any
    source: str


@dataclass
class Report:
    """The result of one conversion; `lines()` is what the command line prints."""

    path: Path
    arch: str
    tensors: int = 0
    nbytes: int = 0
    resolved: dict[str, Resolved] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Human-readable summary, one fact per line."""
        out = [f"{self.path}: {self.arch}, {self.tensors} tensors, {self.nbytes / 1e6:.2f} MB"]
        out += [f"  {name:<16} {_text(fact.value):<24} ({fact.source})" for name, fact in self.resolved.items()]
        return out + [f"  note: {note}" for note in self.notes]

    def provenance(self) -> dict[str, str]:
        """The resolved facts as metadata keys `refspec.provenance.*`."""
        return {f"refspec.provenance.{name}": f"{_text(f.value)}; {f.source}" for name, f in self.resolved.items()}


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    return str(value)
