"""RoPE divisors of a GGUF -> the scaling in a Hugging Face config: the inverse of `rope.py`, checked by running that.

llama.cpp runs the divisors (`rope_freqs`). refspec stores the parameters they were made from beside them; for a file of
another program the usual ones are tried. Either way they must make the same divisors, bit for bit.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np

from refspec.convert.rope import Rope, rope_settings
from refspec.errors import CheckpointError, RefspecError
from refspec.gguf.drafter_meta import decimal
from refspec.gguf.header import GgufInfo

Scaling = dict[str, Any] | None  # the `rope_scaling` object of a config.json
KEY = "refspec.rope_scaling"  # a JSON object, as `rope.stated` orders it

_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0)
_LENGTHS = [1 << n for n in range(5, 21)]  # original contexts
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # as every published model has it
_YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}


def kept_scaling(rope: Rope) -> dict[str, str]:
    """The metadata that keeps the parameters of a scaling for the way back; empty without scaling."""
    return {} if rope.scaling is None else {KEY: json.dumps(rope.scaling)}


def scaling_in(
    info: GgufInfo, divisors: np.ndarray | None, theta: float, head_dim: int, context: int, attention_factor: float
) -> Scaling:
    """The scaling a GGUF keeps in words, if it makes these divisors [hd/2], else as `scaling_of`; None for none.

    `CheckpointError` where the words and the divisors disagree, or no known kind makes them.
    """
    if KEY not in info.metadata:
        return scaling_of(divisors, theta, head_dim, str(info.path), attention_factor)
    said = str(info.metadata[KEY])[:80]
    wrong = CheckpointError(f"{info.path}: {KEY} = {said!r} does not make its rope_freqs; convert the model again")
    try:
        scaling = json.loads(info.need(KEY, str))
        config = {"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": context}
        made = rope_settings(config, head_dim, str(info.path))
    except (ValueError, RecursionError, RefspecError):
        raise wrong from None
    if not _makes(made, divisors, attention_factor):
        raise wrong
    return made.scaling


def _makes(made: Rope, divisors: np.ndarray | None, attention_factor: float) -> bool:
    if divisors is None or made.divisors is None:
        return False
    return decimal(made.attention_factor) == attention_factor and np.array_equal(made.divisors, divisors)


def scaling_of(divisors: np.ndarray | None, theta: float, head_dim: int, where: str, attention: float = 1.0) -> Scaling:
    """The `rope_scaling` object that makes these divisors [hd/2]; None for none, `CheckpointError` if no kind does."""
    if attention == 1.0:
        if divisors is None or (divisors == 1.0).all():
            return None
        if (divisors == divisors[0]).all():
            return {"rope_type": "linear", "factor": decimal(divisors[0])}
    largest = [] if divisors is None else [decimal(divisors.max())]
    for factor, length, kind in product([*largest, *_FACTORS], _LENGTHS, _kinds(attention)):
        found = {**kind, "factor": factor, "original_max_position_embeddings": length}
        try:
            made = rope_settings({"rope_theta": theta, "rope_scaling": found}, head_dim, where)
        except RefspecError:
            continue
        if _makes(made, divisors, attention):
            return found
    raise CheckpointError(f"{where}: the RoPE divisors (rope_freqs) are of no scaling a config.json can state")


def _kinds(attention_factor: float) -> list[dict[str, Any]]:
    yarn = [{**_YARN, "truncate": cut, "attention_factor": attention_factor} for cut in (True, False)]
    return [_LLAMA3, *yarn] if attention_factor == 1.0 else yarn


def rope_keys(theta: float, scaling: Scaling) -> dict[str, Any]:
    """RoPE as old and new readers want it: `rope_theta` and `rope_scaling`, and the same as `rope_parameters`."""
    legacy = None if scaling is None else {**scaling, "type": scaling["rope_type"]}
    parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": theta, "rope_scaling": legacy, "rope_parameters": parameters}
