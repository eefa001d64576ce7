"""Acceptance over forced text is the decode cycle's own; what is counted becomes ratios; a killed run goes on."""

import json

import pytest
from drift_toys import LAYERS, cli_models, drafter, target, toys

from refspec.errors import UsageError
from refspec.evaluate import acceptance, acceptance_report
from refspec.evaluate.bootstrap import resamples
from refspec.evaluate.conversation import encode, padded
from refspec.evaluate.drift import record as record_text
from refspec.evaluate.perturb import CHATML
from refspec.evaluate.prompts import Prompt, read
from refspec.reference.sampling import Sampler
from refspec.session import Session

PROMPT = [1, 2, 3, 0, 2]
call, one_line_error, result = cli_models.call, cli_models.one_line_error, cli_models.record


@pytest.mark.parametrize(("temperature", "end"), [(0.0, ()), (0.0, (3,)), (0.9, ()), (0.9, (3,))])
@pytest.mark.parametrize("n_ctx", [60, 14])
def test_one_pass_gives_what_the_cycle_counts_at_every_draft_length(temperature, end, n_ctx):
    lengths, sampler, accepted = (1, 2, 5, 16), Sampler(temperature=temperature), 0
    for seed in range(6):
        settings = {"salt": seed, "end": end, "n_ctx": n_ctx}
        text = record_text(target(**settings), PROMPT, LAYERS, max_tokens=20, sampler=sampler, seed=seed)
        found = acceptance.follow(drafter(seed), text, text.features, lengths)
        for k in lengths:
            run = Session(target(**settings), drafter(seed)).generate(
                tokens=PROMPT, max_tokens=20, sampler=sampler, seed=seed, draft_max=k
            )
            list(run)
            cycle, ours = run.statistics, found[k]
            assert (ours.generated_tokens, ours.verify_steps) == (cycle.generated_tokens, cycle.verify_steps)
            assert (ours.judged, ours.accepted) == (cycle.judged, cycle.accepted)
            accepted += sum(cycle.accepted)
    assert accepted > 0  # the comparison saw drafts that stood


def test_the_shortest_prompt_is_followed():
    text = record_text(target(), [1], LAYERS, max_tokens=6, sampler=Sampler(), seed=0)
    (found,) = acceptance.follow(drafter(1), text, text.features, [3]).values()
    run = Session(target(), drafter(1)).generate(tokens=[1], max_tokens=6, draft_max=3)
    list(run)
    assert (found.judged, found.verify_steps) == (run.statistics.judged, run.statistics.verify_steps)


class Noting(toys.ToyTarget):
    """A toy that remembers the texts it tokenized."""

    def tokenize(self, text, **how):
        self.said = text
        return super().tokenize(text, **how)


def chat_session(**settings):
    made = Noting(n_vocab=50, n_ctx=400, end=(49,), template=CHATML, **settings)
    made.metadata["tokenizer.ggml.bos_token_id"] = 0
    return Session(made, name="toy.gguf")


def counts(session, prompts, condition=("none", None), **options):
    settings = {"layers": LAYERS, "lengths": [2], "max_tokens": 8, "sampler": Sampler(), "seed": 0} | options
    return acceptance.measure(session, {"d": drafter(1, vocab=50)}, prompts, 0, condition, **settings)


def test_the_second_turn_follows_the_model_s_own_answer():
    session = chat_session()
    first, second = counts(session, [Prompt("chat", "hello there", ("and now?",))])
    answer = session.target.said.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
    text = record_text(
        session.target, encode(session, ["hello there"]), LAYERS, max_tokens=8, sampler=Sampler(), seed=0
    )
    own = b"".join(session.target.token_to_bytes(t) for t in text.tokens[text.n_prompt :] if t != 49).decode()
    assert answer == own and len(own) > 3
    assert second["prompt_tokens"] == len(encode(session, ["hello there", own, "and now?"])) > first["prompt_tokens"]
    assert first["tokens"] == 8 and first["counts"]["d"]["2"][0] <= 8
    assert len(counts(session, [Prompt("chat", "hello there", ("and now?",))], turns=1)) == 1


def test_a_padded_prompt_ends_with_its_own_words_and_fills_its_length():
    session = chat_session()
    prompts = [Prompt("chat", "What is it?"), Prompt("chat", "one two three"), Prompt("chat", "four five " * 40)]
    for length in (100, 200):
        tokens = padded(session, prompts, 0, length)
        assert 0.9 * length <= len(tokens) <= length
    words = "one two three\n\nfour five four"
    assert len(padded(session, prompts, 0, len(encode(session, [f"{words}\n\nWhat is it?"])))) == len(
        encode(session, [f"{words}\n\nWhat is it?"])
    )
    padded(session, prompts, 0, 100)
    assert session.target.said.endswith("\n\nWhat is it?<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(UsageError, match="--context 300: the other prompts hold too little"):
        padded(session, prompts[:2], 0, 300)


def test_only_prompts_that_fit_into_the_smallest_length_are_asked():
    session = chat_session()
    prompts = [Prompt("chat", "short"), Prompt("chat", "long " * 30), Prompt("chat", "brief")]
    assert acceptance.fitting(session, prompts, ["none", "raw"], 80) == [0, 2]


def row(family, tokens, one, other):
    """A prompt of one turn: verify steps of two drafters at draft length 1."""
    entry = {name: {"1": [steps, [steps], [tokens - steps]]} for name, steps in (("a", one), ("b", other))}
    return {"family": family, "id": "", "turns": [{"prompt_tokens": 5, "tokens": tokens, "counts": entry}]}


def test_tau_is_tokens_by_steps_and_the_ratio_is_paired():
    rows = [row("x", 10, 5, 10), row("x", 40, 20, 40), row("y", 30, 15, 30)]  # a always twice as good, texts differ
    about = {"a": {}, "b": {}}
    settings = {"draft_max": [1], "perturb": ["none"]}
    got = acceptance_report.record({("none", None): rows}, about, settings, "b", seed=0)
    families = got["conditions"][0]["families"]
    assert list(families) == ["x", "y", "all"]
    assert families["all"]["drafters"]["a"]["1"]["tau"] == {"mean": 2, "low": 2, "high": 2}
    assert families["all"]["ratio"] == {"a": {"1": {"mean": 2, "low": 2, "high": 2}}}
    assert families["y"]["ratio"]["a"]["1"] == {"mean": 2, "low": None, "high": None}  # one prompt has no interval
    assert families["x"]["drafters"]["a"]["1"]["accepted_by_position"] == [1]
    text = "\n".join(acceptance_report.table(got))
    assert "2.00±0.00" in text and "x: tau divided by that of b" in text
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_an_interval_of_a_ratio_is_that_of_the_resampled_ratio():
    rows = [row("x", 30, 10, 15), row("x", 30, 15, 15), row("x", 30, 12, 20), row("x", 30, 9, 10)]
    got = acceptance_report.record({("none", None): rows}, {"a": {}, "b": {}}, {"draft_max": [1]}, "b", seed=3)
    draws = resamples(4, 3)
    again = sorted((draws @ [15, 15, 20, 10]) / (draws @ [10, 15, 12, 9]))
    ratio = got["conditions"][0]["families"]["all"]["ratio"]["a"]["1"]
    assert ratio["mean"] == pytest.approx(60 / 46, abs=1e-6)
    low, high = ratio["low"] + 1e-6, ratio["high"] + 1e-6  # the record is rounded
    assert again[40] <= low <= again[60] + 2e-6 and again[-60] <= high <= again[-40] + 2e-6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    target_file, post = cli_models.write_pair(folder)
    pre = cli_models.tiny.drafter(folder / "plain.gguf", layers=[2, 3, 4])
    rows = [
        ("math", ["What is 2 + 2?"]),
        ("chat", ["Hello", "And you?"]),
        ("chat", ["Bye"]),
        ("chat", ["one too many " * 12]),
    ]
    lines = [json.dumps({"benchmark": b, "id": str(i), "turns": t}) + "\n" for i, (b, t) in enumerate(rows)]
    (folder / "p.jsonl").write_text("".join(lines))
    return {"target": target_file, "post": post, "pre": str(pre), "prompts": str(folder / "p.jsonl"), "folder": folder}


def bench(models, *more, drafters=("post", "pre")):
    named = [part for name in drafters for part in ("-d", models[name])]
    return call(
        "acceptance",
        "-m",
        models["target"],
        *named,
        "-t",
        "1",
        "-n",
        "10",
        "--prompts",
        models["prompts"],
        *more,
    )


def test_several_drafters_of_different_layers_share_one_text(models):
    got = result(bench(models, "--count", "2", "--draft-max", "2,4", "--reproducible", "f32", "--json"))
    (condition,) = got["conditions"]
    everything = condition["families"]["all"]
    assert (everything["prompts"], everything["turns"], everything["generated_tokens"]) == (3, 4, 40)
    assert got["baseline"] == "plain" and set(everything["ratio"]) == {"drafter"}
    for name in ("drafter", "plain"):
        alone = result(
            bench(
                models,
                "--count",
                "2",
                "--draft-max",
                "2",
                "--reproducible",
                "f32",
                "--json",
                drafters=[{"drafter": "post", "plain": "pre"}[name]],
            )
        )
        assert alone["conditions"][0]["families"]["all"]["drafters"][name]["2"] == everything["drafters"][name]["2"]
        assert len(everything["drafters"][name]["4"]["accepted_by_position"]) == 4
    steps = condition["by_prompt"]["verify_steps"]["plain"]["4"]
    assert (
        sum(steps) == everything["drafters"]["plain"]["4"]["verify_steps"]
        and sum(condition["by_prompt"]["tokens"]) == 40
    )


def test_the_reference_and_llama_cpp_count_the_same(models):
    llama, reference = (
        result(bench(models, "--reproducible", "f32", "--json", "--draft-max", "3", "--engine", engine))["conditions"]
        for engine in ("llama", "reference")
    )
    assert llama == reference


def test_the_cycle_of_a_session_counts_the_same(models):
    import refspec

    (condition,) = result(bench(models, "--reproducible", "f32", "--json", "--turns", "1", "--draft-max", "3"))[
        "conditions"
    ]
    with refspec.load(models["target"], models["post"], reproducible="f32", threads=1, adaptive=False) as session:
        steps = []
        for i, prompt in enumerate(read(models["prompts"])):
            run = session.generate(prompt.text, max_tokens=10, draft_max=3, seed=i)
            list(run)
            steps.append(run.statistics.verify_steps)
    assert condition["by_prompt"]["verify_steps"]["drafter"]["3"] == steps


def test_sampled_text_depends_on_the_seed_and_nothing_else(models):
    args = ("--temp", "0.9", "--json", "--reproducible", "f32")
    first, again, other = (result(bench(models, *args, "--seed", seed))["conditions"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_a_killed_run_goes_on_and_gives_the_record_of_an_unbroken_one(models, tmp_path, monkeypatch):
    whole = result(bench(models, "--json"))
    out = tmp_path / "deep" / "a.jsonl"
    measured, count = acceptance.measure, 0

    def dying(*args, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return measured(*args, **options)

    monkeypatch.setattr(acceptance, "measure", dying)
    assert bench(models, "--json", "-o", out).exit_code == 130
    with open(out, "ab") as file:
        file.write(b'{"key": "none/-/2", "val')  # a line the kill cut short
    monkeypatch.setattr(acceptance, "measure", measured)
    assert result(bench(models, "--json", "-o", out)) == whole
    assert len(out.read_text().splitlines()) == 5
    monkeypatch.setattr(acceptance, "measure", dying)  # would count 4: nothing is left to measure
    count = 2
    assert result(bench(models, "--json", "-o", out)) == whole


def test_a_changed_setting_or_file_is_refused_in_one_line(models, tmp_path):
    out = tmp_path / "a.jsonl"
    result(bench(models, "--json", "-o", out))
    assert "max_tokens = 10, now 12" in one_line_error(bench(models, "-n", "12", "-o", out), code=2)
    other = cli_models.tiny.drafter(tmp_path / "plain.gguf", layers=[2, 3, 4], seed=9)
    assert "files" in one_line_error(bench(models | {"pre": str(other)}, "-o", out), code=2)
    (tmp_path / "b.jsonl").write_text('{"format": "else"}\n')
    assert "not a record" in one_line_error(bench(models, "-o", tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").write_text("my notes")
    before = (tmp_path / "c.jsonl").read_text()
    one_line_error(bench(models, "-o", tmp_path / "c.jsonl"))
    assert (tmp_path / "c.jsonl").read_text() == before


def test_buckets_of_context_and_perturbations_are_conditions_of_one_record(models):
    got = result(bench(models, "--context", "60,90", "--perturb", "none", "--perturb", "raw", "--json"))
    assert [(c["perturb"], c["context"]) for c in got["conditions"]] == [
        ("none", 60),
        ("none", 90),
        ("raw", 60),
        ("raw", 90),
    ]
    for condition in got["conditions"]:
        (tokens,) = {tuple(map(len, condition["by_prompt"]["prompt_tokens"]))}
        assert set(tokens) == {1}  # first turns only
        assert all(
            0.9 * condition["context"] <= t[0] <= condition["context"] for t in condition["by_prompt"]["prompt_tokens"]
        )
    assert "no room for --context 505" in one_line_error(bench(models, "--context", "505"), code=2)
    assert "--context '12,x'" in one_line_error(bench(models, "--context", "12,x"), code=2)


def test_a_directory_or_an_anchor_runs_on_the_reference(models):
    got = result(bench(models, "--anchor", "2", "--json", "--draft-max", "3", "--reproducible", "f32"))
    assert [d["name"] for d in got["drafters"]] == ["drafter", "plain", "drafter+anchor2", "plain+anchor2"]
    assert got["drafters"][2]["anchor"] == 2 and got["baseline"] == "plain"
    assert "--anchor" in one_line_error(bench(models, "--anchor", "2", "--engine", "llama"), code=2)
    assert "no drafter of that name" in one_line_error(bench(models, "--baseline", "x"), code=2)


def test_turns_that_are_no_list_are_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"turns": "text"}\n')
    from refspec.errors import PromptError

    with pytest.raises(PromptError, match="line 1"):
        read(str(tmp_path / "p.jsonl"))
