"""The queue of trainings: plans are checked, a killed queue goes on, the regularizer does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")

from filelock import FileLock  # noqa: E402
from lab_command import call as run  # noqa: E402

from lab import grid  # noqa: E402
from lab.plan import read_plan  # noqa: E402
from refspec.errors import UsageError  # noqa: E402
from refspec.gguf.io import read_drafter  # noqa: E402
from refspec.train import precision  # noqa: E402
from refspec.train.drafter_loss import chain_losses  # noqa: E402
from refspec.train.drafters import Training, drafter_for, train_drafters  # noqa: E402

PLAIN = {"feature_norm": "none", "feedback": "pre_norm"}
TOY = {
    "draft_vocab": 200,
    "capture_layers": [1, 2, 4],
    "variants": {"normalized": {}, "plain": PLAIN, "reg": {**PLAIN, "attention_reg": 0.5}},
    "runs": [
        {"name": "late", "rank": 2, "variants": ["plain", "reg"], "depths": [2], "seeds": [1], "steps": 1},
        {"name": "main", "rank": 1, "variants": ["normalized", "plain"], "depths": [1, 2], "seeds": [1, 2], "steps": 1},
    ],
}


def written(folder, **changes):
    path = folder / "plan.json"
    path.write_text(json.dumps(TOY | changes))
    return path


def call(plan, data, target_run, out, *more):
    return run("grid", plan, "--data", data, "--target", target_run, "-o", out, "-t", "1", *more)


def test_jobs_come_by_rank_then_seed_then_depth(tmp_path):
    names = [job.name for job in read_plan(written(tmp_path)).jobs]
    assert names == ["main-ttt1-seed1", "main-ttt2-seed1", "main-ttt1-seed2", "main-ttt2-seed2", "late-ttt2-seed1"]


def test_the_committed_plan_has_three_seeds_for_everything_and_the_main_comparison_first():
    plan = read_plan(Path(__file__).resolve().parents[2] / "docs" / "grid.json")
    assert [job.run for job in plan.jobs[:3]] == ["main"] * 3
    seeds: dict[tuple, set] = {}
    for job in plan.jobs:
        seeds.setdefault((job.run, job.depth), set()).add(job.seed)
        assert job.steps <= plan.jobs[0].steps
    assert all(len(found) == 3 for found in seeds.values())
    switches = {
        tuple(v.get(k) for k in ("feature_norm", "feedback", "residual", "attention_reg"))
        for job in plan.jobs
        for v in job.variants.values()
    }
    single = {
        ("none", "post_norm", "raw", None),
        ("per_state", "pre_norm", "raw", None),
        ("none", "pre_norm", "normed", None),
    }
    assert single <= switches and {depth for _, depth in seeds} == {1, 3, 5, 7}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {"a": {"feedback": "post"}}}, "feedback = 'post' is not one of pre_norm, post_norm"),
        ({"variants": {"a": {"depth": 3}}}, "unknown key 'depth'"),
        ({"variants": {"a.b": {}}}, "dot"),
        ({"seed": 1}, "unknown key"),
        ({"runs": []}, "empty"),
        ({"runs": [TOY["runs"][0] | {"variants": ["gone"]}]}, "no variant 'gone'"),
        ({"runs": [TOY["runs"][0] | {"depths": [1]}]}, "attention_reg"),
        ({"runs": [TOY["runs"][0] | {"steps": 0}]}, "at least 1"),
        ({"runs": [TOY["runs"][0] | {"steps": "many"}]}, "steps must be a int"),
        ({"runs": [TOY["runs"][0], TOY["runs"][0]]}, "same name"),
        ({"draft_vocab": 0}, "draft_vocab"),
    ],
)
def test_a_wrong_plan_is_one_line_that_names_the_key(tmp_path, changes, words):
    with pytest.raises(UsageError) as error:
        read_plan(written(tmp_path, **changes))
    assert words in str(error.value) and "plan.json" in str(error.value) and "\n" not in str(error.value)


def test_toml_says_the_same(tmp_path):
    pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    (tmp_path / "plan.toml").write_text(
        '[variants.plain]\nfeedback = "pre_norm"\n'
        '[[runs]]\nname = "a"\nrank = 1\nvariants = ["plain"]\ndepths = [3]\nseeds = [7]\nsteps = 5\n'
    )
    (job,) = read_plan(tmp_path / "plan.toml").jobs
    assert (job.name, job.variants) == ("a-ttt3-seed7", {"plain": {"feedback": "pre_norm"}})


def test_a_killed_queue_goes_on_and_a_changed_job_is_refused(tmp_path, data, target_run, monkeypatch):
    runs = [TOY["runs"][1] | {"depths": [2], "seeds": [1]}, TOY["runs"][0]]
    plan, out = written(tmp_path, runs=runs), tmp_path / "grid"
    trained = []

    def dying(data, target_run, folder, variants, **how):
        trained.append(folder.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_drafters(data, target_run, folder, variants, **how)

    monkeypatch.setattr(grid, "train_drafters", dying)
    assert call(plan, data, target_run, out, "--no-estimate").exit_code == 130
    result = call(plan, data, target_run, out, "--no-estimate")
    assert result.exit_code == 0, result.output
    assert trained == ["main-ttt2-seed1", "late-ttt2-seed1", "late-ttt2-seed1"]
    done = json.loads((out / "late-ttt2-seed1" / "done.json").read_text())
    assert done["tokens"] == 4096 and 0 <= done["figures"]["reg_agree_1"] <= 1
    assert read_drafter(out / "main-ttt2-seed1" / "normalized.gguf")[0].feature_norm.value == "per_state"
    dry = call(plan, data, target_run, out, "--dry-run", "--no-estimate")
    assert dry.exit_code == 0 and dry.stdout.count("done") == 2 and len(trained) == 3
    changed = call(written(tmp_path, runs=[runs[0] | {"steps": 9}]), data, target_run, out, "--no-estimate")
    assert changed.exit_code == 2 and "begun with steps = 1, now 9" in changed.stderr and len(trained) == 3


def test_processes_share_a_queue_and_no_job_is_trained_twice(tmp_path, data, target_run, monkeypatch):
    plan, out = written(tmp_path), tmp_path / "grid"
    first, *others = [job.name for job in read_plan(plan).jobs]
    trained = []

    def noted(data, target_run, folder, variants, **how):
        trained.append(folder.name)
        return {}

    monkeypatch.setattr(grid, "train_drafters", noted)
    (out / first).mkdir(parents=True)
    with FileLock(out / first / "lock"):
        result = call(plan, data, target_run, out, "--no-estimate")
        assert result.exit_code == 0 and f"{first}: another process trains it" in result.stderr
        assert trained == others
    assert call(plan, data, target_run, out, "--no-estimate").exit_code == 0
    assert trained == [*others, first]


def test_a_dry_run_times_every_depth_and_trains_nothing(tmp_path, data, target_run):
    result = call(written(tmp_path), data, target_run, tmp_path / "grid", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "left: " in result.stdout and result.stdout.count(" h") >= 6 and not (tmp_path / "grid").exists()


def test_the_regularizer_adds_its_weight_times_the_attention_on_own_tokens(data, target_run):
    def made(reg):
        return Training(
            data,
            target_run,
            {"a": drafter_for(target_run, 200, (1, 2, 4), attention_reg=reg, **PLAIN)},
            depth=3,
            seed=1,
            threads=1,
        )

    plain, weighted = made(0.0), made(0.5)
    tokens, mask = plain.batches[0]
    lesson = plain.teacher.lesson(tokens[:2, :65], mask[:2, :65], 0.5)
    with torch.no_grad():
        base, _, _ = chain_losses(plain.drafters["a"], lesson, 3)
        more, _, _ = chain_losses(weighted.drafters["a"], lesson, 3)
        steps = list(plain.drafters["a"].chain(lesson.tokens, lesson.states, lesson.mask, lesson.rows, 3))
    mass = [float(s.own_mass[v].mean()) for s, v in zip(steps, lesson.valid, strict=True)]
    assert mass[0] == 0 and 0 < mass[1] < mass[2] < 1  # a new drafter looks everywhere alike
    assert float(more - base) == pytest.approx(0.5 * (mass[1] + mass[2]) / 2, abs=1e-4)
    weighted.loss_of(0)[0].backward()
    assert all(p.grad is not None for p in weighted.together.parameters())
    names = {"attention_reg"} & plain.drafters["a"].config.to_dict().keys()
    assert not names and weighted.drafters["a"].config.to_dict()["attention_reg"] == 0.5


def test_a_regularizer_without_draft_tokens_and_a_device_that_is_not_there_are_refused(data, target_run, monkeypatch):
    reg = {"a": drafter_for(target_run, 200, (1, 2, 4), attention_reg=1.0)}
    with pytest.raises(UsageError, match="--attention-reg needs --depth 2"):
        Training(data, target_run, reg, depth=1, seed=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda"):
        precision.choose_device("cuda")
    assert precision.choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.choose_device("auto").type == "cuda" and precision.choose_device("cpu").type == "cpu"


def test_from_plan_to_findings_at_toy_size(tmp_path, data, target_run):
    pytest.importorskip("matplotlib")
    measure = [
        {"name": "drift", "kind": "drift", "count": 2, "max_tokens": 8, "depth": 3},
        {"name": "standard", "kind": "acceptance", "count": 2, "draft_max": "2,4", "max_tokens": 8},
        {
            "name": "anchor",
            "kind": "acceptance",
            "runs": ["main"],
            "anchor": [1],
            "count": 1,
            "draft_max": "2",
            "max_tokens": 8,
        },
    ]
    runs = [TOY["runs"][1] | {"depths": [2], "seeds": [1]}, TOY["runs"][0]]
    plan, out, records = written(tmp_path, runs=runs, measure=measure), tmp_path / "grid", tmp_path / "docs" / "records"
    (tmp_path / "p.txt").write_text("the cat sees\na dog runs home\nreturn a tree\n")

    def findings(*more):
        result = run("findings", *more)
        assert result.exit_code == 0, result.output
        return result.stderr

    job = grid.run_jobs
    job(read_plan(plan)._replace(jobs=read_plan(plan).jobs[:1]), data, target_run, out, tell=lambda _: None, threads=1)
    arguments = (
        "measure",
        plan,
        out,
        "--target",
        target_run / "target.gguf",
        "--prompts",
        tmp_path / "p.txt",
        "-o",
        records,
        "-t",
        1,
    )
    assert "1 of 2 jobs are trained" in findings(*arguments)
    names = {"job.json", "drift.json", "standard.json", "anchor.json"}
    assert {path.name for path in (records / "main-ttt2-seed1").iterdir()} == names
    assert call(plan, data, target_run, out, "--no-estimate").exit_code == 0
    again = findings(*arguments)
    assert (
        "late-ttt2-seed1: standard" in again
        and "main-ttt2-seed1: standard" not in again
        and "late-ttt2-seed1: anchor" not in again
    )
    findings("write", records, "-o", tmp_path / "docs")
    text = (tmp_path / "docs" / "findings.md").read_text()
    assert (
        "bonus 1, on the normalized drafter" in text
        and "Fewer than three seeds" in text
        and "| main | 2 | 1 | 1 | 0.0 |" in text
    )
    derived = json.loads((tmp_path / "docs" / "findings.json").read_text())
    assert derived["ratios"]["standard"]["4"]["all"]["prompts"] == 2
    unknown = written(tmp_path, measure=[{"name": "x", "kind": "speed"}])
    wrong = run("findings", "measure", unknown, *arguments[2:])
    assert wrong.exit_code == 2 and "kind, drift or acceptance" in wrong.stderr


def test_records_of_another_training_are_not_mixed(tmp_path, data, target_run):
    from lab.findings import copy_job
    from refspec.errors import CheckpointError

    made, kept = tmp_path / "grid", tmp_path / "records"
    made.mkdir()
    (made / "job.json").write_text('{"seed": 1}')
    (made / "done.json").write_text('{"figures": {"loss": 1.5}}')
    copy_job(made, kept)
    copy_job(made, kept)
    (made / "done.json").write_text('{"figures": {"loss": 1.25}}')
    with pytest.raises(CheckpointError, match="another training"):
        copy_job(made, kept)
