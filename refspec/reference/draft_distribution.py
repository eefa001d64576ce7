"""The distribution that a sampled draft token is drawn from, where draft ids differ from the target's.

Legend: D draft ids, V target ids, d2t [D] the target id of each draft id; None where they are the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refspec.reference.ops import Ids
from refspec.reference.sampling import Sampler


def restricted(sampler: Sampler, d2t: Ids | None, width: int) -> Sampler:
    """The sampler with its logit bias keyed by draft ids, of which there are `width`, instead of target ids."""
    if not len(sampler.bias_ids) or (d2t is None and sampler.bias_ids.max() < width):
        return sampler
    if d2t is None:
        bias = {t: b for t, b in sampler.logit_bias.items() if t < width}
    else:
        bias = {int(j): b for t, b in sampler.logit_bias.items() for j in np.flatnonzero(d2t == t)}
    return replace(sampler, logit_bias=bias)


def forbids_all(sampler: Sampler, ids: Ids) -> bool:
    """Whether the logit bias leaves none of these target ids to sample."""
    forbidden = sampler.bias_ids[np.isneginf(sampler.bias_values)]
    return len(forbidden) >= len(ids) and bool(np.isin(ids, forbidden).all())


def draft_distribution(p: npt.NDArray[np.float64], d2t: Ids | None, vocab_size: int) -> npt.NDArray[np.float64]:
    """Probabilities p [D] of draft ids as q_draft [V]: exactly zero outside the draft vocabulary."""
    if d2t is None and len(p) == vocab_size:
        return p
    q = np.zeros(vocab_size)  # [V]
    q[slice(len(p)) if d2t is None else d2t] = p
    return q
