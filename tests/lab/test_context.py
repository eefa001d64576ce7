"""`context`: what tokens cost after long prompts."""

import json

import pytest
from cli_models import write_pair
from lab_command import call

from lab import context


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


def test_context_says_what_grows_with_the_prompt(pair):
    common = ["context", "-m", pair[0], "-d", pair[1], "-t", "1", "-c", "160", "--rounds", "1"]
    result = call(*common, "--after", "100,16", "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert [n["after"] for n in measured["lengths"]] == [16, 100] and len(measured["accepted"]) == 8
    for n in measured["lengths"]:
        every = [n["plain_seconds"], *n["by_length"]]
        assert (
            n["best_seconds"] == min(every) == every[n["best"]]
            and n["kept_seconds"] == every[measured["lengths"][0]["best"]]
        )
        tau = 1 + sum(measured["accepted"][:2])
        assert n["by_length"][1] == pytest.approx((n["target"]["3"] + n["feed"] + n["draft"] + measured["own"]) / tau)
        assert n["plain_seconds"] == n["target"]["1"] + measured["own_plain"]
    assert measured["lengths"][0]["growth"] == {"plain": 1.0, "best": 1.0, "kept": 1.0}
    last = measured["lengths"][1]
    assert last["growth"]["plain"] == last["plain_seconds"] / measured["lengths"][0]["plain_seconds"]
    text = "\n".join(context.table(measured))
    assert "From 16 to 100 tokens: plain decoding" in text and "acceptance held" in text
    for more, said in ((["--after", "7,100"], "at least 8"), (["--after", "500"], "after 500 tokens; raise it")):
        result = call(*common, *more)
        assert result.exit_code != 0 and said in result.stderr and len(result.stderr.splitlines()) <= 2
