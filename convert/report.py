"""What a conversion did and why: every resolved fact with its source, and what the user should know."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from refspec.convert.safetensors_io import Config
from refspec.errors import CheckpointError

# override -> the fact it decides
_FACTS = {n: n for n in ("feature_norm", "feedback", "residual", "head_norm")} | {"layer_ids": "capture_layers"}


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


def recorded(config: Config, where: str) -> dict[str, Any]:
    """What `refspec export` recorded in config.json, by override; empty for a checkpoint refspec did not write."""
    said = config.get("refspec") or {}
    if not isinstance(said, dict) or said.keys() - _FACTS.keys():
        raise CheckpointError(f"{where}: refspec = {str(said)[:60]!r} must be an object with {', '.join(_FACTS)}")
    return dict(said)


def credit(resolved: dict[str, Resolved], said: Collection[str], given: Collection[str]) -> None:
    """Let `resolved` say that a switch came from that record, where no override was `given`."""
    for name in said:
        if name not in given and _FACTS[name] in resolved:
            fact = resolved[_FACTS[name]]
            resolved[_FACTS[name]] = Resolved(fact.value, "config.json refspec, as refspec export wrote it")
