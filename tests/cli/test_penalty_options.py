"""The penalty options, and the sampling that a file recommends."""

from pathlib import Path

import numpy as np
import pytest
from cli_models import call, one_line_error, record, tiny, write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def on(pair):
    return ["-m", pair[0], "-d", pair[1], "-t", "1", "-p", "hello", "-n", "40", "--reproducible", "f32"]


@pytest.fixture(scope="module")
def advising(tmp_path_factory):
    """A target whose file recommends a sampling."""
    meta, tensors = tiny.target_parts()
    meta |= {
        "general.sampling.temp": np.float32(0.6),
        "general.sampling.top_k": 5,
        "general.sampling.penalty_repeat": np.float32(1.3),
    }
    meta |= {"general.sampling.mirostat": 1}
    path = tmp_path_factory.mktemp("advising") / "target.gguf"
    writer_keys = {key: float(value) if isinstance(value, np.floating) else value for key, value in meta.items()}
    return str(tiny.write(Path(path), "llama", writer_keys, tensors))


def test_penalties_change_the_text_and_speculation_does_not(on):
    free = record(call("generate", *on, "--json"))
    dry = ["--dry-multiplier", "3", "--dry-base", "2", "--dry-allowed-length", "1", "--dry-sequence-breaker", "none"]
    for options in (
        ["--repeat-penalty", "1.8", "--repeat-last-n", "-1"],
        ["--presence-penalty", "2", "--frequency-penalty", "0.5"],
        dry,
        ["--frequency-penalty", "1", "--penalize-prompt"],
    ):
        got = record(call("generate", *on, *options, "--compare", "--json"))
        assert got["identical"] is True and got["text"] != free["text"], options
        assert got["penalties"] and free["penalties"] is None


def test_breakers_and_the_prompt_arrive_as_they_were_given(on):
    got = record(
        call(
            "generate",
            *on,
            "--dry-multiplier",
            "1",
            "--dry-sequence-breaker",
            r"\n",
            "--dry-sequence-breaker",
            ".",
            "--json",
        )
    )
    assert got["penalties"]["dry_breakers"] == ["\n", "."] and got["penalties"]["prompt"] is False
    got = record(
        call("generate", *on, "--dry-multiplier", "1", "--dry-penalty-last-n", "7", "--penalize-prompt", "--json")
    )
    assert (
        got["penalties"]["dry_last_n"] == 7
        and got["penalties"]["prompt"] is True
        and len(got["penalties"]["dry_breakers"]) == 4
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ["--dry-base", "0.5"],
        ["--repeat-penalty", "0"],
        ["--dry-multiplier", "-1"],
        ["--repeat-last-n", "-3"],
        ["--dry-allowed-length", "0"],
    ],
)
@pytest.mark.parametrize("command", [["generate"], ["bench"], ["verify"]])
def test_a_penalty_that_cannot_be_is_one_line_before_a_model_is_loaded(command, wrong):
    arguments = ["-m", "nowhere.gguf"] + (["-p", "x"] if command == ["generate"] else [])
    assert "nowhere" not in one_line_error(call(*command, *arguments, *wrong), 2)


def test_verify_and_the_benchmarks_take_penalties(on):
    models = on[:6]
    dry = ["--dry-multiplier", "3", "--dry-allowed-length", "1"]
    got = record(call("verify", *models, "--reproducible", "f32", "--count", "2", "-n", "24", *dry, "--json"))
    assert [r["different"] for r in got["results"]] == [0, 0] and got["distributions"][0]["holds"]
    got = record(call("bench", *models, "--count", "1", "--repeat", "1", "-n", "16", *dry, "--json"))
    assert got["penalties"]["dry_multiplier"] == 3


def test_what_a_file_recommends_is_said_and_taken_when_asked_for(advising):
    on = ["generate", "-m", advising, "-t", "1", "-p", "hello", "-n", "30", "--json"]
    plain = call(*on)
    assert (
        "recommends temperature 0.6, top_k 5, repeat_penalty 1.3; --recommended takes that, this is greedy"
        in plain.stderr
    )
    taken = call(*on, "--recommended", "--seed", "5")
    assert "mirostat" in taken.stderr and record(taken)["penalties"]["repeat"] == 1.3
    assert record(taken)["text"] != record(plain)["text"]
    said = record(call(*on, "--temp", "0.6", "--top-k", "5", "--repeat-penalty", "1.3", "--seed", "5"))
    assert said["text"] == record(taken)["text"]
    ours = record(call(*on, "--recommended", "--temp", "0", "--repeat-penalty", "1"))
    assert ours["text"] == record(plain)["text"], "options win"
    inspected = call("inspect", advising)
    assert "recommends       temperature 0.6, top_k 5, repeat_penalty 1.3" in inspected.stdout


def test_a_recommendation_that_cannot_be_is_one_line(tmp_path):
    meta, tensors = tiny.target_parts()
    path = tiny.write(tmp_path / "target.gguf", "llama", meta | {"general.sampling.top_p": 1.5}, tensors)
    assert "general.sampling.*: top_p: 1.5" in one_line_error(call("generate", "-m", str(path), "-p", "x"), 1)


def test_a_file_that_recommends_nothing_says_so(on):
    assert "recommends no sampling" in call("generate", *on, "--recommended").stderr
