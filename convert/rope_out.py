"""RoPE divisors of a GGUF -> the scaling a Hugging Face config states. The inverse of `rope.py`, checked by running that.

A GGUF keeps the divisors (`rope_freqs`), not the parameters they were made from. Parameters are given back only if they
make the same divisors, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refspec.convert.rope import rope_settings
from refspec.errors import CheckpointError, RefspecError

_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_BOUNDS = ((1.0, 4.0),)  # low and high frequency factor; every published model has these


def scaling_of(divisors: np.ndarray | None, theta: float, head_dim: int, where: str) -> dict[str, Any] | None:
    """The `rope_scaling` object whose divisors [hd/2] are these; None for none, `CheckpointError` if no known kind is."""
    if divisors is None or (divisors == 1.0).all():
        return None
    largest = float(str(np.float32(divisors.max())))
    if (divisors == divisors[0]).all():
        return {"rope_type": "linear", "factor": largest}
    for factor in (largest, *_FACTORS):
        for low, high in _BOUNDS:
            for exponent in range(5, 21):
                found = {
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": 1 << exponent,
                }  # fmt: skip
                try:
                    made = rope_settings({"rope_theta": theta, "rope_scaling": found}, head_dim, where)[1]
                except RefspecError:
                    continue
                if made is not None and np.array_equal(made, divisors):
                    return found
    raise CheckpointError(f"{where}: the RoPE divisors (rope_freqs) are of no scaling a config.json can state")


def rope_keys(theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """RoPE as old and new readers want it: `rope_theta` and `rope_scaling`, and the same as `rope_parameters`."""
    legacy = None if scaling is None else {**scaling, "type": scaling["rope_type"]}
    return {
        "rope_theta": theta,
        "rope_scaling": legacy,
        "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
    }
