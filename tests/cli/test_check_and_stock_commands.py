"""`refspec check` finds what does not fit and says why; `convert --stock` and `export` write files that load."""

import json
from pathlib import Path

import pytest
from cli_models import call, one_line_error, record, tiny, write_pair

from refspec.evaluate.check_live import judge
from refspec.evaluate.prompts import halves
from refspec.gguf.io import read_drafter, read_gguf_header
from refspec.reference.config import DrafterConfig
from refspec.reference.metrics import Seconds, Statistics, Step


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


def drafter(tmp_path, **switches):
    return tiny.drafter(tmp_path / "other.gguf", **switches)


def changed(tmp_path, metadata):
    arch, meta, tensors = tiny.drafter_parts()
    return tiny.write(tmp_path / "other.gguf", arch, meta | metadata, tensors)


def findings(result):
    return {f["about"]: f for f in json.loads(result.stdout)["findings"]}


def test_files_that_fit_are_said_to_fit_without_a_run(pair):
    result = call("check", *pair, "--no-live", "--json")
    about = json.loads(result.stdout)
    assert result.exit_code == 0 and about["fits"] and about["run"] is None
    assert {f["level"] for f in about["findings"]} <= {"ok", "note"}
    text = call("check", *pair, "--no-live").stdout
    assert text.endswith("fits\n") and "boundaries 1, 2, 4 of 5 layers" in text


def test_an_untrained_drafter_is_a_misfit_with_its_likely_cause(pair):
    result = call("check", *pair, "-t", 1, "-n", 24, "--count", 3, "--json")
    about = findings(result)
    assert result.exit_code == 1 and about["first token"]["level"] == "misfit"
    assert "captured layers are wrong" in about["first token"]["cause"]
    tried = json.loads(result.stdout)["run"]["readings"]
    assert {"--feedback pre_norm", "--residual normed", "--layer-ids 1,2,3"} <= tried.keys()
    assert (
        about["readings"]["level"] == "note" and "none of the usual mistakes explains it" in about["readings"]["cause"]
    )


@pytest.mark.parametrize(
    ("metadata", "about"),
    [
        ({"eagle3.target_hidden_size": 40}, "width"),
        ({"eagle3.target_layers": [1, 2, 9]}, "layers"),
        ({"eagle3.vocab_size": 300}, "vocabulary"),
        (tiny.tokenizer() | {"tokenizer.ggml.tokens": [f"x{i}" for i in range(tiny.V)]}, "tokenizer"),
    ],
)
def test_each_misfit_of_the_files_is_named_and_nothing_runs(pair, tmp_path, metadata, about):
    result = call("check", pair[0], changed(tmp_path, metadata), "--json")
    assert result.exit_code == 1 and findings(result)[about]["level"] == "misfit"
    assert json.loads(result.stdout)["run"] is None


def test_another_rope_base_is_worth_a_note(pair, tmp_path):
    result = call("check", pair[0], changed(tmp_path, {"eagle3.rope.freq_base": 500000.0}), "--no-live", "--json")
    assert result.exit_code == 0 and findings(result)["RoPE"]["level"] == "note"


def test_a_drafter_llama_cpp_cannot_compute_is_run_by_refspec_and_said_so(pair, tmp_path):
    path = changed(tmp_path, {"refspec.head_norm": False, "general.architecture": "refspec-eagle3"})
    result = call("check", pair[0], path, "-t", 1, "-n", 16, "--count", 2, "--json")
    about = findings(result)
    assert about["engine"]["level"] == "note" and "refspec's own kernels run it" in about["engine"]["said"]
    assert json.loads(result.stdout)["run"]["verify_steps"] > 0


def test_generate_says_that_refspec_itself_drafts_and_the_text_stays_the_same(pair, tmp_path):
    path = changed(tmp_path, {"refspec.head_norm": False, "general.architecture": "refspec-eagle3"})
    result = call(
        "generate", "-m", pair[0], "-d", path, "-p", "x", "-n", 12, "-t", 1, "--reproducible", "f32", "--compare"
    )
    assert result.exit_code == 0 and "identical: yes" in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if "runs inside refspec" in line]
    assert said.startswith("refspec: drafter (") and "always normalizes before the output head" in said
    assert "refspec (as drafter, -d, on its own kernels)" in call("inspect", path).stdout


def test_targets_and_drafters_are_not_confused(pair):
    assert "is a drafter" in one_line_error(call("check", pair[1], pair[0]))
    assert "not a drafter" in one_line_error(call("check", pair[0], pair[0]))


def statistics(accepted):
    out = Statistics()
    for m in accepted:
        out.add(Step(0, [1, 2, 3, 4], m, [0] * (m + 1), Seconds(0, 0, 0)))
    return out


def config(**changes):
    sizes = dict(
        hidden_size=8, target_hidden_size=8, capture_layers=(2, 3, 4), n_heads=1, n_kv_heads=1, head_dim=8,
        intermediate_size=8, vocab_size=8, draft_vocab_size=8, rms_eps=1e-5, rope_theta=1e4, rope_style="half_split", feature_norm="none",
        feedback="post_norm", residual="raw",
    )  # fmt: skip
    return DrafterConfig(**(sizes | changes))


def levels(accepted, magnitudes=(1, 1, 1, 1), **changes):
    return [f.level for f in judge(statistics(accepted), magnitudes, config(**changes))]


def test_each_detector_fires_on_its_pattern_and_on_no_other():
    healthy = [0, 1, 2, 4] * 10
    assert levels(healthy) == ["ok", "ok", "ok"]
    assert levels([0] * 39 + [1]) == ["misfit", "note", "ok"]
    assert levels([0] * 12 + [1] * 27 + [2]) == ["ok", "misfit", "ok"]
    assert levels(healthy, (9, 1, 1.4, 2)) == ["ok", "ok", "misfit"]
    assert levels(healthy, (9, 1, 1.4, 2), feedback="pre_norm") == ["ok", "ok", "note"]
    assert levels([0] * 27 + [4] * 13) == ["note", "ok", "ok"]
    assert levels([0] * 5) == ["note"]


def test_stock_writes_a_file_stock_llama_cpp_runs_and_prints_the_loss_on_other_prompts(pair, tmp_path):
    made = record(
        call(
            "convert",
            pair[1],
            "--target",
            pair[0],
            "--stock",
            "-o",
            tmp_path / "s.gguf",
            "-t",
            1,
            "-n",
            16,
            "--count",
            2,
            "--json",
        )
    )
    tried, held_out = made["calibration"]["candidates"], made["held_out"]
    assert len(tried) == 10 and made["chosen"] == max(tried, key=lambda name: tried[name]["tau"])
    assert made["calibration"]["prompts"] == held_out["prompts"] == 2
    assert made["loss_of_tau"] == pytest.approx(1 - held_out["chosen"]["tau"] / held_out["exact"]["tau"])
    info = read_gguf_header(tmp_path / "s.gguf")
    assert info.arch == "eagle3" and info.metadata["refspec.provenance.stock"].startswith(made["chosen"])
    assert read_drafter(tmp_path / "s.gguf")[0].feedback.value == "pre_norm"
    text = call(
        "convert", pair[1], "--target", pair[0], "--stock", "-o", tmp_path / "t.gguf", "-t", 1, "-n", 8, "--count", 1
    ).stdout
    assert "of tau, measured on the 1 prompts it was not calibrated on" in text and "<- best, written" in text


def test_prompts_that_calibrate_never_measure(tmp_path):
    first, second = halves(None, (), 12)
    assert len(first) == len(second) == 12 and not set(first) & set(second)
    (tmp_path / "p.txt").write_text("a\nb\na\nc\n")
    assert halves(str(tmp_path / "p.txt"), (), 9) == (["a", "c"], ["b"])


def test_one_prompt_is_not_enough_to_calibrate_and_to_measure(pair, tmp_path):
    (tmp_path / "p.txt").write_text("the only one\n")
    result = call(
        "convert", pair[1], "--target", pair[0], "--stock", "-o", tmp_path / "s.gguf", "--prompts", tmp_path / "p.txt"
    )
    assert "at least two prompts" in one_line_error(result, 2) and not (tmp_path / "s.gguf").exists()


def exported(pair, tmp_path):
    assert call("export", pair[1], "-o", tmp_path / "ckpt", "--format", "speculators").exit_code == 0
    return tmp_path / "ckpt"


def test_convert_stock_writes_the_nearest_file_and_its_loss(pair, tmp_path):
    source = exported(pair, tmp_path)
    arguments = (
        "convert",
        source,
        "--target",
        pair[0],
        "--stock",
        "-o",
        tmp_path / "s.gguf",
        "-t",
        1,
        "-n",
        8,
        "--count",
        1,
    )
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "feedback         post_norm" in result.stdout and "% of tau, measured on the 1 prompts" in result.stdout
    assert read_gguf_header(tmp_path / "s.gguf").arch == "eagle3"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt", "s.gguf"]  # the exact one was only on the way
    made = record(call(*arguments, "--json"))
    assert (
        made["stock"]["chosen"] in made["stock"]["calibration"]["candidates"]
        and made["architecture"] == "refspec-eagle3"
    )


def test_convert_stock_of_what_stock_runs_is_the_plain_conversion(pair, tmp_path):
    plain = drafter(tmp_path)
    call("export", plain, "-o", tmp_path / "ckpt", "--format", "speculators")
    result = call(
        "convert", tmp_path / "ckpt", "--target", pair[0], "--stock", "-o", tmp_path / "a.gguf", "--outtype", "f32"
    )
    assert result.exit_code == 0 and "runs this drafter exactly" in result.stderr
    call("convert", tmp_path / "ckpt", "--target", pair[0], "-o", tmp_path / "b.gguf", "--outtype", "f32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_convert_stock_wants_a_target_it_can_run(pair, tmp_path):
    source = exported(pair, tmp_path)
    for more in ((), ("--target", tmp_path)):
        assert "as a GGUF with --target" in one_line_error(
            call("convert", source, "--stock", "-o", tmp_path / "s.gguf", *more), 2
        )
    assert "cannot be written there" in one_line_error(
        call("convert", source, "--target", pair[0], "--stock", "-o", tmp_path / "none" / "s.gguf"), 2
    )


def test_stock_keeps_the_rope_attention_factor_and_the_targets_tensors_out(tmp_path):
    arch, metadata, tensors = tiny.drafter_parts(feedback="post_norm", shared=True, width=tiny.HT)
    path = tiny.write(tmp_path / "yarn.gguf", arch, metadata | {"eagle3.rope.scaling.attn_factor": 1.25}, tensors)
    made = record(
        call(
            "convert",
            path,
            "--target",
            write_pair(tmp_path)[0],
            "--stock",
            "-o",
            tmp_path / "s.gguf",
            "--outtype",
            "f32",
            "-t",
            1,
            "-n",
            8,
            "--count",
            1,
            "--json",
        )
    )
    exact, near = read_drafter(path), read_drafter(tmp_path / "s.gguf")
    assert near[0].rope_attention_factor == exact[0].rope_attention_factor == 1.25
    assert not {"token_embd", "output"} & near[1].keys()
    half = tiny.HT if "moved" in made["chosen"] else 2 * tiny.HT  # columns no norm was folded into
    assert (near[1]["attn_q"][:, :half] == exact[1]["attn_q"][:, :half]).all()


def test_what_stock_llama_cpp_runs_exactly_needs_no_folding(pair, tmp_path):
    result = call("convert", drafter(tmp_path), "--target", pair[0], "--stock", "-o", tmp_path / "s.gguf")
    assert "runs it exactly" in one_line_error(result, 2) and not (tmp_path / "s.gguf").exists()


def test_a_gguf_is_converted_to_its_nearest_only_and_options_of_checkpoints_are_refused(pair, tmp_path):
    on = ["convert", pair[1], "-o", tmp_path / "s.gguf", "--target", pair[0]]
    assert "is a file, not a checkpoint directory; `refspec recast`" in one_line_error(call(*on), 2)
    assert "--feedback is about checkpoints" in one_line_error(call(*on, "--stock", "--feedback", "pre_norm"), 2)
    assert "is now `refspec convert DRAFTER --target TARGET --stock" in one_line_error(call("stock", *pair), 2)


def test_export_writes_a_checkpoint_and_says_so(pair, tmp_path):
    result = call("export", pair[1], "-o", tmp_path / "out", "--format", "speculators")
    assert result.exit_code == 0 and "speculators checkpoint" in result.stdout
    assert {p.name for p in Path(tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    assert "per_state" in one_line_error(call("export", pair[1], "-o", tmp_path / "e", "--format", "eagle"))
    assert "already holds" in one_line_error(
        call("export", pair[1], "-o", tmp_path / "out", "--format", "speculators"), 2
    )
