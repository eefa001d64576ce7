"""A drafter from a GGUF alone: answers, lessons and training, end to end on tiny files of several architectures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

import tiny  # noqa: E402

import refspec  # noqa: E402
from refspec.errors import CheckpointError, PromptError, RefspecError, UsageError  # noqa: E402
from refspec.gguf.io import read_gguf_header  # noqa: E402
from refspec.llama.target import LlamaTarget  # noqa: E402
from refspec.train import from_gguf, lesson_training  # noqa: E402
from refspec.train.answers import Answered, read_prompts  # noqa: E402
from refspec.train.budget import Rates, check_disk, fit  # noqa: E402
from refspec.train.from_gguf import Plan, train_from_gguf  # noqa: E402
from refspec.train.lessons import Lessons  # noqa: E402

PLAN = Plan(tokens=400, epochs=2, depth=2, draft_vocab=64, layer_ids=(1, 2, 4), max_new=24, max_prompt=24, twin=True)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson_training, "ROWS", 2)
    monkeypatch.setattr(lesson_training, "LENGTH", 48)
    monkeypatch.setattr(lesson_training, "HELD_OUT", 4)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"tell me of the {word}"} for word in ("sea", "sun", "moon", "hill", "bee", "cat", "fox", "owl")]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def make(model: Path, out: Path, prompts: Path, plan: Plan = PLAN) -> dict[str, float]:
    return train_from_gguf(model, out, plan, prompts=prompts, parallel=4, threads=1, tell=lambda line: None)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen2", "gemma3"])
def test_a_drafter_for_any_architecture_runs_with_its_target(arch: str, tmp_path: Path, prompts: Path) -> None:
    model = tiny.target(tmp_path / "model.gguf", arch)
    figures = make(model, tmp_path / "out", prompts)
    assert {"drafter_tau", "drafter-plain_tau"} <= figures.keys()
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == figures
    assert 1 <= figures["drafter_tau 3"] <= figures["drafter_tau 5"] <= 6 and figures["drafter_plain"] > 0
    for name in ("drafter", "drafter-plain"):
        file = tmp_path / "out" / f"{name}.gguf"
        assert "token_embd.weight" not in read_gguf_header(file).tensors  # the target lends it
        with refspec.load(model, file, threads=1, draft_max=2, adaptive=False) as session:
            generation = session.generate("tell me of the sea", max_tokens=12)
            assert list(generation) and sum(generation.statistics.steps_by_drafted[1:]) > 0


def test_a_killed_run_goes_on_and_gives_the_same(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.target(tmp_path / "model.gguf")
    make(model, tmp_path / "whole", prompts)
    document, calls = Lessons._document, list[int]()

    def killed(self: Lessons, *args: object) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        document(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Lessons, "_document", killed)
    with pytest.raises(KeyboardInterrupt):
        make(model, tmp_path / "killed", prompts)
    lines = (tmp_path / "killed" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "killed" / "answers.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:20])  # cut while writing
    make(model, tmp_path / "killed", prompts)
    for name in ("drafter", "drafter-plain"):
        a, b = ((tmp_path / run / f"{name}.gguf").read_bytes() for run in ("whole", "killed"))
        assert a == b


def test_another_plan_does_not_go_on_in_the_same_folder(tmp_path: Path, prompts: Path) -> None:
    model = tiny.target(tmp_path / "model.gguf")
    make(model, tmp_path / "out", prompts)
    with pytest.raises(RefspecError, match=r"depth|started with"):
        make(model, tmp_path / "out", prompts, replace(PLAN, depth=3))


def test_lessons_are_what_the_model_computes(tmp_path: Path) -> None:
    model = tiny.target(tmp_path / "model.gguf")
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, tiny.V, 40).astype(np.int32)
    mine = np.repeat(np.array([0, 1], np.uint8), [10, 30])
    answered = Answered(tokens, mine, np.array([0, 40]))
    ids = np.arange(3, 203)
    lessons = Lessons(tmp_path / "lessons", answered, tiny.LAYERS, tiny.HT, ids)
    with_layers = {"capture_layers": tiny.LAYERS, "n_ctx": 64, "n_threads": 1, "kv_type": "f32", "flash_attn": "off"}
    target = LlamaTarget(model, **with_layers)
    lessons.make(target)
    target.reset()
    target.decode(tokens, logits="all")
    logits = np.array([target.logits(i) for i in range(40)])
    states = target.features().reshape(40, 3, tiny.HT)
    target.close()
    assert np.allclose(lessons.arrays["states"], states, atol=0, rtol=1e-3)
    assert (lessons.arrays["best"][:9] == -1).all()  # nobody learns to draft a prompt
    assert np.array_equal(lessons.arrays["best"][9:], logits[9:].argmax(1))
    logp = logits[:, ids] - np.log(np.exp(logits[:, ids]).sum(1, keepdims=True))
    for i in range(9, 40):
        top = np.asarray(lessons.arrays["ids"][i]).astype(int)
        assert set(top) == set(np.argsort(-logp[i])[: lessons.kept])
        assert np.allclose(lessons.arrays["logp"][i], logp[i][top], atol=2e-2)


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (['{"turns": ["a", "b"]}'], [[{"role": "user", "content": "a"}]]),
        (['{"text": "once"}'], ["once"]),
        (
            ['{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]}'],
            [[{"role": "user", "content": "q"}]],
        ),
    ],
)
def test_prompts_are_read_in_every_usual_form(tmp_path: Path, rows: list[str], messages: list[object]) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(rows))
    assert read_prompts(file) == messages


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"question": 3}\n')
    with pytest.raises(PromptError, match="line 2"):
        read_prompts(file)


def test_a_shallow_model_names_the_option(tmp_path: Path, prompts: Path) -> None:
    with pytest.raises(UsageError, match="--layer-ids"):
        make(tiny.target(tmp_path / "model.gguf"), tmp_path / "out", prompts, replace(PLAN, layer_ids=None))


def test_hours_become_a_plan_that_a_killed_run_keeps(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refspec.train.budget.FEWEST", 100)
    rates = Rates(answers=1000.0, lessons=1000.0, training=500.0)
    monkeypatch.setattr(from_gguf, "measure_rates", lambda *_: rates)
    said: list[str] = []
    model, how = tiny.target(tmp_path / "model.gguf"), {"prompts": prompts, "parallel": 4, "threads": 1}
    train_from_gguf(model, tmp_path / "out", PLAN, hours=0.001, tell=said.append, **how)  # type: ignore[arg-type]
    kept = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert kept["epochs"] == 1 and kept["tokens"] == int(0.95 * 3.6 / (2 / 1000 + 1 / 500))
    assert any("plan:" in line for line in said)
    with pytest.raises(UsageError, match="planned for"):
        train_from_gguf(model, tmp_path / "out", PLAN, hours=0.002, tell=said.append, **how)  # type: ignore[arg-type]


def test_rates_are_measured_on_the_model_itself(tmp_path: Path, prompts: Path) -> None:
    model = tiny.target(tmp_path / "model.gguf")
    config = from_gguf.drafter_config(read_gguf_header(model), PLAN, from_gguf.PLAIN)
    asking = {"prompts": prompts, "parallel": 4, "threads": 1, "gpu_layers": 0, "tell": lambda line: None}
    rates = from_gguf.measure_rates(model, tmp_path / "out", PLAN, {"drafter": config}, asking, "cpu")
    assert rates.answers > 0 and rates.lessons > 0 and rates.training > 0
    assert (tmp_path / "out" / "answers.jsonl").stat().st_size > 0  # not lost: the run goes on from there


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(UsageError, match=r"give 2\.3 or more"):
        fit(PLAN, 0.1, Rates(10.0, 10.0, 10.0))


def test_a_small_disk_means_fewer_tokens_read_more_often() -> None:
    rates = Rates(400.0, 400.0, 800.0)
    plenty, few = fit(PLAN, 1.0, rates), fit(PLAN, 1.0, rates, most=50_000)
    assert few.tokens == 50_000 < plenty.tokens and plenty.epochs < few.epochs == 8
    assert sum(rates.seconds(few.tokens, few.epochs)) < 3600
    assert fit(PLAN, 1.0, rates, most=10**9) == plenty


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GB are free"):
        check_disk(tmp_path, 1 << 60)


def test_lessons_of_other_layers_or_answers_are_not_gone_on_with(tmp_path: Path) -> None:
    model, ids = tiny.target(tmp_path / "model.gguf"), np.arange(3, 103)
    tokens, mine = np.arange(3, 33, dtype=np.int32), np.ones(30, np.uint8)
    answered = Answered(tokens, mine, np.array([0, 30]))
    target = LlamaTarget(model, capture_layers=tiny.LAYERS, n_ctx=64, n_threads=1)
    Lessons(tmp_path / "lessons", answered, tiny.LAYERS, tiny.HT, ids).make(target)
    target.close()
    assert Lessons(tmp_path / "lessons", answered, tiny.LAYERS, tiny.HT, ids).done == 1
    for layers, said in ((tiny.LAYERS[::-1], answered), (tiny.LAYERS, answered._replace(tokens=tokens[::-1].copy()))):
        with pytest.raises(CheckpointError, match="lessons of another run"):
            Lessons(tmp_path / "lessons", said, layers, tiny.HT, ids)


def test_a_longer_run_keeps_answers_and_lessons_and_starts_from_the_shorter_ones_weights(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = tiny.target(tmp_path / "model.gguf"), tmp_path / "out"
    make(model, out, prompts)
    answers, states = (out / "answers.jsonl").read_bytes(), (out / "lessons" / "states.bin").read_bytes()
    vocabulary = np.load(out / "draft_vocabulary.npy")
    monkeypatch.setattr("refspec.train.from_gguf.run_steps", stopped_at_once)
    with pytest.raises(KeyboardInterrupt) as stopped:
        make(model, out, prompts, replace(PLAN, tokens=700))
    started = stopped.value.args[0]
    assert (out / "answers.jsonl").read_bytes().startswith(answers)
    assert (out / "lessons" / "states.bin").read_bytes().startswith(states)
    assert np.array_equal(np.load(out / "draft_vocabulary.npy"), vocabulary)
    trained = torch.load(out / "before.pt", weights_only=True)["model"]
    assert all(torch.equal(started[name], w) for name, w in trained.items()) and not (out / "checkpoint.pt").exists()


def stopped_at_once(out: Path, identity: dict[str, object], model: torch.nn.Module, *_: object, **how: object) -> None:
    raise KeyboardInterrupt({name: w.clone() for name, w in model.state_dict().items()})
