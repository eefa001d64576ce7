"""`--tree` on tiny random models: the same text, counted as trees are, and its errors."""

import pytest
from cli_models import call, one_line_error, record, write_pair


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    pair = write_pair(tmp_path_factory.mktemp("models"))
    return ["-m", pair[0], "-d", pair[1], "-t", "1"]


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_generate_with_a_tree_gives_the_plain_text(on, temperature):
    common = [
        "generate",
        *on,
        "-p",
        "hi",
        "-n",
        "30",
        "--reproducible",
        "f32",
        "--json",
        "--temp",
        temperature,
        "--seed",
        "4",
    ]
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
        "--reproducible",
        "f32",
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
    assert result.exit_code == 0 and "(tau)" in result.stderr


def test_verify_proves_trees_on_the_users_pair(on):
    for more in ([], ["--lookup"]):
        result = call("verify", *on, "-n", "20", "--count", "2", "--tree", "6:2:3", "--reproducible", "f32", *more)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("arguments, words", [
    (["--tree", "x"], "is not N, N:topk or N:topk:depth"),
    (["--tree", "0"], "nodes = 0 is outside 1..64"),
    (["--tree", "4:99"], "top_k = 99 is outside 1..64"),
    (["--tree", "4", "--draft-max", "2"], "leave one of them out"),
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
