"""`refspec inspect`, `recast`, `acceptance` and `verify`: thin commands over what they call."""

import json

import pytest
from cli_models import call, one_line_error, write_pair


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


def test_recast_writes_another_type_and_says_what_came_of_it(pair, tmp_path):
    result = call("recast", pair[0], "--outtype", "q4_0", "-o", tmp_path / "small.gguf", "--json")
    made = json.loads(result.stdout)
    assert (
        made["file"] == str(tmp_path / "small.gguf")
        and made["tensors"]["Q4_0"] > 0
        and made["bytes"] == (tmp_path / "small.gguf").stat().st_size
    )
    assert json.loads(call("inspect", made["file"], "--json").stdout)["kind"] == "target"
    assert "MB instead of" in call("recast", pair[1], "--outtype", "f16", "-o", tmp_path / "d.gguf").stdout
    assert "gone.gguf" in one_line_error(
        call("recast", tmp_path / "gone.gguf", "--outtype", "f16", "-o", tmp_path / "x.gguf")
    )
    assert "name the file" in one_line_error(call("recast", pair[0], "--outtype", "f16", "-o", tmp_path), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.gguf", "small.gguf"]


def test_acceptance_counts_families_and_their_sum(pair, tmp_path):
    rows = [("math", "What is 2 + 2?"), ("chat", "Hello"), ("chat", "Bye"), ("chat", "left out by --count")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"benchmark": b, "turns": [t]}) + "\n" for b, t in rows))
    common = ["acceptance", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "16", "--draft-max", "2"]
    counted = [*common, "--prompts", tmp_path / "p.jsonl", "--count", "2"]
    (condition,) = json.loads(call(*counted, "--json").stdout)["conditions"]
    found = condition["families"]
    assert list(found) == ["math", "chat", "all"]
    assert found["all"]["generated_tokens"] == found["math"]["generated_tokens"] + found["chat"]["generated_tokens"] > 0
    steps = {family: row["drafters"]["drafter"]["2"] for family, row in found.items()}
    assert steps["all"]["verify_steps"] == steps["math"]["verify_steps"] + steps["chat"]["verify_steps"] > 0
    assert found["chat"]["generated_tokens"] == 32 and len(steps["all"]["accepted_by_position"]) == 2
    assert "chat" in call(*counted, "--family", "chat").stdout
    assert "families there: chat, math" in one_line_error(call(*counted, "--family", "news"))
    assert "--prompts" in one_line_error(call(*common, "--family", "chat"), code=2)
    result = call(*counted[:-2], "-c", "16")
    assert result.exit_code == 2 and "no room for a prompt" in result.stderr


def test_verify_finds_no_difference_on_f32_weights_and_counts_what_it_compared(pair):
    arguments = ["verify", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "24", "--count", "3", "--draft-max", "3"]
    result = call(*arguments, "--reproducible", "f32", "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert [r["temperature"] for r in results] == [0.0, 0.8]
    for r in results:
        assert (r["prompts"], r["different"], r["unexplained"], r["differences"]) == (3, 0, 0, [])
        assert r["tokens"] > 3
    result = call(*arguments, "--temp", "0.5", "--seed", "9")
    assert result.exit_code == 0 and "temperature 0.5: 3 prompts" in result.stdout


def test_verify_reports_a_difference_that_rounding_does_not_explain(pair, monkeypatch):
    """A speculative run that ends early, or says another token, must not pass as equal."""
    from refspec.evaluate import equality

    finish = equality.finished

    def broken(change):
        def run(generation):
            finish(generation)
            if generation._drafter is not None:
                change(generation.tokens)
            return generation

        return run

    arguments = ["verify", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "8", "--count", "1", "--temp", "0", "--json"]
    for change in (lambda tokens: tokens.pop(), lambda tokens: tokens.__setitem__(4, (tokens[4] + 1) % 280)):
        monkeypatch.setattr(equality, "finished", broken(change))
        result = call(*arguments)
        assert result.exit_code == 1
        assert json.loads(result.stdout)["results"][0]["unexplained"] == 1


def test_bench_without_a_drafter_is_a_usage_error(pair):
    result = call("bench", "-m", pair[0], "-t", "1")
    assert result.exit_code == 2 and "-d" in result.stderr
