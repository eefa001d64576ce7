"""Folding for stock llama.cpp: exact where it can be, measured where it cannot."""

from typing import Any

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights

from refspec.convert.stock import calibrate, candidates
from refspec.errors import CheckpointError
from refspec.gguf.drafter_meta import stock_reasons
from refspec.reference.config import FeatureNorm
from refspec.reference.eagle3 import Eagle3Drafter

ATOL = 2e-4  # float32 on both sides, logits up to about 10


def rows(c: Any, count: int = 12, *, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and features; `even` gives every state of every row the magnitude 1.5, so that a mean is the value."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((count, c.n_states, c.target_hidden_size)) * rng.uniform(0.5, 2.0, (count, c.n_states, 1))
    if even:
        x *= 1.5 / np.sqrt((x**2).mean(-1, keepdims=True))
    return rng.integers(0, c.vocab_size, count), x.reshape(count, -1).astype(np.float32)


def logits(c: Any, w: Any, tokens: np.ndarray, features: np.ndarray) -> np.ndarray:
    return Eagle3Drafter(c, w).forward_rows(tokens, features, is_target_feature=True).logits


@pytest.mark.parametrize("feature_norm", ["none", "concat", "per_state"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
def test_every_candidate_is_one_stock_llama_cpp_runs(feature_norm: str, qk_norm: bool, feedback: str) -> None:
    c = drafter_config(feature_norm=feature_norm, qk_norm=qk_norm, feedback=feedback)
    w = drafter_weights(c)
    near = candidates(c, w, calibrate(c, w, *rows(c, even=False)))
    assert len(near) == (2 if feature_norm == "per_state" else 1) * (5 if feedback == "post_norm" else 1)
    for config, weights in near.values():
        assert stock_reasons(config) == []
        Eagle3Drafter(config, weights)  # raises unless the weights are exactly what the configuration needs


def test_norms_of_states_of_constant_magnitude_fold_exactly() -> None:
    c = drafter_config(feedback="pre_norm")
    w = drafter_weights(c)
    tokens, features = rows(c, even=True)
    for config, weights in candidates(c, w, calibrate(c, w, tokens, features)).values():
        np.testing.assert_allclose(
            logits(config, weights, tokens, features), logits(c, w, tokens, features), rtol=0, atol=ATOL
        )


@pytest.mark.parametrize("residual", ["raw", "normed"])
def test_a_final_norm_without_gains_moves_to_the_state_exactly_for_chained_rows(residual: str) -> None:
    c = drafter_config(feature_norm="none", residual=residual)
    w = drafter_weights(c) | {"output_norm": np.ones(c.hidden_size, np.float32)}
    tokens, features = rows(c, 1, even=False)
    name, (config, weights) = list(candidates(c, w, calibrate(c, w, tokens, features)).items())[
        1 if residual == "normed" else 2
    ]
    assert "moved to the state" in name and config.residual.value == "normed"
    h = np.random.default_rng(5).standard_normal((1, c.hidden_size)).astype(np.float32) * 7
    n = h / np.sqrt((h**2).mean() + c.rms_eps)
    exact = Eagle3Drafter(c, w).forward_rows(tokens[:1], n, is_target_feature=False).logits
    ours = Eagle3Drafter(config, weights).forward_rows(tokens[:1], h, is_target_feature=False).logits
    np.testing.assert_allclose(ours, exact, rtol=0, atol=ATOL)


def test_two_states_without_norms_are_padded_exactly() -> None:
    c = drafter_config(feature_norm="none", feedback="pre_norm", capture_layers=(2, 4))
    w = drafter_weights(c)
    tokens, features = rows(c, even=False)
    ((config, weights),) = candidates(c, w, calibrate(c, w, tokens, features)).values()
    assert config.capture_layers == (2, 4, 1)
    wide = np.concatenate([features, np.ones((len(tokens), 64), np.float32)], axis=1)
    np.testing.assert_allclose(logits(config, weights, tokens, wide), logits(c, w, tokens, features), rtol=0, atol=ATOL)


def test_a_norm_put_before_the_head_leaves_the_argmax() -> None:
    c = drafter_config(feature_norm="none", feedback="pre_norm", head_norm=False)
    w = drafter_weights(c)
    tokens, features = rows(c, even=False)
    ((config, weights),) = candidates(c, w, calibrate(c, w, tokens, features)).values()
    ours, exact = logits(config, weights, tokens, features), logits(c, w, tokens, features)
    assert config.head_norm and np.array_equal(ours.argmax(-1), exact.argmax(-1))


def test_query_and_key_norms_fold_to_nearly_the_same_logits() -> None:
    c = drafter_config(feature_norm="none", feedback="pre_norm", qk_norm=True)
    w = drafter_weights(c)
    w["attn_q"] *= 4  # a scale that the norm takes away
    tokens, features = rows(c, even=False)
    near = calibrate(c, w, tokens, features)
    ((config, weights),) = candidates(c, w, near).values()
    exact = logits(c, w, tokens, features)
    without = {n: a for n, a in w.items() if n not in ("q_norm", "k_norm")}
    folded, dropped = (np.abs(logits(config, x, tokens, features) - exact).mean() for x in (weights, without))
    assert folded < 0.5 * dropped


def test_more_than_three_states_have_nothing_near() -> None:
    c = drafter_config(capture_layers=(1, 2, 3, 4))
    w = drafter_weights(c)
    with pytest.raises(CheckpointError, match="4 captured states"):
        candidates(c, w, calibrate(c, w, *rows(c, even=False)))
    assert c.feature_norm is FeatureNorm.PER_STATE


def test_no_calibration_rows_is_an_error() -> None:
    c = drafter_config()
    with pytest.raises(CheckpointError, match="no rows"):
        calibrate(c, drafter_weights(c), np.zeros(0, np.int64), np.zeros((0, 192), np.float32))
