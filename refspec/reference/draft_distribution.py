"""The distribution that a sampled draft token is drawn from, where draft ids differ from the target's.

Legend: D draft ids, V target ids, d2t [D] the target id of each draft id.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler, p_target


def restricted(sampler: Sampler, d2t: Ids) -> Sampler:
    """The sampler with its logit bias keyed by draft ids instead of target ids."""
    bias = {int(j): b for t, b in sampler.logit_bias.items() for j in np.flatnonzero(d2t == t)}
    return replace(sampler, logit_bias=bias)


def draft_law(logits: Array, sampler: Sampler, d2t: Ids, vocab_size: int) -> npt.NDArray[np.float64]:
    """q_draft [V] of draft logits [D] under a `restricted` sampler: exactly 0 outside the draft vocabulary."""
    q = np.zeros(vocab_size)  # [V]
    q[d2t] = p_target(logits, sampler)  # [D]
    return q
