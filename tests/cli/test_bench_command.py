"""`refspec bench`: every kind on every family of prompts, what the steps cost, what is said of it."""

import json
import os
import platform

import pytest
from cli_models import call, tiny, write_pair
from test_bench_rivals import OUTPUT, program

from refspec.evaluate import speed, speed_costs, speed_report
from refspec.reference.metrics import Seconds, Statistics, Step


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    target, normalized = write_pair(folder)
    return target, normalized, str(tiny.drafter(folder / "prenorm.gguf"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    rows = [("maths", "a b c"), ("chat", "hello there"), ("maths", "one two"), ("maths", "left out by --count")]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"benchmark": family, "turns": [text]}) for family, text in rows))
    return str(path)


def arguments(pair, prompts, *more):
    return [
        "bench",
        "-m",
        pair[0],
        "-d",
        pair[1],
        "-t",
        "1",
        "-n",
        "12",
        "--repeat",
        "2",
        "--count",
        "2",
        "--prompts",
        prompts,
        *more,
    ]


def test_every_kind_runs_on_every_family_and_the_table_names_them(pair, prompts):
    result = call(*arguments(pair, prompts, "--draft-max", "3,1", "--lookup", "--tree", "4:2:3", "--json"))
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["draft_max"] == [1, 3] and [(f["family"], f["prompts"]) for f in measured["families"]] == [
        ("maths", 2),
        ("chat", 1),
    ]
    kinds = [
        "plain",
        "plain again",
        "lookup",
        "chain 1",
        "chain 3",
        "adaptive",
        "chain 1 + lookup",
        "chain 3 + lookup",
        "adaptive + lookup",
        "tree 4:2:3",
        "tree 4:2:3 + lookup",
        "adaptive tree 4:2:3",
        "adaptive tree 4:2:3 + lookup",
    ]
    for family in [*measured["families"], measured["all"]]:
        assert list(family["speedup"]) == kinds and list(family["tau"]) == kinds
        assert family["speedup"]["plain"] == 1.0 and family["tau"]["plain"] == family["tau"]["plain again"] == 1.0
        assert (
            list(family["other_texts"]) == kinds
            and family["other_texts"]["plain"] == family["other_texts"]["plain again"] == 0
        )
        assert family["best_fixed"] in ("plain", "chain 1", "chain 3")
        assert family["speedup"][family["best_fixed"]] == max(
            family["speedup"][k] for k in ("plain", "chain 1", "chain 3")
        )
        assert family["adaptive_share"] == pytest.approx(
            family["speedup"]["adaptive"] / family["speedup"][family["best_fixed"]]
        )
    lines = speed_report.table(measured | {"foreign_cores": 0.0})
    (heads,) = [line.split() for line in lines if line.endswith("adaptive of it")]
    assert " ".join(heads) == (
        "plain t/s lookup 1 3 adapt 1+ 3+ adapt+ tree tree+ atree atree+ best fixed adaptive of it"
    )
    start = [line.split() for line in lines].index(heads)
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["maths", "chat", "all"]
    twice = [f["speedup"]["plain again"] for f in measured["families"]]
    (noise,) = [line for line in lines if line.startswith("noise:")]
    assert f"against itself {min(twice):.2f} to {max(twice):.2f}x by family" in noise
    assert not any("plain again" in line for line in lines)
    for kind in kinds[2:]:
        assert any(line.startswith(f"{kind:28}  ") for line in lines), "every kind has a line of its own"


def test_what_is_measured_can_be_chosen(pair, prompts):
    for chosen, kinds in (
        ("plain", []),
        ("chain", ["chain 1", "chain 2"]),
        ("adaptive", ["adaptive"]),
        ("tree", ["tree 4:2:3"]),
        ("lookup", ["lookup"]),
        ("chain,lookup", ["lookup", "chain 1", "chain 2", "chain 1 + lookup", "chain 2 + lookup"]),
    ):
        options = ["--kinds", chosen, "--draft-max", "1,2", "--tree", "4:2:3"]
        result = call(*arguments(pair, prompts, *options, "--count", "1", "--repeat", "1", "--json"))
        assert result.exit_code == 0, result.output
        measured = json.loads(result.stdout)
        assert [k for k in measured["kinds"] if not k.startswith(("plain", "stock"))] == kinds
        assert (measured["all"]["adaptive_share"] is None) == (chosen != "adaptive") and measured["costs"] is None
        assert speed_report.table(measured)


def test_a_session_is_measured_as_it_is_without_further_options(pair):
    arguments = ["bench", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "32", "--repeat", "1", "--draft-max", "2"]
    result = call(*arguments, "--json", "--reproducible", "f32")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert list(measured["kinds"]) == ["plain", "plain again", "chain 2", "adaptive"]
    for name, kind in measured["kinds"].items():
        assert kind["identical"] is True, name
        assert kind["tokens_per_second"] > 0 and kind["speedup_range"][0] <= kind["speedup"] <= kind["speedup_range"][1]
    plain, chain = measured["kinds"]["plain"], measured["kinds"]["chain 2"]
    assert plain["speedup"] == 1.0 and set(plain["guesses"]) == {"0"} and plain["predicted_speedup"] is None
    assert chain["tau"] >= 1 and 0 < chain["own_share"] < 1 and chain["predicted_speedup"] > 0
    costs = measured["costs"]
    assert len(costs["verify_seconds"]) == speed_costs.ROWS
    assert len(costs["predicted_by_draft_length"]) == len(chain["accepted_by_position"]) == 2
    assert costs["predicted"] == {"chain 2": chain["predicted_speedup"]} and measured["inflated"] is None
    text = "\n".join(speed_report.table(measured | {"foreign_cores": 0.1}))
    for word in ("forecast", "tau", "refspec itself", "tokens checked", "other processes", "guesses kept: first "):
        assert word in text
    best = max(measured["all"]["speedup"][k] for k in ("chain 2", "adaptive"))
    assert ("use --no-spec" in text) == (best < 1)


def test_a_busy_machine_is_said_first_and_no_verdict_follows(pair, prompts):
    common = arguments(pair, prompts, "--draft-max", "1,2", "--count", "1", "--repeat", "1", "--json")
    measured = json.loads(call(*common).stdout)
    slow = measured["all"] | {"speedup": dict.fromkeys(measured["all"]["speedup"], 0.5)}
    measured |= {"cores": 4, "all": slow}
    idle = speed_report.table(measured | {"foreign_cores": 0.1})
    assert idle[-1].startswith("guessing was slower here (at best 0.50x") and "0.10 of 4 cores" in idle[-2]
    busy = speed_report.table(measured | {"foreign_cores": 1.7})
    assert busy[0].startswith("the machine was busy: other processes used 1.7 of 4 cores")
    assert not any("slower here" in line for line in busy)
    assert "unknown" in speed_report.table(measured | {"foreign_cores": None})[-2]


def test_a_draft_model_is_measured_like_any_drafter(pair, tmp_path):
    small = tiny.target(tmp_path / "small.gguf", "qwen3", seed=4)
    common = ["-m", pair[0], "-t", "1", "-n", "24", "--count", "1", "--json", "--lookup"]
    result = call("bench", *common, "-d", small, "--repeat", "1")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["kinds"]) == ["plain", "plain again", "lookup", "chain 3", "adaptive"]
    counted = call("acceptance", *common, "-d", pair[1], "-d", small)
    assert counted.exit_code == 0, counted.output
    assert [d["name"] for d in json.loads(counted.stdout)["drafters"]] == ["drafter", "small", "lookup"]


def test_trees_run_beside_chains_and_their_speedup_is_forecast(pair):
    arguments = ["bench", "-m", pair[0], "-d", pair[1], "-t", "1", "-n", "24", "--count", "1", "--repeat", "1"]
    measured = json.loads(call(*arguments, "--tree", "24:4:6", "--lookup", "--json").stdout)
    kinds = measured["kinds"]
    assert measured["draft_max"] == [3] and {"chain 3", "tree 24:4:6", "tree 24:4:6 + lookup"} <= kinds.keys()
    assert kinds["tree 24:4:6"]["predicted_speedup"] > 0 and kinds["tree 24:4:6"]["tau"] >= 1
    assert kinds["adaptive tree 24:4:6 + lookup"]["tau"] >= 1
    # the full tree was timed
    assert "25" in measured["costs"]["more_verify_seconds"]
    assert len(measured["costs"]["verify_seconds"]) == speed_costs.ROWS
    assert all(kinds[name]["predicted_speedup"] is None for name in ("plain", "adaptive", "lookup"))
    trees = ["tree 24:4:6", "tree 24:4:6 + lookup", "adaptive tree 24:4:6", "adaptive tree 24:4:6 + lookup"]
    assert list(measured["costs"]["predicted"]) == ["chain 3", *trees]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_shows_every_family(pair, prompts, tmp_path, suffix):
    pytest.importorskip("matplotlib", reason="figures need it")
    out = tmp_path / f"families.{suffix}"
    options = ["--draft-max", "1,2", "--tree", "4:2:3", "--count", "1", "--repeat", "1"]
    result = call(*arguments(pair, prompts, *options, "--figure", out))
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 5000
    if suffix == "svg":
        drawn = out.read_text("utf-8")
        for name in ("maths", "chat", "chain 2", "adaptive", "tree", "adaptive tree"):
            assert f"<!-- {name} -->" in drawn


@pytest.mark.parametrize(
    ("name", "words"), [("families.xyz", "end the name in .png"), ("gone/families.png", "no directory")]
)
def test_a_figure_that_cannot_be_drawn_is_named_before_anything_runs(pair, prompts, tmp_path, monkeypatch, name, words):
    pytest.importorskip("matplotlib", reason="figures need it")
    monkeypatch.setattr(speed, "measure", None)
    result = call(*arguments(pair, prompts, "--figure", tmp_path / name))
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="that rows of 2 to 7 round alike was seen on x86 only"
)
def test_exact_runs_keep_their_limit_and_say_so_where_it_is_exceeded(pair, prompts):
    for options in (["bench", "--count", "1", "--draft-max", "1,6"], ["bench", "--count", "1"]):
        result = call(
            *options,
            "-m",
            pair[0],
            "-d",
            pair[1],
            "-t",
            "1",
            "-n",
            "12",
            "--repeat",
            "1",
            "--prompts",
            prompts,
            "--reproducible",
            "exact",
            "--json",
        )
        assert result.exit_code == 0, result.output
    assert json.loads(
        call(*arguments(pair, prompts, "--reproducible", "exact", "--lookup", "--draft-max", "6", "--json")).stdout
    )["all"]["other_texts"] == dict.fromkeys(
        ["plain", "plain again", "lookup", "chain 6", "adaptive", "chain 6 + lookup", "adaptive + lookup"], 0
    )
    result = call(*arguments(pair, prompts, "--reproducible", "exact", "--draft-max", "8"))
    assert result.exit_code == 2 and "draft_max = 8 exceeds 6; reproducible = exact" in result.stderr


def test_what_is_measured_may_be_under_penalties(pair, prompts, tmp_path):
    under = ["--draft-max", "2", "--presence-penalty", "5", "--repeat-last-n", "-1", "--reproducible", "exact"]
    measured = json.loads(call(*arguments(pair, prompts, *under, "--json")).stdout)
    assert measured["penalties"]["presence"] == 5 and measured["all"]["other_texts"] == dict.fromkeys(
        ["plain", "plain again", "chain 2", "adaptive"], 0
    )
    free = json.loads(call(*arguments(pair, prompts, "--draft-max", "2", "--reproducible", "exact", "--json")).stdout)
    assert free["penalties"] is None
    assert "draft length 2, under penalties" in call(*arguments(pair, prompts, *under)).stdout
    refused = call(*arguments(pair, prompts, *under, "--llama-cpp-bin", str(tmp_path)))
    assert refused.exit_code == 2 and "without penalties" in refused.stderr


def test_a_familys_times_add_up_and_the_best_length_may_be_none():
    def row(family, tokens, **seconds):
        return {
            "family": family,
            "tokens": tokens,
            "seconds": seconds,
            "steps": {kind: (tokens, tokens) for kind in seconds},
            "other_texts": {kind: int(kind == "chain") for kind in seconds},
        }

    rows = [row("a", 10, plain=1.0, chain=2.0, adaptive=1.25), row("a", 30, plain=3.0, chain=3.0, adaptive=3.75)]
    family = speed.family_of("a", rows, ["plain", "chain"])
    assert family["plain_tokens_per_second"] == 10 and family["best_fixed"] == "plain"
    assert family["other_texts"] == {"plain": 0, "chain": 2, "adaptive": 0}
    assert family["speedup"] == {"plain": 1.0, "chain": 4 / 5, "adaptive": 4 / 5} and family["adaptive_share"] == 4 / 5


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script")
def test_llama_cpps_own_driver_runs_at_every_length(pair, prompts, tmp_path):
    told = f"open({str(tmp_path / 'calls')!r}, 'a').write(sys.argv[sys.argv.index('--spec-draft-n-max') + 1])"
    folder = program(tmp_path / "bin", f"{told}\nprint({OUTPUT!r})")
    result = call(*arguments((pair[0], pair[2]), prompts, "--draft-max", "2,3", "--llama-cpp-bin", folder, "--json"))
    assert result.exit_code == 0, result.output
    speedup = json.loads(result.stdout)["all"]["speedup"]
    assert list(speedup)[-2:] == ["llama.cpp 2", "llama.cpp 3"] and speedup["llama.cpp 2"] == pytest.approx(
        speedup["llama.cpp 3"]
    )
    assert sorted((tmp_path / "calls").read_text()) == list("222222333333")  # 3 prompts, twice each


def test_what_makes_no_sense_is_one_line(pair, prompts):
    for more, said in (
        (["--draft-max", ","], "whole numbers"), (["--adaptive"], "leave the option out"),
        (["--kinds", "best"], "best is none of plain, chain"), (["--kinds", "tree"], "--tree 8"),
        (["--draft-max", "99"], "exceeds 64"), (["-c", "12"], "no room"),
    ):  # fmt: skip
        result = call(*arguments(pair, prompts, *more))
        assert result.exit_code == 2 and said in result.stderr, (more, result.stderr)
    small = ["bench", "-m", pair[0], "-t", "1", "--prompts", prompts]
    result = call(*small)
    assert result.exit_code == 2 and "name one with -d" in result.stderr
    alone = call(*small, "--lookup", "-n", "8", "--draft-max", "2", "--repeat", "1", "--json")
    assert alone.exit_code == 0 and list(json.loads(alone.stdout)["all"]["speedup"]) == [
        "plain",
        "plain again",
        "chain 2",
        "adaptive",
    ]


def test_the_prediction_is_the_formula():
    costs = {"verify_seconds": [1.0, 1.5, 2.0], "draft_token_seconds": 0.1, "extend_seconds": 0.05}
    got = speed_costs.predict([0.5, 0.25], costs, own=0.01, own_plain=0.01)
    assert got == pytest.approx([1.5 * 1.01 / (1.5 + 0.1 + 0.06), 1.75 * 1.01 / (2.0 + 0.2 + 0.06)])


def test_foreign_load_is_a_number_of_cores_where_the_system_says():
    cores = speed.ForeignLoad().cores()
    assert cores is None or cores >= 0


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
