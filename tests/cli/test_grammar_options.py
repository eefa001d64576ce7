"""Options that keep an output within a grammar, on the embedded pair: what comes out, and how they refuse."""

import json
import re

import pytest
from cli_models import call, record

from refspec.evaluate import grammar as measures
from refspec.grammar.regex import regex
from refspec.session import load

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 1, "maximum": 40}},
    "required": ["name", "n"],
}
RUN = ("generate", "-t", "1", "-n", "60", "-p", "Give me a name and a number.")


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


def last_line(result):
    """The error, after what was said of the models."""
    assert "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("more", [[], ["--lookup"], ["--tree", "8"], ["--no-spec"], ["--draft-sampling"]])
@pytest.mark.parametrize("temperature", ["0", "1.2"])
@pytest.mark.parametrize("fidelity", ["local", "onestep"])
def test_an_output_fits_its_schema_however_it_was_drafted(schema, more, temperature, fidelity):
    how = ["--json-schema", schema, "--fidelity", fidelity, "--temp", temperature, "--seed", "5", *more]
    got = record(call(*RUN, *how, "--json", "--compare"))
    assert got["stop"] == "end"
    value = json.loads(got["text"])
    assert list(value) == ["name", "n"] and 1 <= value["n"] <= 40 and len(value["name"]) <= 12
    if "--draft-sampling" not in more:
        assert got["text"] == got["plain"]["text"] or got["first_difference"]["within_noise"]


@pytest.mark.parametrize("fidelity", ["local", "lookahead:2", "beam:2", "exact"])
def test_a_regular_expression_and_a_grammar_are_kept(tmp_path, fidelity):
    got = record(call(*RUN, "--regex", "(red|dark red|blue)", "--fidelity", fidelity, "--json", "--temp", "1"))
    assert got["text"] in ("red", "dark red", "blue") and got["stop"] == "end"
    path = tmp_path / "list.gbnf"
    path.write_text('root ::= "[" item ("," item){0,2} "]"\nitem ::= [0-9]{1,2} | root\n')
    got = record(call(*RUN, "--grammar", str(path), "--grammar-depth", "4", "--json"))
    assert re.fullmatch(r"[\[\]0-9,]+", got["text"]) and isinstance(json.loads(got["text"].replace("00", "0")), list)


@pytest.mark.parametrize(
    "how, said",
    [
        (["--regex", "(a"], "a ( without its )"),
        (["--regex", "a*", "--fidelity", "exact"], "at most 10000 strings"),
        (["--regex", "a", "--fidelity", "good"], "is none of local, onestep"),
        (["--fidelity", "onestep"], "need a grammar"),
        (["--grammar-depth", "3"], "need a grammar"),
        (["--regex", "a{80}"], "the shortest output that matches has"),
        (["--regex", "a|b", "--fidelity", "exact", "--tree", "8"], "draft chains"),
        (["--json-schema", "/nowhere.json"], "No such file"),
        (["--regex", "a", "--grammar", "x"], "--grammar and --regex exclude each other"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_one_line(how, said):
    result = call(*RUN, *how)
    assert result.exit_code == 2 and said in last_line(result)


def test_a_schema_that_is_wrong_is_named_with_its_file(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("{")
    assert "s.json: line 1: not JSON" in last_line(call(*RUN, "--json-schema", str(path)))
    path.write_text('{"type": "array", "uniqueItems": true, "contains": {}}')
    said = last_line(call(*RUN, "--json-schema", str(path)))
    assert "s.json: /: uniqueItems is not supported; /: contains is not supported" in said


def test_the_bench_measures_distances_tables_and_speeds(monkeypatch):
    monkeypatch.setattr(measures, "SIZES", ((1, 7),))
    monkeypatch.setattr(measures, "SEEDS", 3)
    monkeypatch.setattr(measures, "LARGEST", 5000)
    monkeypatch.setattr(measures, "TOWNS", "(Rome|Oslo)")
    found = json.loads(call("bench", "grammar", "-t", "1", "--repeat", "1", "--json", "-n", "120").stdout)
    for row in found["made_up"] + found["distances"]:
        tv = row["tv"]
        assert tv["exact"] <= 1e-12 and tv["local"] > tv["beam:8"] and row["outputs"] > 1
        assert all(tv[kind] <= bound + 1e-12 for kind, bound in row.get("bound", {}).items())
    assert [row["vocabulary"] for row in found["tables"]] == [4096, 5000]
    ways = {row["way"]: row for row in found["speeds"]}
    assert {row["text"] for row in found["distances"][-1]["likeliest"]} == {"Rome", "Oslo"}
    assert set(ways) == {"no grammar", "local", "onestep", "local, with guesses", "llama.cpp's grammar sampler"}
    assert ways["local"]["text"] == ways["local, with guesses"]["text"]
    for way in ("local", "onestep", "llama.cpp's grammar sampler"):
        assert set(json.loads(ways[way]["text"])) == {"name", "date", "items"}
    only = call("bench", "grammar", "--only", "laws").stdout
    assert "total variation" in only and "| brackets 1 deep, 6 tokens |" in only


def test_bench_itself_is_as_before():
    assert "Measure plain decoding and every way to draft" in call("bench", "-h").stdout
    assert call("bench", "--kinds", "what", "-t", "1").exit_code != 0


@pytest.mark.parametrize("kernels", ["own", "llama"])
def test_a_drafter_forgets_the_grammar_with_its_output(kernels):
    with load(drafter_kernels=kernels, threads=1, tuned=False) as session:
        for event in session.generate("hello", grammar=regex("[ab]{30}"), max_tokens=40):
            assert set(event.text) <= set("ab")
        assert session.drafter.grammar is not None
        session.drafter.reset()
        assert session.drafter.grammar is None
