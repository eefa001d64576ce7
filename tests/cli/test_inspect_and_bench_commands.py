"""`refspec inspect` and `refspec bench`: thin commands over `inspect.py` and `bench.py`."""

import json

import pytest
from cli_models import call, one_line_error, write_pair

from refspec import bench


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


def test_inspect_prints_text_or_one_json_object(pair):
    result = call("inspect", pair[1])
    assert result.exit_code == 0 and "post_norm" in result.stdout and "per_state" in result.stdout
    assert json.loads(call("inspect", pair[0], "--json").stdout)["kind"] == "target"


def test_inspect_of_what_is_not_a_model_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "x.gguf" in one_line_error(call("inspect", tmp_path / "x.gguf"))
    assert "gone.gguf" in one_line_error(call("inspect", tmp_path / "gone.gguf"))


def test_help_lists_the_commands_and_runnable_examples():
    result = call("-h")
    assert result.exit_code == 0
    for word in ("generate", "inspect", "bench", "refspec generate --compare -p"):
        assert word in result.stdout


def test_bench_measures_and_explains(pair):
    arguments = ["bench", "speed", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "32", "--repeat", "1", "--draft-max", "2"]
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["tau"] >= 1 and len(measured["verify_seconds"]) == bench.ROWS
    assert 0 < measured["own_share"] < 1
    assert len(measured["predicted_by_draft_length"]) == len(measured["accepted_by_position"]) == 2
    text = "\n".join(bench.table(measured))
    for word in ("plain", "speculative", "speedup", "predicted", "tau", "refspec itself", "rows verified", "other processes"):
        assert word in text
    assert ("LOSES" in text) == (measured["speedup"] < 1)


def test_bench_without_a_drafter_is_a_usage_error(pair):
    result = call("bench", "speed", "-m", pair[0], "-t", "1")
    assert result.exit_code == 2 and "-d" in result.stderr


def test_the_prediction_is_the_formula():
    costs = {"verify_seconds": [1.0, 1.5, 2.0], "draft_token_seconds": 0.1, "extend_seconds": 0.05}
    got = bench.predict([0.5, 0.25], costs, own=0.01, own_plain=0.01)
    assert got == pytest.approx([1.5 * 1.01 / (1.5 + 0.1 + 0.06), 1.75 * 1.01 / (2.0 + 0.2 + 0.06)])


def test_foreign_load_is_a_number_of_cores_where_the_system_says():
    cores = bench.ForeignLoad().cores()
    assert cores is None or cores >= 0
