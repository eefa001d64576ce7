"""`refspec tune` on a tiny pair: what it tries, keeps and says; `generate` takes it over until something changes."""

import json
import os

import pytest
from cli_models import call, one_line_error, record, write_pair

import refspec
from refspec.evaluate import tune, tune_report
from refspec.llama.amx import repacking_works
from refspec.llama.weights import why_not
from refspec.tuning import step_costs, store


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    before = os.environ.get("REFSPEC_CACHE")
    os.environ["REFSPEC_CACHE"] = str(folder / "cache")
    pair = write_pair(folder)
    found = record(call("tune", "-m", pair[0], "-d", pair[1], "-c", "160", "-t", "1", "--rounds", "1", "--json"))
    yield pair, found
    if before is None:
        del os.environ["REFSPEC_CACHE"]
    else:
        os.environ["REFSPEC_CACHE"] = before


def test_every_setting_is_measured_and_one_is_chosen(tuned):
    _, found = tuned
    forms = {(s["flash_attn"], s["kv_type"], s["matmul"]) for s in found["settings"]}
    layouts = {"stored"} | ({"repack"} if repacking_works() else set()) | ({"auto"} if why_not() is None else set())
    assert forms == {
        (flash, kv, held) for flash, kv in (("off", "f16"), ("off", "f32"), ("on", "f16")) for held in layouts
    }
    assert {s["threads"] for s in found["settings"]} == {1}
    assert sum("q8_0" in line for line in found["refused"]) == len(layouts), "heads of 8 do not fill a block"
    assert any("AMX" in line for line in found["refused"]) == ("repack" not in layouts)
    for s in found["settings"]:
        assert sorted(map(int, s["target"])) == list(range(1, tune.MOST + 2)) and all(
            t > 0 for t in s["target"].values()
        )
    assert found["chosen"]["kv_type"] != "q8_0" and 1 <= found["chosen"]["draft_max"] <= tune.MOST
    assert len(found["accepted"]) == len(found["predicted"]) == tune.MOST
    text = "\n".join(tune_report.table(found))
    for word in ("chosen: threads", "flash attention", "guesses kept by position", "pay", found["file"]):
        assert word in text


def test_generate_takes_the_setting_over_says_so_and_options_win(tuned):
    pair, found = tuned
    arguments = ["generate", "-m", pair[0], "-d", pair[1], "-c", "160", "-p", "hello", "-n", "10"]
    result = call(*arguments, "--compare")
    assert result.exit_code == 0
    assert (
        result.stderr.count("as tuned: threads") == 1 and "forecast: " in result.stderr and "measured" in result.stderr
    )
    assert record(call(*arguments, "--json"))["draft_max"] == found["chosen"]["draft_max"]
    assert record(call(*arguments, "--json", "--draft-max", "5"))["draft_max"] == 5
    assert record(call(*arguments, "--json", "--compare"))["predicted_speedup"] > 0
    result = call(*arguments, "--no-tune", "--compare")
    assert (
        "as tuned" not in result.stderr
        and f"run `refspec tune -m {pair[0]} -d {pair[1]}` once for a forecast" in result.stderr
    )
    assert "as tuned" not in call(*arguments, "--reproducible", "f32").stderr, "strict runs have settings of their own"
    adaptive = call(*arguments, "--adaptive")
    assert adaptive.exit_code == 0 and "as tuned" in adaptive.stderr


def test_a_record_is_stale_when_a_file_or_the_engine_changes(tuned, monkeypatch):
    pair, _ = tuned
    assert store.find(*pair).record is not None
    assert store.find(pair[0], None) == (None, "")
    monkeypatch.setattr("refspec.llama.api.VERSION", "0.0")
    assert "llama.cpp has changed" in store.find(*pair).why
    monkeypatch.undo()
    stat = os.stat(pair[1])
    os.utime(pair[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    found = store.find(*pair)
    assert found.record is None and "a model file has changed" in found.why
    result = call("generate", "-m", pair[0], "-d", pair[1], "-c", "160", "-p", "hello", "-n", "3")
    assert result.exit_code == 0 and "stale" in result.stderr
    os.utime(pair[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    store.path(*pair).write_text("{", "utf-8")
    assert "damaged" in store.find(*pair).why


def test_the_verdict_is_the_formula():
    rows = {1: 1.0, 2: 1.5, 3: 2.0}
    got = tune.verdict(rows, 0.05, 0.1, tune.Seen([0.5, 0.25], 0.02, 0.01))
    assert got["by_length"] == pytest.approx([1.5 * 1.01 / 1.57, 1.75 * 1.01 / 2.17]) and (
        got["best"],
        got["speedup"],
    ) == (0, 1.0)
    cheap = tune.verdict({1: 1.0, 2: 1.1}, 0.0, 0.0, tune.Seen([0.5], 0.0, 0.0))
    assert cheap["best"] == 1 and cheap["speedup"] == pytest.approx(1.5 / 1.1)
    costs = {"target": {"1": 1.0, "2": 1.5, "3": 2.0}, "feed": 0.05, "draft": 0.1, "own": 0.02, "own_plain": 0.01}
    assert tune.predict({"costs": costs}, [2, 0, 3], 11) == pytest.approx(11 * 1.01 / (2 * 1.07 + 3 * 2.17))
    assert tune.predict({"costs": costs}, [0, 0, 0, 1], 4) is None
    lost = {"accepted": [0.1], "speedup": 1.0, "predicted": [0.6], "chosen": {}}
    assert "does not pay" in tune_report.verdict(lost)


def test_single_rows_run_in_pairs_where_two_rows_cost_less_than_one(tuned, tmp_path, monkeypatch):
    assert tune.paired_rows({1: 24.0, 2: 20.0, 3: 23.5}) == ({1: 20.0, 2: 20.0, 3: 23.5}, 1.2)
    for rows in ({1: 1.0, 2: 0.96}, {1: 1.0, 2: 1.5}, {1: 1.0}):
        assert tune.paired_rows(rows) == (rows, 0.0)
    pair, found = tuned
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path))
    paired = found | {"paired": 1.27, "chosen": found["chosen"] | {"pair_rows": True}}
    store.save(*pair, paired)
    assert "single tokens in pairs" in store.described(paired["chosen"])
    assert any("1.27x as fast as llama.cpp's" in line for line in tune_report.table(paired))
    for options, wanted in (({}, True), ({"pair_rows": False}, False)):
        with refspec.load(*pair, n_ctx=160, **options) as session:
            assert session.target.pair_rows is wanted
            assert session.tuned.record is not None and any("as tuned: threads" in line for line in session.notes)
    for tuned_, adaptive in ((True, False), (False, True)):
        with refspec.load(*pair, n_ctx=160, tuned=tuned_) as session:
            assert session.adaptive is adaptive, "what was measured says how much to draft"
    arguments = ["generate", "-m", pair[0], "-d", pair[1], "-c", "160", "-p", "hello", "-n", "10", "--json"]
    texts = {record(call(*arguments, option))["text"] for option in ("--pair-rows", "--no-pair-rows", "--no-tune")}
    assert len(texts) == 1


def test_a_target_alone_gives_costs_and_no_verdict(tuned, tmp_path):
    pair, _ = tuned
    result = call("tune", "-m", pair[0], "-c", "64", "-t", "1", "--rounds", "1")
    assert result.exit_code == 0 and "no verdict without a drafter" in result.stdout


def test_costs_are_measured_after_as_many_tokens_as_asked(tuned, tmp_path, monkeypatch):
    pair, _ = tuned
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path))
    lengths = []
    measure = step_costs.measure

    def watched(target, drafter, text, rounds):
        lengths.append(len(text))
        return measure(target, drafter, text, rounds)

    monkeypatch.setattr(step_costs, "measure", watched)
    result = call("tune", "-m", pair[0], "-d", pair[1], "-c", "160", "-t", "1", "--rounds", "1", "--after", "140")
    assert result.exit_code == 0 and "together after 140 tokens" in result.stdout
    assert set(lengths) == {140 + step_costs.MOST + 1}
    refused = call("tune", "-m", pair[0], "-d", pair[1], "-c", "160", "-t", "1", "--after", "159")
    assert refused.exit_code == 1
    told = refused.stderr.splitlines()[-1]  # under the bar
    assert "160 positions is too small to measure in after 159 tokens" in told and "-c" in told


def test_what_cannot_be_tuned_is_one_line(tmp_path):
    assert "gone.gguf" in one_line_error(call("tune", "-m", tmp_path / "gone.gguf"))


def test_the_record_is_json(tuned):
    assert json.loads(json.dumps(tuned[1])) == tuned[1]
