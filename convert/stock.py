"""The nearest drafters that stock llama.cpp can run: norms it lacks are replaced by constants from calibration prompts.

What stock llama.cpp lacks: `drafter_meta.stock_reasons`. A norm divides each row by its own number; folded into a
matrix, it divides by the mean. A bias becomes a part of its matrix that gives nearly the same for the inputs seen.
Exact are only the head (a positive factor per row leaves the argmax) and added states of zero weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refspec.errors import CheckpointError
from refspec.gguf.drafter_meta import STOCK_STATES
from refspec.reference import ops
from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual, Weights
from refspec.reference.eagle3 import Eagle3Drafter

BIAS_ROWS = 256  # rows whose inputs a bias is folded for
Arrays = dict[str, np.ndarray]
Candidate = tuple[DrafterConfig, Arrays]


@dataclass(frozen=True)
class Calibration:
    """Means over calibration rows of what the norms divide by."""

    per_state: np.ndarray  # [n_states] mean of 1 / rms of each state
    shares: np.ndarray  # [n_states] mean of rms of all states together / rms of each
    together: float  # mean of 1 / rms of all states together
    q: np.ndarray  # [nh] mean of 1 / rms of each query head; ones without query norms
    k: np.ndarray  # [nkv] the same of the keys
    state: float  # mean rms of the state g
    ungained: float  # mean rms of g with the gains of the final norm taken out
    constants: dict[str, np.ndarray] = field(default_factory=dict)  # matrix with a bias -> u [inputs] with x u near 1


def _rms(x: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1) + eps))


def calibrate(c: DrafterConfig, w: Weights, tokens: np.ndarray, features: np.ndarray) -> Calibration:
    """Measure on true rows: tokens [T] with target features [T, n_states*Ht]; `CheckpointError` without rows."""
    if not len(tokens):
        raise CheckpointError("calibration: no rows were recorded; give prompts that generate something")
    states = features.reshape(len(tokens), c.n_states, c.target_hidden_size)
    each, all_ = _rms(states, c.rms_eps), _rms(features, c.rms_eps)  # [T, n_states], [T]
    a = features
    if c.feature_norm is FeatureNorm.CONCAT:
        a = features / all_[:, None] * w["fc_norm"]
    elif c.feature_norm is FeatureNorm.PER_STATE:
        a = np.concatenate([states[:, i] / each[:, i, None] * w[f"fc_norm.{i}"] for i in range(c.n_states)], axis=1)
    g = a @ w["fc"].T + w.get("fc.bias", 0)  # [T, H]
    q, k = np.ones(c.n_heads), np.ones(c.n_kv_heads)
    if c.qk_norm:
        e = w["token_embd"][tokens].astype(np.float64)
        e, s = e / _rms(e, c.rms_eps)[:, None] * w["attn_norm"], g / _rms(g, c.rms_eps)[:, None] * w["hidden_norm"]
        x = np.concatenate([e, s], axis=1)  # [T, 2H]
        heads = [x @ w[f"attn_{n}"].T + w.get(f"attn_{n}.bias", 0) for n in ("q", "k")]
        q, k = (np.mean(1 / _rms(h.reshape(len(x), -1, c.head_dim), c.rms_eps), axis=0) for h in heads)
    ungained = float(np.mean(_rms(g / _gains(w), c.rms_eps))) if c.feedback is Feedback.POST_NORM else 1.0
    return Calibration(
        np.mean(1 / each, axis=0), np.mean(all_[:, None] / each, axis=0), float(np.mean(1 / all_)), q, k,
        float(np.mean(_rms(g, c.rms_eps))), ungained, _constants(c, w, tokens, features) if c.biases else {},
    )  # fmt: skip


class _Recording:
    """The NumPy backend, keeping the inputs of every matrix."""

    def __init__(self) -> None:
        self.inputs: dict[int, np.ndarray] = {}  # id of a matrix -> [T, inputs]

    def matvec(self, w: np.ndarray, x: np.ndarray) -> np.ndarray:
        self.inputs[id(w)] = np.array(x)
        return np.asarray(ops.matvec(w, x))

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)


def _constants(c: DrafterConfig, w: Weights, tokens: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
    """For each matrix with a bias, the smallest u with x u near 1 for its inputs x (damped least squares)."""
    recording = _Recording()
    drafter = Eagle3Drafter(c, w, recording)
    drafter.forward_rows(tokens[:BIAS_ROWS], features[:BIAS_ROWS], is_target_feature=True)
    out = {}
    for name in c.biases:
        x = recording.inputs[id(drafter.weights[name])].astype(np.float64)  # [T, inputs]
        gram = x @ x.T  # [T, T]
        damped = gram + 1e-2 * float(np.mean(np.diag(gram))) * np.eye(len(x))
        out[name] = x.T @ np.linalg.solve(damped, np.ones(len(x)))
    return out


def _without_biases(c: DrafterConfig, w: Weights, cal: Calibration) -> dict[str, dict[str, np.ndarray]]:
    """The weights without biases, by what was done with them."""
    rest = {name: np.asarray(a) for name, a in w.items() if not name.endswith(".bias")}
    if not c.biases:
        return {"": rest}
    folded = {n: (rest[n] + np.outer(w[f"{n}.bias"], cal.constants[n])).astype(np.float32) for n in c.biases}
    return {"biases folded": rest | folded, "biases left out": rest}


def _gains(w: Weights) -> np.ndarray:
    """The weights of the final norm [H], none so small that dividing by it would spoil a channel."""
    gains = np.asarray(w["output_norm"], np.float64)
    least = 1e-2 * float(_rms(gains, 0.0))
    return np.where(np.abs(gains) < least, np.copysign(least, gains), gains)


def candidates(c: DrafterConfig, w: Weights, cal: Calibration) -> dict[str, Candidate]:
    """Every near drafter by a name that says what was done: feature norms folded or joined, both residuals."""
    if c.n_states > STOCK_STATES:
        raise CheckpointError(f"{c.n_states} captured states: stock llama.cpp takes {STOCK_STATES}; train with fewer")
    out: dict[str, Candidate] = {}
    for said, weights in _without_biases(c, w, cal).items():
        out |= _candidates(replace(c, biases=()), weights, cal, said)
    return out


def _candidates(c: DrafterConfig, w: Weights, cal: Calibration, said: str) -> dict[str, Candidate]:
    base, done = _heads(c, w, cal)
    done = [*([said] if said else []), *done]
    out: dict[str, Candidate] = {}
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
        if c.feedback is Feedback.POST_NORM:
            near = replace(config, feedback=Feedback.PRE_NORM, residual=Residual.NORMED, head_norm=True, qk_norm=False)
            for alike, scale in _scales(c, cal).items():
                words = [name, *done, f"final norm moved to the state ({alike})"]
                out[", ".join(word for word in words if word)] = (near, _moved(c, weights, cal, scale))
    return out


def _scales(c: DrafterConfig, cal: Calibration) -> dict[str, float]:
    if c.residual is Residual.NORMED:
        return {"both rows alike": 1.0}
    return {"chained rows alike": 1.0, "between": cal.ungained**0.5, "true rows alike": cal.ungained}


def _moved(c: DrafterConfig, w: dict[str, np.ndarray], cal: Calibration, scale: float) -> dict[str, np.ndarray]:
    """The final norm in the place of hidden_norm: a chained row then starts from what post-norm feedback hands on.

    True rows get g without those gains (out of fc), hidden_norm's own go into the columns of q, k and v.
    """
    gains, hidden = _gains(w), np.asarray(w["hidden_norm"], np.float64)
    alike = 1 / float(_rms(gains, 0.0)), cal.ungained / cal.state  # 1 / rms of what the norm gives, chained and true
    factor = (alike[0] * alike[1]) ** 0.5
    out = dict(w) | {"fc": (w["fc"] / gains[:, None]).astype(np.float32)}
    if c.residual is Residual.NORMED:  # the state itself carries hidden_norm's gains too
        return out | {"hidden_norm": (gains * hidden * factor).astype(np.float32)}
    columns = np.concatenate([np.ones(c.hidden_size), hidden * factor / scale])  # [2H], the embedding first
    out |= {n: (w[n] * columns).astype(np.float32) for n in ("attn_q", "attn_k", "attn_v")}
    return out | {"hidden_norm": (gains * scale).astype(np.float32)}


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


def _features(c: DrafterConfig, w: Arrays, cal: Calibration) -> list[tuple[str, DrafterConfig, Arrays]]:
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
        near = replace(c, feature_norm=FeatureNorm.CONCAT)
        out.append(("feature norms joined to one", near, {**rest, "fc_norm": joined}))
    return out
