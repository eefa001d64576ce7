"""The sampling settings that a model's file recommends: GGUF metadata `general.sampling.*`.

llama.cpp's converter takes them from generation_config.json. Applied only if asked for (`generate --recommended`),
because runs are compared by greedy decoding. For some models they are the only sign that greedy decoding repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from refspec.errors import CheckpointError, UsageError
from refspec.reference.sampling import Sampler

PREFIX = "general.sampling."
FIELDS = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}  # key -> field of Sampler
PENALTIES = {"penalty_repeat": "repeat", "penalty_last_n": "repeat_last_n"}  # key -> field of Penalties
# Key -> name in a Hugging Face generation_config.json.
HUGGING_FACE = FIELDS | {"penalty_repeat": "repetition_penalty"}


@dataclass(frozen=True)
class Recommended:
    """What a file recommends: fields of Sampler, fields of Penalties, and keys not known here."""

    sampler: dict[str, Any]
    penalties: dict[str, Any]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.sampler or self.penalties)

    def __str__(self) -> str:
        """The settings in a few words: `temperature 0.6, top_k 20`."""
        names = {"repeat": "repeat_penalty"}
        return ", ".join(f"{names.get(name, name)} {v:g}" for name, v in (self.sampler | self.penalties).items())

    def applied(self, sampler: Sampler, given: set[str]) -> Sampler:
        """`sampler` with these settings, except fields of it and of its penalties that the user has `given`."""
        penalties = replace(sampler.penalties, **{k: v for k, v in self.penalties.items() if k not in given})
        return replace(sampler, penalties=penalties, **{k: v for k, v in self.sampler.items() if k not in given})


def recommended(metadata: Mapping[str, Any], source: str) -> Recommended:
    """What `metadata` of the file `source` recommends; CheckpointError for a value out of range."""
    said = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    unknown = tuple(sorted(said.keys() - FIELDS.keys() - PENALTIES.keys()))
    found = Recommended(
        {name: _plain(said[key]) for key, name in FIELDS.items() if key in said},
        {name: _plain(said[key]) for key, name in PENALTIES.items() if key in said}, unknown,
    )  # fmt: skip
    try:
        found.applied(Sampler(), set())
    except UsageError as error:
        raise CheckpointError(f"{source}: metadata {PREFIX}*: {str(error)[:200]}") from None
    return found


def from_generation_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The metadata for a generation_config.json, empty where do_sample is false; CheckpointError for a bad value."""
    if config.get("do_sample") is False:
        return {}
    found = {PREFIX + key: config[name] for key, name in HUGGING_FACE.items() if config.get(name) is not None}
    for key in found:
        if key != PREFIX + "top_k" and type(found[key]) is int:
            found[key] = float(found[key])
    recommended(found, source)
    return found


def to_generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json for a file's metadata; empty where it recommends nothing that has a name there."""
    said = {name: _plain(metadata[PREFIX + key]) for key, name in HUGGING_FACE.items() if PREFIX + key in metadata}
    return {"do_sample": True, **said} if said else {}


def _plain(value: Any) -> Any:
    """0.6 for the float32 nearest to 0.6."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
