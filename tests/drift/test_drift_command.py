"""`refspec drift` on tiny files: what it prints, what it writes, how it fails."""

import json

import pytest
from drift_toys import borrowed, cli_models

from refspec.evaluate.drift import FIGURES
from refspec.gguf.io import read_drafter, write_drafter

call, one_line_error, record, tiny = cli_models.call, cli_models.one_line_error, cli_models.record, cli_models.tiny
SMALL = ["-t", "1", "-n", "12", "--count", "3", "--depth", "3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """target, normalized drafter, plain drafter of other layers, drafter without embedding and head."""
    folder = tmp_path_factory.mktemp("models")
    target, post = cli_models.write_pair(folder)
    pre = tiny.drafter(folder / "plain.gguf", layers=[2, 3, 4])
    shared = tiny.drafter(folder / "shared.gguf", shared=True, width=tiny.HT)
    return {"target": target, "post": post, "pre": str(pre), "shared": str(shared)}


def test_drafters_of_different_layers_stand_side_by_side_in_one_record(models):
    got = record(call("drift", "-m", models["target"], "-d", models["post"], "-d", models["pre"], *SMALL, "--json"))
    assert [d["name"] for d in got["drafters"]] == ["drafter", "plain"]
    assert [d["feedback"] for d in got["drafters"]] == ["post_norm", "pre_norm"]
    assert got["settings"] | {"target": "target.gguf", "prompts": 3, "depth": 3, "max_tokens": 12} == got["settings"]
    for one in got["drafters"]:
        assert [set(row) - {"depth", "chains"} for row in one["depths"]] == [set(FIGURES)] * 3
        assert sum(one["depths"][1][name]["mean"] for name in ("sink", "prompt", "verified", "chain")) == pytest.approx(
            1
        )
    # a normed state keeps its size whatever the weights, the block output of a random drafter does not
    assert abs(got["drafters"][0]["depths"][2]["growth"]["mean"] - 1) < 0.5


def test_acceptance_agrees_with_the_bench_that_runs_llama_cpp(models):
    # strict: with an F16 cache the rounding of a batch reaches the states, and this random drafter has near ties
    pair = ("-m", models["target"], "-d", models["post"], "-t", "1")
    same = (*pair, "-n", "24", "--count", "6", "--reproducible", "f32", "--json")
    (one,) = record(call("drift", *same, "--depth", "2"))["drafters"]
    bench = record(call("acceptance", *same, "--draft-max", "2"))["conditions"][0]["families"]["all"]
    counted = bench["drafters"]["drafter"]["2"]
    assert (one["tokens"], one["verify_steps"]) == (bench["generated_tokens"], counted["verify_steps"])
    ours = [row["accepted"]["mean"] for row in one["depths"]]
    assert ours == pytest.approx(counted["accepted_by_position"], abs=1e-6) and ours[0] > 0


def test_the_same_call_gives_the_same_record_and_another_seed_other_intervals(models):
    args = (
        "drift",
        "-m",
        models["target"],
        "-d",
        models["pre"],
        "-t",
        "1",
        "-n",
        "6",
        "--count",
        "8",
        "--depth",
        "2",
        "--json",
    )
    first, again, other = (record(call(*args, *seed)) for seed in ((), (), ("--seed", "9")))
    assert again == first
    a, b = (r["drafters"][0]["depths"][0]["entropy"] for r in (first, other))
    assert a["mean"] == b["mean"] and (a["low"], a["high"]) != (b["low"], b["high"])


def test_a_drafter_that_borrows_from_the_target_is_measured_with_the_target_s_tensors(models, tmp_path):
    config, weights = read_drafter(models["shared"])
    _, tensors = tiny.target_parts()
    own = {**weights, "token_embd": tensors["token_embd.weight"], "output": tensors["output.weight"]}
    write_drafter(tmp_path / "own.gguf", config, own)
    args = ("-m", models["target"], *SMALL, "--json")
    borrowed, complete = (
        record(call("drift", "-d", path, *args))["drafters"][0] for path in (models["shared"], tmp_path / "own.gguf")
    )
    assert borrowed["depths"] == complete["depths"]


def test_a_text_table_goes_to_stdout_and_figures_to_the_folder(models, tmp_path):
    pytest.importorskip("matplotlib")
    result = call("drift", "-m", models["target"], "-d", models["post"], *SMALL, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "MB of memory" in result.stderr and "MB" not in result.stdout
    assert "magnitude" in result.stdout and "wrote" in result.stderr and "wrote" not in result.stdout
    saved = tmp_path / "out" / "drift.json"
    assert str(tmp_path) not in saved.read_text("utf-8")  # names of files, not places
    again = call("drift", "--from", saved, "--json")
    assert record(again) == json.loads(saved.read_text("utf-8"))


def test_no_drafter_is_a_usage_error(models):
    assert "-d" in one_line_error(call("drift", "-m", models["target"], *SMALL), code=2)


def test_a_drafter_for_another_target_is_refused_in_one_line(models, tmp_path):
    metadata, tensors = tiny.target_parts()
    metadata["llama.block_count"] = 3
    tensors = {name: a for name, a in tensors.items() if not name.startswith(("blk.3.", "blk.4."))}
    shallow = tiny.write(tmp_path / "shallow.gguf", "llama", metadata, tensors)
    assert "plain.gguf" in one_line_error(call("drift", "-m", shallow, "-d", models["pre"], *SMALL))


@pytest.mark.parametrize("wrong", ["gone.gguf", "target"])
def test_what_is_no_drafter_is_one_line(models, wrong):
    path = models.get(wrong, wrong)
    assert "gguf" in one_line_error(call("drift", "-m", models["target"], "-d", path, *SMALL))


def test_two_drafters_of_one_name_are_refused(models):
    error = one_line_error(
        call("drift", "-m", models["target"], "-d", models["pre"], "-d", models["pre"], *SMALL), code=2
    )
    assert "same name" in error


def test_a_record_that_is_none_is_one_line(models, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert "x.json" in one_line_error(call("drift", "--from", tmp_path / "x.json"))


def test_more_tokens_than_the_context_holds_is_a_usage_error(models):
    error = one_line_error(call("drift", "-m", models["target"], "-d", models["pre"], "-c", "64", "-n", "63"), code=2)
    assert "--max-tokens 63" in error


def test_a_checkpoint_directory_measures_as_the_file_converted_from_it(tmp_path):
    from refspec.convert import convert_drafter, convert_target

    formats = borrowed("drift_formats_toys", "formats/formats_toys.py")
    config = formats.target_config(600)
    formats.write_target_directory(tmp_path / "hf", config, formats.target_tensors(config))
    formats.write_drafter_directory(tmp_path / "directory")
    convert_target(tmp_path / "hf", tmp_path / "target.gguf", "f32")
    convert_drafter(tmp_path / "directory", tmp_path / "hf", tmp_path / "file.gguf", "f32")
    args = (
        "drift",
        "-m",
        tmp_path / "target.gguf",
        "-d",
        tmp_path / "directory",
        "-d",
        tmp_path / "file.gguf",
        *SMALL,
        "--json",
    )
    one, other = record(call(*args))["drafters"]
    assert (one["name"], other["name"]) == ("directory", "file")
    for row, same in zip(one["depths"], other["depths"], strict=True):
        for name in FIGURES:  # RoPE pairs have another order, so sums round otherwise
            assert row[name]["mean"] == pytest.approx(same[name]["mean"], abs=1e-4), name
