"""The nearest drafters stock llama.cpp can run: its missing norms replaced by what they were on calibration text.

Stock llama.cpp knows no norm per state, feeds back the pre-norm state, always norms before the head, has no query and key
norms and takes three states. A norm divides by a number that differs from row to row; folded, it divides by the mean.
Nothing here is exact but the head (a positive factor per row leaves the argmax) and states added with zero weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from refspec.config import DrafterConfig, FeatureNorm, Feedback, Residual, Weights
from refspec.drafter_meta import STOCK_STATES
from refspec.errors import CheckpointError

Candidate = tuple[DrafterConfig, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Calibration:
    """Means over calibration rows of what the norms divide by."""

    per_state: np.ndarray  # [n_states] mean of 1 / rms of each state
    shares: np.ndarray  # [n_states] mean of rms of all states together / rms of each
    together: float  # mean of 1 / rms of all states together
    q: np.ndarray  # [nh] mean of 1 / rms of each query head; ones without query norms
    k: np.ndarray  # [nkv] the same of the keys


def _rms(x: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1) + eps))


def calibrate(c: DrafterConfig, w: Weights, tokens: np.ndarray, features: np.ndarray) -> Calibration:
    """Measure on true rows: tokens [T] with target features [T, n_states*Ht]; `CheckpointError` without rows."""
    if not len(tokens):
        raise CheckpointError("calibration: no rows were recorded; give prompts that generate something")
    states = features.reshape(len(tokens), c.n_states, c.target_hidden_size)
    each, all_ = _rms(states, c.rms_eps), _rms(features, c.rms_eps)  # [T, n_states], [T]
    q, k = np.ones(c.n_heads), np.ones(c.n_kv_heads)
    if c.qk_norm:
        x = _block_input(c, w, tokens, states / each[..., None], features / all_[:, None])
        heads = {n: (x @ w[f"attn_{n}"].T).reshape(len(x), -1, c.head_dim) for n in ("q", "k")}
        q, k = (np.mean(1 / _rms(heads[n], c.rms_eps), axis=0) for n in ("q", "k"))
    return Calibration(
        np.mean(1 / each, axis=0), np.mean(all_[:, None] / each, axis=0), float(np.mean(1 / all_)), q, k
    )  # fmt: skip


def _block_input(
    c: DrafterConfig, w: Weights, tokens: np.ndarray, each: np.ndarray, together: np.ndarray
) -> np.ndarray:
    """What query and key matrices see on true rows, [T, 2H]."""
    a = {
        FeatureNorm.NONE: lambda: together,  # RMSNorm of g forgets the scale
        FeatureNorm.CONCAT: lambda: together * w["fc_norm"],
        FeatureNorm.PER_STATE: lambda: (each * np.stack([w[f"fc_norm.{i}"] for i in range(c.n_states)])).reshape(len(tokens), -1),
    }[c.feature_norm]()
    g, e = a @ w["fc"].T, w["token_embd"][tokens].astype(np.float64)
    return np.concatenate([e / _rms(e, c.rms_eps)[:, None] * w["attn_norm"], g / _rms(g, c.rms_eps)[:, None] * w["hidden_norm"]], axis=1)


def candidates(c: DrafterConfig, w: Weights, cal: Calibration) -> dict[str, Candidate]:
    """Every near drafter by a name that says what was done: feature norms folded or joined, both residuals."""
    if c.n_states > STOCK_STATES:
        raise CheckpointError(f"{c.n_states} captured states: stock llama.cpp takes {STOCK_STATES}, and which to drop is a matter of training")
    base, done = _heads(c, w, cal)
    out = {}
    for name, config, weights in _features(c, base, cal):
        residuals = [c.residual]
        if c.feedback is Feedback.POST_NORM and c.residual is Residual.RAW:
            residuals.append(Residual.NORMED)  # a chained row's state stays bounded, as it did; true rows change too
        for residual in residuals:
            words = [name, *done]
            if c.feedback is Feedback.POST_NORM:
                words.append("pre-norm feedback")
            if residual is not c.residual:
                words.append("normed residual")
            near = replace(config, feedback=Feedback.PRE_NORM, residual=residual, head_norm=True, qk_norm=False)
            out[", ".join(word for word in words if word)] = (near, weights)
    return out


def _heads(c: DrafterConfig, w: Weights, cal: Calibration) -> tuple[dict[str, np.ndarray], list[str]]:
    """Query and key norms into their rows; a head without a norm gets one that leaves its argmax."""
    weights, done = {name: np.asarray(a) for name, a in w.items()}, []
    if c.qk_norm:
        for name, scale in (("q", cal.q), ("k", cal.k)):
            rows = np.outer(scale, weights.pop(f"{name}_norm")).reshape(-1, 1)  # [heads*hd, 1]
            weights[f"attn_{name}"] = (weights[f"attn_{name}"] * rows).astype(np.float32)
        done.append("query and key norms folded")
    if not c.head_norm:
        weights["output_norm"] = np.ones(c.hidden_size, np.float32)
        done.append("a norm before the head")
    return weights, done


def _features(c: DrafterConfig, w: dict[str, np.ndarray], cal: Calibration) -> list[tuple[str, DrafterConfig, dict[str, np.ndarray]]]:
    """The feature norm as stock llama.cpp can have it: none (folded into fc) or one over all states."""
    rest = {name: a for name, a in w.items() if not name.startswith("fc_norm")}
    ht, three = c.target_hidden_size, c.n_states == STOCK_STATES
    if c.feature_norm is FeatureNorm.PER_STATE:
        norms = np.stack([w[f"fc_norm.{i}"] for i in range(c.n_states)])  # [n_states, Ht]
        folded = (norms * cal.per_state[:, None]).reshape(-1)
    elif c.feature_norm is FeatureNorm.CONCAT:
        if three:
            return [("", c, w)]
        folded = w["fc_norm"] * cal.together
    else:
        folded = np.ones(c.n_states * ht)
    fc = (w["fc"] * folded).astype(np.float32)
    layers, spare = list(c.capture_layers), (b for b in range(1, 1 << 16) if b not in c.capture_layers)
    while len(layers) < STOCK_STATES:  # a state nothing looks at
        layers.append(next(spare))
    fc = np.concatenate([fc, np.zeros((len(fc), len(layers) * ht - fc.shape[1]), np.float32)], axis=1)
    config = replace(c, feature_norm=FeatureNorm.NONE, capture_layers=tuple(layers))
    said = "" if c.feature_norm is FeatureNorm.NONE else "feature norms folded into fc"
    out = [(said if three else f"{said or 'states'} padded to three", config, {**rest, "fc": fc})]
    if three and c.feature_norm is FeatureNorm.PER_STATE:
        joined = (norms * cal.shares[:, None]).reshape(-1).astype(np.float32)
        out.append(("feature norms joined to one", replace(c, feature_norm=FeatureNorm.CONCAT), {**rest, "fc_norm": joined}))
    return out
