"""RoPE settings of a Hugging Face config -> base frequency and the divisors GGUF calls rope_freqs.

Spellings: `rope_theta` at the top level, or inside `rope_parameters`; scaling in `rope_scaling` or `rope_parameters`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refspec.errors import CheckpointError


def rope_settings(config: dict[str, Any], head_dim: int, where: str) -> tuple[float, np.ndarray | None, str]:
    """(theta, divisors [hd/2] or None, a few words on the scaling); `CheckpointError` for kinds refspec cannot run."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    theta = float(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    try:
        if kind == "default":
            return theta, None, "default"
        factor = float(scaling["factor"])
        if kind == "linear":
            return theta, np.full(head_dim // 2, factor, np.float32), f"linear, factor {factor:g}"
        if kind == "llama3":
            return theta, _llama3(scaling, theta, head_dim), f"llama3, factor {factor:g}"
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: rope scaling {scaling} is incomplete ({error})") from None
    raise CheckpointError(f"{where}: rope scaling {kind!r} is not supported; known: default, linear, llama3")


def _llama3(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended (Llama 3.1 model card code)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)  # [hd/2]
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
