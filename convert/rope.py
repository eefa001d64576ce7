"""RoPE settings of a Hugging Face config -> base frequency, frequency divisors (rope_freqs) and attention factor.

Spellings: `rope_theta` at the top level, or inside `rope_parameters`; scaling in `rope_scaling` or `rope_parameters`.
Sources: Llama 3.1 model card; YaRN (Peng 2023) as transformers and the trainers compute it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refspec.convert.safetensors_io import Config
from refspec.errors import CheckpointError

_COMMON = {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"}
_OWN = {
    "default": set(), "linear": set(), "llama3": {"low_freq_factor", "high_freq_factor"},
    "yarn": {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"},
}  # fmt: skip


class Rope(NamedTuple):
    """theta, divisors [hd/2] or None, a few words on the scaling, and what cos and sin are multiplied by."""

    theta: float
    divisors: np.ndarray | None
    words: str
    attention_factor: float = 1.0
    scaling: dict[str, Any] | None = None  # the parameters as config.json states them (`stated`), None without scaling


def rope_settings(config: Config, head_dim: int, where: str, theta: float | None = None) -> Rope:
    """Resolve RoPE, with `theta` in place of the config's if given; `CheckpointError` for kinds refspec cannot run."""
    parameters, legacy = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    for name, value in (("rope_parameters", parameters), ("rope_scaling", legacy)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{where}: {name} = {str(value)[:40]!r} must be an object")
    base = theta or _theta(config, parameters, where)
    scaling = legacy or parameters
    if legacy and parameters and stated(legacy) != stated(parameters):
        raise CheckpointError(
            f"{where}: rope_scaling and rope_parameters differ ({str(stated(legacy))[:80]}, "
            f"{str(stated(parameters))[:80]}); leave one out with --ignore rope_scaling or --ignore rope_parameters"
        )
    kind = _kind(scaling)
    if kind not in _OWN:
        raise CheckpointError(f"{where}: rope scaling {str(kind)[:40]!r} is not supported; known: {', '.join(_OWN)}")
    used = {k for k, v in scaling.items() if v is not None}
    if unknown := sorted(used - _COMMON - _OWN[kind]):
        raise CheckpointError(f"{where}: rope scaling {kind!r} has the unknown key {unknown[0]!r}; remove it if unused")
    if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(f"{where}: partial_rotary_factor = {scaling['partial_rotary_factor']!r} is not supported")
    try:
        if kind == "default":
            return Rope(base, None, "default")
        factor = float(scaling["factor"])
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor {factor}")
        if kind == "linear":
            divisors = np.full(head_dim // 2, factor, np.float32)
            return Rope(base, divisors, f"linear, factor {factor:g}", scaling=stated(scaling))
        if kind == "llama3":
            return Rope(base, _llama3(scaling, base, head_dim), f"llama3, factor {factor:g}", scaling=stated(scaling))
        original = float(scaling.get("original_max_position_embeddings") or config["max_position_embeddings"])
        attention = _attention_factor(scaling, factor, where)
        words = f"yarn, factor {factor:g} over {original:g} positions, attention factor {attention:.6g}"
        return Rope(base, _yarn(scaling, base, head_dim, factor, original), words, attention, stated(scaling))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{where}: rope scaling {str(scaling)[:120]} is incomplete ({error})") from None


def _theta(config: Config, parameters: Mapping[str, Any], where: str) -> float:
    said = {v for v in (config.get("rope_theta"), parameters.get("rope_theta")) if v is not None}
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v > 0 for v in said):
        raise CheckpointError(f"{where}: rope_theta = {sorted(map(str, said))} must be positive; give --rope-theta")
    if len(said) > 1:
        raise CheckpointError(f"{where}: rope_theta is both {min(said):g} and {max(said):g}; decide with --rope-theta")
    return float(said.pop()) if said else 10000.0


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("rope_type", scaling.get("type", "default"))


def stated(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without empty ones and without the base, sorted, the kind as `rope_type`."""
    said = {k: v for k, v in scaling.items() if k not in ("rope_type", "type", "rope_theta") and v is not None}
    return {"rope_type": _kind(scaling), **dict(sorted(said.items()))}


def _llama3(scaling: Mapping[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended (Llama 3.1 model card code)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    if not low < high:
        raise ValueError(f"low_freq_factor {low} and high_freq_factor {high}")
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [hd/2]
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _yarn(scaling: Mapping[str, Any], theta: float, head_dim: int, factor: float, original: float) -> np.ndarray:
    """Dimensions that turn over beta_fast times in the original context are kept, below beta_slow they are divided."""
    fast, slow = (float(d if (v := scaling.get(k)) is None else v) for k, d in (("beta_fast", 32), ("beta_slow", 1)))

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if scaling.get("truncate", True) is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)  # 0 kept, 1 divided
    return (1.0 / (ramp / factor + 1.0 - ramp)).astype(np.float32)


def _attention_factor(scaling: Mapping[str, Any], factor: float, where: str) -> float:
    """What YaRN multiplies cos and sin by, so scores by its square."""
    if (given := scaling.get("attention_factor")) is not None:
        if not (isinstance(given, (int, float)) and math.isfinite(given) and given > 0):
            raise ValueError(f"attention_factor {given}")
        return float(given)

    def scale(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0

    one, both = (float(scaling.get(k) or 0.0) for k in ("mscale", "mscale_all_dim"))
    if one and both:
        return scale(one) / scale(both)
    if both or one not in (0.0, 1.0):  # transformers ignores one alone, the trainers' own classes do not
        raise CheckpointError(
            f"{where}: transformers and the trainers compute yarn with only one of mscale and mscale_all_dim "
            "differently; add attention_factor to the scaling in config.json"
        )
    return scale(1.0)
