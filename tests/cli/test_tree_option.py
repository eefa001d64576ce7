"""`--tree` on tiny random models: the same text, counted as trees are, and its errors."""

import pytest
from cli_models import call, one_line_error, record, write_pair

from refspec.evaluate import speed, speed_costs
from refspec.reference.metrics import Seconds, Statistics, Step


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    pair = write_pair(tmp_path_factory.mktemp("models"))
    return ["-m", pair[0], "-d", pair[1], "-t", "1"]


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_generate_with_a_tree_gives_the_plain_text(on, temperature):
    common = ["generate", *on, "-p", "hi", "-n", "30", "--strict", "--json", "--temp", temperature, "--seed", "4"]
    got = record(call(*common, "--tree", "8:3:4", "--compare"))
    assert (
        got["identical"] is True
        and got["draft_max"] == 8
        and got["tree"] == "8:3:4"
        and len(got["accepted_by_position"]) <= 4
    )


@pytest.mark.parametrize("adaptive", [[], ["--adaptive"]])
@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_lookup_in_a_tree_and_a_chosen_number_of_nodes_give_the_plain_text(on, temperature, adaptive):
    common = [
        "generate",
        *on,
        "-p",
        "hi hi hi hi",
        "-n",
        "40",
        "--strict",
        "--json",
        "--temp",
        temperature,
        "--seed",
        "4",
    ]
    got = record(call(*common, "--tree", "8:3:4", "--lookup", "--compare", *adaptive))
    assert got["identical"] is True and got["tree"] == "8:3:4" and got["kind"] == "eagle3 + lookup"
    assert got["adaptive"] is bool(adaptive)


def test_sampled_trees_are_one_more_option(on):
    result = call("generate", *on, "-p", "hi", "-n", "20", "--tree", "8", "--draft-sampling", "--temp", "1")
    assert result.exit_code == 0 and "tau " in result.stderr


def test_bench_speed_runs_trees_beside_chains(on):
    measured = record(
        call("bench", "speed", *on, "-n", "16", "--count", "1", "--repeat", "1", "--tree", "6:2:3", "--json")
    )
    assert (
        measured["draft_max"] == 3
        and {"plain", "chain", "tree 6:2:3", "tree 6:2:3 + lookup"} <= measured["kinds"].keys()
    )
    assert measured["kinds"]["tree 6:2:3"]["tau"] >= 1
    assert (
        measured["kinds"]["tree 6:2:3 + lookup"]["tau"] >= 1
        and measured["kinds"]["adaptive tree 6:2:3 + lookup"]["tau"] >= 1
    )


def test_verify_proves_trees_on_the_users_pair(on):
    for more in ([], ["--lookup"]):
        result = call("verify", *on, "-n", "20", "--count", "2", "--tree", "6:2:3", "--strict", *more)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("arguments, words", [
    (["--tree", "x"], "is not N, N:topk or N:topk:depth"),
    (["--tree", "0"], "nodes = 0 is outside 1..64"),
    (["--tree", "4:99"], "top_k = 99 is outside 1..64"),
    (["--tree", "4", "--draft-max", "2"], "give one of them"),
    (["--tree", "4", "--adaptive", "--draft-sampling", "--temp", "1"], "leave --adaptive or --draft-sampling out"),
    (["--tree", "4", "--lookup", "--draft-sampling", "--temp", "1"], "leave --lookup or --draft-sampling out"),
])  # fmt: skip
def test_a_wrong_tree_is_one_line(on, arguments, words):
    result = call("generate", *on, "-p", "hi", *arguments)
    assert words in one_line_error(result, 2)


def test_a_tree_without_a_drafter_is_one_line(on):
    assert "there is no drafter" in one_line_error(call("generate", "-m", on[1], "-p", "hi", "--tree", "4"), 2)
    assert "is a draft model" in one_line_error(
        call("generate", "-m", on[1], "-d", on[1], "-p", "hi", "--tree", "4"), 2
    )


def test_bench_speed_predicts_the_tree_it_measured(on):
    measured = record(
        call("bench", "speed", *on, "-n", "24", "--count", "1", "--repeat", "1", "--tree", "24:4:6", "--json")
    )
    kinds = measured["kinds"]
    assert (
        kinds["tree 24:4:6"]["predicted_speedup"] > 0
        and kinds["chain"]["predicted_speedup"] == measured["predicted_speedup"]
    )
    # the full tree was timed
    assert "25" in measured["more_verify_seconds"] and len(measured["verify_seconds"]) == speed.ROWS
    assert all(kinds[name]["predicted_speedup"] is None for name in ("plain", "adaptive", "lookup"))
    lines = [line for line in speed.table(measured) if "predicted" in line and "x, tau" in line]
    names = [line.split(" x ")[0].split("  ")[0] for line in lines]
    trees = ["tree 24:4:6", "tree 24:4:6 + lookup"]
    assert names == ["chain", *trees, *(f"adaptive {name}" for name in trees)]


def test_the_prediction_of_a_tree_is_the_formula():
    """Ten steps: two of the pending token alone, three of 4 rows, five of 16; 12 rows were not timed."""
    run = Statistics(generated_tokens=30, verify_steps=10, drafter_seconds=2.0, other_seconds=0.5)
    run.tree_sizes.update({3: 3, 11: 1, 15: 4})
    costs = {"verify_seconds": [1.0, 1.1, 1.2, 1.5], "more_verify_seconds": {16: 4.5}}
    assert speed_costs.rows_of(run) == {1: 2, 4: 3, 12: 1, 16: 4}
    target = (2 * 1.0 + 3 * 1.5 + 1 * 3.5 + 4 * 4.5) / 10
    assert speed_costs.predict_tree(run, costs, own_plain=0.1) == pytest.approx(3.0 * 1.1 / (target + 0.25))


def test_frequent_numbers_of_rows_and_the_largest_are_timed():
    run = Statistics(verify_steps=200)
    run.tree_sizes.update({4: 50, 9: 9, 12: 10, 16: 100, 20: 1})
    assert speed_costs.sizes_to_time(run, 8) == [13, 17, 21]
    assert speed_costs.sizes_to_time(run, 30) == []


def test_runs_are_added_with_the_sizes_of_their_trees():
    runs = [Statistics(), Statistics()]
    for one, nodes in zip(runs, (3, 5), strict=True):
        for size in (nodes, 7, 0):
            one.add(Step(0, [1], 0, [2], Seconds(0, 0, 0), nodes=size, depth=1))
    both = speed.total(runs)
    assert both.tree_sizes == {3: 1, 5: 1, 7: 2} and both.verify_steps == 6
