"""A configuration or a set of weights that cannot be right is refused in one line that names the value."""

from typing import Any

import numpy as np
import pytest
from small_drafters import SWITCHES, small_config, small_weights

from refspec.errors import CheckpointError, RefspecError, ShapeError
from refspec.reference.config import FeatureNorm, Feedback, RopeStyle, check_weights, weight_shapes


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3"),
        ({"head_dim": 5}, "head_dim = 5"),
        ({"draft_vocab_size": 32}, "draft_vocab_size = 32"),
        ({"capture_layers": ()}, "capture_layers"),
        ({"capture_layers": (2, 2)}, "distinct"),
        ({"capture_layers": (-1, 2)}, "capture_layers"),
        ({"rms_eps": 0.0}, "rms_eps = 0.0"),
        ({"rope_theta": float("nan")}, "rope_theta = nan"),
        ({"feedback": "both"}, "pre_norm | post_norm"),
        ({"feature_norm": "fc_norm"}, "none | concat | per_state"),
    ],
)
def test_contradicting_sizes_and_unknown_switches_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ShapeError) as error:
        small_config(**changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_switches_may_be_given_as_the_words_of_a_file() -> None:
    config = small_config(feedback="post_norm", rope_style="half_split")
    assert config.feedback is Feedback.POST_NORM
    assert config.rope_style is RopeStyle.HALF_SPLIT


@pytest.mark.parametrize("feature_norm, feedback, residual", SWITCHES)
def test_the_table_of_tensors_accepts_what_it_asks_for(feature_norm: Any, feedback: Any, residual: Any) -> None:
    config = small_config(feature_norm=feature_norm, feedback=feedback, residual=residual, qk_norm=True)
    check_weights(config, small_weights(config))


@pytest.mark.parametrize(
    "name", sorted(weight_shapes(small_config(feature_norm=FeatureNorm.PER_STATE, qk_norm=True))[0])
)
def test_every_missing_or_misshapen_tensor_is_named(name: str) -> None:
    config = small_config(feature_norm=FeatureNorm.PER_STATE, qk_norm=True)
    weights = small_weights(config)
    with pytest.raises(CheckpointError, match=f"f.gguf: tensor '{name}' is missing"):
        check_weights(config, {k: a for k, a in weights.items() if k != name}, "f.gguf")
    with pytest.raises(ShapeError, match=f"f.gguf: tensor '{name}'"):
        check_weights(config, weights | {name: weights[name][:-1]}, "f.gguf")


def test_a_norm_that_the_switches_would_ignore_is_refused() -> None:
    config = small_config()
    with pytest.raises(CheckpointError, match="'fc_norm' would not be used"):
        check_weights(config, small_weights(config) | {"fc_norm": np.ones(30, np.float32)})


def test_the_output_norm_may_be_absent_only_where_nothing_uses_it() -> None:
    for feedback, required in ((Feedback.PRE_NORM, False), (Feedback.POST_NORM, True)):
        config = small_config(head_norm=False, feedback=feedback)
        assert ("output_norm" in weight_shapes(config)[0]) is required


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused(bad: float) -> None:
    config = small_config()
    weights = small_weights(config)
    weights["ffn_up"][3, 4] = bad
    with pytest.raises(CheckpointError, match="'ffn_up' holds NaN"):
        check_weights(config, weights)


@pytest.mark.parametrize(
    "d2t", [np.zeros(13, np.int64), np.arange(13) + 19, np.arange(13) - 1, np.arange(13, dtype=np.float32)]
)
def test_a_draft_vocabulary_of_offsets_or_foreign_ids_is_refused(d2t: np.ndarray) -> None:
    config = small_config()
    with pytest.raises(RefspecError, match="d2t"):
        check_weights(config, small_weights(config) | {"d2t": d2t})


def test_a_full_draft_vocabulary_needs_no_map() -> None:
    config = small_config(draft_vocab_size=31)
    assert "d2t" not in small_weights(config)
    check_weights(config, small_weights(config))
