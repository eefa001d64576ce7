"""The KV cache behaves like a list of rows under any order of appends and rollbacks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec.errors import ShapeError
from refspec.reference.cache import KVCache, RowBuffer

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 90)), max_size=12)


@given(STEPS)
def test_a_row_buffer_is_a_list_of_rows(steps: list[tuple[bool, int]]) -> None:
    buffer, model, counter = RowBuffer(2), [], 0
    for appends, n in steps:
        if appends:
            rows = np.arange(counter, counter + 2 * n, dtype=np.float32).reshape(n, 2)
            counter += 2 * n
            buffer.append(rows)
            model += rows.tolist()
        else:
            n = min(n, len(model))
            buffer.rollback(n)
            model = model[:n]
        assert len(buffer) == len(model)
        assert buffer.rows.tolist() == model


def test_keys_and_values_roll_back_together() -> None:
    cache = KVCache(2, 3)
    k = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    cache.append(k, -k)
    cache.rollback(1)
    cache.append(k[2:3], -k[2:3])
    assert len(cache) == 2
    assert np.array_equal(cache.keys, k[[0, 2]])
    assert np.array_equal(cache.values, -k[[0, 2]])


@pytest.mark.parametrize("n", [-1, 3])
def test_rolling_back_to_rows_that_never_were_is_an_error(n: int) -> None:
    buffer = RowBuffer(1)
    buffer.append(np.zeros((2, 1), np.float32))
    with pytest.raises(ShapeError, match=f"{n} rows"):
        buffer.rollback(n)
