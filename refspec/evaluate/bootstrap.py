"""Ratios of sums with percentile bootstrap intervals over prompts (Efron 1979); the same resamples pair a comparison.

Chains and verify steps of one prompt are not independent, so prompts are resampled, and every mean is a ratio of sums
over the prompts drawn. Legend: P prompts, B resamples, K entries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
Floats = npt.NDArray[np.float64]
Value = dict[str, float | None]  # mean, low, high


def resamples(prompts: int, seed: int) -> Floats:
    """How often each of P prompts is drawn in each of B resamples, float64 [B, P]; the seed decides."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES).astype(np.float64)


def ratios(sums: Floats, counts: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """Sums and counts [P, K], draws [B, P] -> the ratio of the sums [K], and of each resample [B, K]; NaN for 0 / 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.sum(0) / counts.sum(0), (draws @ sums) / (draws @ counts)


def summaries(means: Floats, again: Floats, enough: npt.NDArray[np.bool_]) -> list[Value]:
    """Means [K] with the interval of their resamples [B, K], where `enough` [K] prompts count; None is unknown."""
    tail = 100 * (1 - LEVEL) / 2
    out: list[Value] = []
    for i, mean in enumerate(means):
        known = again[:, i][np.isfinite(again[:, i])]
        low, high = np.percentile(known, [tail, 100 - tail]) if enough[i] and len(known) else (np.nan, np.nan)
        out.append({"mean": number(mean), "low": number(low), "high": number(high)})
    return out


def intervals(sums: Floats, counts: Floats, draws: Floats) -> list[Value]:
    """Ratio of sums and its interval for each of K entries, from sums and counts [P, K] and draws [B, P]."""
    means, again = ratios(sums, counts, draws)
    return summaries(means, again, np.count_nonzero(counts, axis=0) > 1)


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return round(float(value), 6) if np.isfinite(value) else None
