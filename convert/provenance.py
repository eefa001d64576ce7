"""The `refspec` object that `refspec export` writes into config.json: the switches by name, so no flag is misread."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from refspec.convert.report import Resolved
from refspec.convert.safetensors_io import Config
from refspec.errors import CheckpointError

_KEYS = {
    "feature_norm": "feature_norm", "feedback": "feedback", "residual": "residual", "head_norm": "head_norm",
    "layer_ids": "capture_layers",
}  # fmt: skip


def recorded(config: Config, where: str) -> dict[str, Any]:
    """What config.json records, under the names of the overrides; empty for a checkpoint refspec did not write."""
    said = config.get("refspec") or {}
    if not isinstance(said, dict) or said.keys() - _KEYS.keys():
        raise CheckpointError(f"{where}: refspec = {str(said)[:60]!r} must be an object with {', '.join(_KEYS)}")
    return dict(said)


def credit(resolved: dict[str, Resolved], said: Collection[str], given: Collection[str]) -> None:
    """Let `resolved` say that a switch came from that object, where no override was `given`."""
    for name in said:
        if name not in given and _KEYS[name] in resolved:
            fact = resolved[_KEYS[name]]
            resolved[_KEYS[name]] = Resolved(fact.value, "config.json refspec, as refspec export wrote it")
