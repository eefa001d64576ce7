"""A sampler's law over a draft vocabulary: D draft ids, each of which stands for one of the target's V."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler, p_target


def restricted(sampler: Sampler, d2t: Ids) -> Sampler:
    """The sampler with its logit bias keyed by draft ids instead of target ids; d2t [D] are the target ids."""
    bias = {int(j): b for t, b in sampler.logit_bias.items() for j in np.flatnonzero(d2t == t)}
    return replace(sampler, logit_bias=bias)


def draft_law(logits: Array, sampler: Sampler, d2t: Ids, vocab_size: int) -> npt.NDArray[np.float64]:
    """A restricted sampler's law of draft logits [D] as q_draft [V]: exactly zero outside the draft vocabulary."""
    q = np.zeros(vocab_size)  # [V]
    q[d2t] = p_target(logits, sampler)  # [D]
    return q
