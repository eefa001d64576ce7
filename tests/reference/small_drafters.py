"""Small random drafters, and a second implementation of their forward pass: float64, no cache, no batch, no backend."""

from itertools import product
from typing import Any

import numpy as np

from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback, Residual, RopeStyle, weight_shapes
from refspec.reference.eagle3 import Eagle3Drafter

SWITCHES = list(product(FeatureNorm, Feedback, Residual))
EVERYTHING_ON = dict(feature_norm="per_state", feedback="post_norm", residual="normed", qk_norm=True)


def small_config(**changes: Any) -> DrafterConfig:
    sizes: dict[str, Any] = dict(
        hidden_size=12,
        target_hidden_size=10,
        capture_layers=(2, 4, 5),
        n_heads=4,
        n_kv_heads=2,
        head_dim=6,
        intermediate_size=20,
        vocab_size=31,
        draft_vocab_size=13,
        rms_eps=1e-5,
        rope_theta=10000.0,
        rope_style=RopeStyle.INTERLEAVED,
        feature_norm=FeatureNorm.NONE,
        feedback=Feedback.PRE_NORM,
        residual=Residual.RAW,
    )
    return DrafterConfig(**(sizes | changes))


def small_weights(config: DrafterConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    required, _ = weight_shapes(config)
    weights: dict[str, np.ndarray] = {}
    for name, shape in required.items():
        if name == "d2t":
            weights[name] = np.sort(rng.permutation(config.vocab_size)[: config.draft_vocab_size])
        elif name.endswith(".bias"):
            weights[name] = rng.standard_normal(shape).astype(np.float32)
        elif len(shape) == 1:
            weights[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    weights["output"] *= 3  # decisive logits
    return weights


def small_drafter(config: DrafterConfig | None = None, seed: int = 0) -> Eagle3Drafter:
    config = config or small_config(**EVERYTHING_ON)
    return Eagle3Drafter(config, small_weights(config, seed))


def small_rows(config: DrafterConfig, n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] and features [n, n_states*Ht]; the states differ in scale, as a real target's do."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(4.0 ** np.arange(config.n_states), config.target_hidden_size)
    features = rng.standard_normal((n, config.n_states * config.target_hidden_size)) * scale
    return rng.integers(config.vocab_size, size=n), features.astype(np.float32)


def plain_forward(
    c: DrafterConfig, weights: dict[str, np.ndarray], tokens: np.ndarray, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, D] and states handed on [T, H] of T tokens, the first len(features) true rows, the others chained."""
    w = {k: a.astype(np.float64) for k, a in weights.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        y: np.ndarray = x / np.sqrt((x**2).mean() + c.rms_eps) * w[name]
        return y

    def turn(x: np.ndarray, position: int) -> np.ndarray:  # rotation as multiplication by a complex number
        divisors = w.get("rope_freqs", np.ones(c.head_dim // 2))
        angle = position / c.rope_theta ** (2 * np.arange(c.head_dim // 2) / c.head_dim) / divisors
        pairs = x.reshape(-1, 2).T if c.rope_style is RopeStyle.INTERLEAVED else x.reshape(2, -1)
        z = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angle)
        turned = np.stack([z.real, z.imag])
        return turned.T.reshape(-1) if c.rope_style is RopeStyle.INTERLEAVED else turned.reshape(-1)

    def times(name: str, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = w[name] @ x + w.get(f"{name}.bias", 0.0)
        return y

    keys: list[list[np.ndarray]] = []
    values: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    states: list[np.ndarray] = []
    for position, token in enumerate(tokens):
        if position < len(features):
            a = features[position].astype(np.float64)
            if c.feature_norm is FeatureNorm.CONCAT:
                a = norm(a, "fc_norm")
            if c.feature_norm is FeatureNorm.PER_STATE:
                a = np.concatenate([norm(s, f"fc_norm.{i}") for i, s in enumerate(a.reshape(c.n_states, -1))])
            g = times("fc", a)
        else:
            g = states[-1]
        s = norm(g, "hidden_norm")
        x = np.concatenate([norm(w["token_embd"][token], "attn_norm"), s])
        q = times("attn_q", x).reshape(c.n_heads, c.head_dim)
        k = times("attn_k", x).reshape(c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = np.array([norm(r, "q_norm") for r in q]), np.array([norm(r, "k_norm") for r in k])
        keys.append([turn(r, position) for r in k])
        values.append(times("attn_v", x).reshape(c.n_kv_heads, c.head_dim))
        heads = []
        for h in range(c.n_heads):
            kv = h // (c.n_heads // c.n_kv_heads)
            scores = np.array([turn(q[h], position) @ row[kv] for row in keys]) / np.sqrt(c.head_dim)
            scores *= c.rope_attention_factor**2
            p = np.exp(scores - scores.max())
            heads.append(sum(pi * row[kv] for pi, row in zip(p / p.sum(), values, strict=True)))
        y = (s if c.residual is Residual.NORMED else g) + times("attn_output", np.concatenate(heads))
        z = norm(y, "ffn_norm")
        gate = times("ffn_gate", z)
        h_out = y + times("ffn_down", gate / (1 + np.exp(-gate)) * times("ffn_up", z))
        n = norm(h_out, "output_norm") if "output_norm" in w else h_out
        logits.append(times("output", n if c.head_norm else h_out))
        states.append(n if c.feedback is Feedback.POST_NORM else h_out)
    return np.array(logits), np.array(states)


def assert_same_state(a: Eagle3Drafter, b: Eagle3Drafter) -> None:
    assert a.n_rows == b.n_rows
    assert np.array_equal(a.cache.keys[: a.n_rows], b.cache.keys[: b.n_rows])
    assert np.array_equal(a.cache.values[: a.n_rows], b.cache.values[: b.n_rows])
    for mine, other in zip(a.draft(4), b.draft(4), strict=True):
        if mine is None or other is None:
            assert mine is other  # both drafted deterministically
        else:
            assert np.array_equal(mine, other)
