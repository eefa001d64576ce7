"""rs_eagle3_step beyond agreement: bounds, switches it refuses, and rows that may be run again. Agreement: tests/agreement."""

import numpy as np
import pytest
from small_drafters import small_config, small_rows, small_weights

from refspec import native
from refspec.config import FeatureNorm
from refspec.errors import CheckpointError, ShapeError
from refspec.native import Eagle3Rows

if native.backend != "c":
    pytest.skip("the C module is not built", allow_module_level=True)

CONFIG = small_config(feature_norm=FeatureNorm.PER_STATE)
WEIGHTS = small_weights(CONFIG)
TOKENS, FEATURES = small_rows(CONFIG, 6)


def test_stepping_again_from_an_earlier_row_is_rollback() -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 6)
    first = [rows.step(int(t), rows.encode(a), i) for i, (t, a) in enumerate(zip(TOKENS, FEATURES, strict=True))]
    rows.step(0, np.ones(CONFIG.hidden_size, np.float32), 3)  # another row 3, then the true ones again
    again = [rows.step(int(TOKENS[i]), rows.encode(FEATURES[i]), i) for i in range(3, 6)]
    for a, b in zip(first[3:], again, strict=True):
        assert np.array_equal(a.logits, b.logits)


def test_the_state_may_be_overwritten_by_its_successor() -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    state = rows.encode(FEATURES[0])
    expected = rows.step(3, state, 0)
    lib, p = native.lib, native.ffi.from_buffer
    null, shared = native.ffi.NULL, state.copy()
    status = lib.rs_eagle3_step(
        null, null, p("float[]", shared), p("float[]", rows.keys), p("float[]", rows.values), null,
        p("float[]", rows._scratch), rows._config, rows._weights, 3, p("float[]", shared), 0, 0,
    )  # fmt: skip
    assert status == lib.RS_OK
    assert np.array_equal(shared, expected.state_out)


@pytest.mark.parametrize(
    "token, row, message", [(-1, 0, "token -1"), (31, 0, "token 31"), (0, 2, "row 2"), (0, -1, "row -1")]
)
def test_a_token_or_row_out_of_range_is_refused(token: int, row: int, message: str) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    with pytest.raises(ShapeError, match=message):
        rows.step(token, np.zeros(CONFIG.hidden_size, np.float32), row)


@pytest.mark.parametrize("width", [0, CONFIG.hidden_size + 1])
def test_states_and_features_of_another_width_are_refused(width: int) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    with pytest.raises(ShapeError):
        rows.step(0, np.zeros(width, np.float32), 0)
    with pytest.raises(ShapeError):
        rows.encode(np.zeros(width, np.float32))


def test_a_missing_weight_or_no_capacity_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'fc'"):
        Eagle3Rows(CONFIG, {k: v for k, v in WEIGHTS.items() if k != "fc"}, 2)
    with pytest.raises(ShapeError, match="0 rows"):
        Eagle3Rows(CONFIG, WEIGHTS, 0)


@pytest.mark.parametrize(
    "field, value",
    [("rope_style", 2), ("feature_norm", 3), ("feature_norm", -1), ("feedback", 2), ("residual", -1), ("head_dim", 7), ("n_kv_heads", 3),
     ("hidden", 0), ("feature_norm", 1)],  # the last: concat, whose norm weight is not there
)  # fmt: skip
def test_the_c_check_refuses_switches_and_sizes_it_does_not_know(field: str, value: int) -> None:
    rows = Eagle3Rows(CONFIG, WEIGHTS, 2)
    assert native.lib.rs_eagle3_check(rows._config, rows._weights) == native.lib.RS_OK
    setattr(rows._config, field, value)
    assert native.lib.rs_eagle3_check(rows._config, rows._weights) == native.lib.RS_BAD_CONFIG
