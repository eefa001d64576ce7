"""`refspec generate` on tiny random models: what it prints, where, and how it fails."""

import os
import signal
from pathlib import Path

import pytest
from cli_models import call, one_line_error, record, spawn, tiny, toys, write_pair

import refspec
from refspec.errors import UsageError
from refspec.evaluate import report
from refspec.evaluate.speed import busy
from refspec.reference.metrics import Seconds, Statistics, Step
from refspec.session import Session

REPLACED = "\ufffd"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def on(pair):
    """Arguments that run the tiny pair on one thread."""
    return ["-m", pair[0], "-d", pair[1], "-t", "1"]


def test_text_goes_to_stdout_and_statistics_to_stderr(on):
    result = call("generate", *on, "-p", "hello", "-n", "12")
    assert result.exit_code == 0
    assert result.stdout.endswith("\n") and "tokens/s" not in result.stdout
    for words in (
        "tokens per model call (tau)",
        "guesses kept: first ",
        "tokens/s",
        "target ",
        "drafter ",
        "refspec itself",
    ):
        assert words in result.stderr


def test_json_is_one_object_with_every_promised_key(on):
    got = record(call("generate", *on, "-p", "hello", "-n", "20", "--no-adaptive", "--compare", "--json"))
    assert {
        "text", "prompt_tokens", "generated_tokens", "tau", "verify_steps", "accepted_by_position", "tokens_per_second",
        "seconds", "plain", "identical", "prompt_seconds", "stop", "speedup", "first_difference",
    } <= got.keys()  # fmt: skip
    assert set(got["seconds"]) == {"target", "drafter", "other"}
    assert got["generated_tokens"] == pytest.approx(got["tau"] * got["verify_steps"])
    assert len(got["accepted_by_position"]) == got["draft_max"] == 3
    assert got["identical"] is True and got["plain"]["text"] == got["text"]
    assert got["plain"]["tau"] == 1.0


@pytest.mark.parametrize("temperature", ["0", "0.9"])
@pytest.mark.parametrize("length", ["1", "5"])
def test_the_same_seed_gives_the_same_text_with_and_without_speculation(on, temperature, length):
    common = [
        "generate",
        *on,
        "-p",
        "hi",
        "-n",
        "40",
        "--reproducible",
        "f32",
        "--json",
        "--temp",
        temperature,
        "--seed",
        "11",
    ]
    fast, plain = record(call(*common, "--draft-max", length)), record(call(*common, "--no-spec"))
    assert fast["text"] == plain["text"] and fast["generated_tokens"] == plain["generated_tokens"]


def test_an_adaptive_run_goes_on_from_those_before(pair, on, tmp_path, monkeypatch):
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path))
    arguments = ["generate", *on, "-p", "hello", "-n", "30"]
    assert record(call(*arguments, "--no-adaptive", "--json"))["texts_before"] == 0 and not list(
        tmp_path.glob("window-*")
    ), "nothing is chosen"
    told = [call(*arguments, "--adaptive", *more) for more in ((), ("--no-tune",), ("--tree", "4"), (), ("-t", "2"))]
    notes = [[line for line in result.stderr.splitlines() if "before (" in line] for result in told]
    assert [len(lines) for lines in notes] == [
        0,
        0,
        0,
        1,
        0,
    ] and "chosen every step, as learned from 1 output before" in notes[3][0], "of the same kind and settings"
    assert len({result.stdout for result in told}) == 1 and len(list(tmp_path.glob("window-*"))) == 3
    with pytest.raises(KeyboardInterrupt), refspec.load(*pair, threads=1, adaptive=True, tuned=True) as session:
        for _ in session.generate("hello", max_tokens=20):
            pass
        assert session.policy is not None and session.policy.remembered >= 1, "a text of which nothing was drafted is none"
        raise KeyboardInterrupt
    assert record(call(*arguments, "--adaptive", "--json"))["texts_before"] >= 1


@pytest.mark.parametrize(
    ("options", "adaptive"),
    [((), True), (("--temp", "0.9"), True), (("--no-adaptive",), False), (("--draft-max", "2"), False),
     (("--draft-max", "2", "--adaptive"), True), (("--tree", "4"), False),
     (("--temp", "0.9", "--draft-sampling"), False), (("--no-spec",), False)],
)  # fmt: skip
def test_how_much_to_draft_is_chosen_where_nothing_says_it(on, options, adaptive):
    result = call("generate", *on, "-p", "hello", "-n", "9", *options, "--json")
    assert record(result)["adaptive"] is adaptive
    assert ("chosen every step" in result.stderr) == (adaptive and "--adaptive" not in options)


def test_the_measured_length_of_the_built_in_pair_is_fixed():
    assert record(call("generate", "-p", "hello", "-n", "4", "--json"))["adaptive"] is False


def test_compare_prints_the_plain_run_the_speedup_and_the_verdict(on):
    result = call("generate", *on, "-p", "hello", "-n", "12", "--compare", "--reproducible", "f32")
    assert result.exit_code == 0
    for words in ("speculative: 12 tokens", "plain: 12 tokens", "speedup: ", "identical: yes", "once for a forecast"):
        assert words in result.stderr


def counted(seconds):
    out = Statistics()
    for accepted in (2, 1, 0):
        out.add(Step(0, [1, 2], accepted, [0] * (accepted + 1), Seconds(seconds, 0, 0)))
    out.add(Step(0, [], 0, [0], Seconds(seconds, 0, 0)))
    return out


def test_a_run_in_words():
    s = counted(0.1)
    s.stop = "length"
    lines = "\n".join(report.describe(s, "speculative"))
    assert "1.75 tokens per model call (tau), 4 calls" in lines
    assert "guesses kept: first 67%, second 33%" in lines
    assert "tokens guessed per call: none once, 2 3 times" in lines
    assert f"stopped after {s.generated_tokens} tokens (-n)" in lines


def test_that_guessing_is_slower_is_said_unless_the_machine_was_busy():
    fast, plain = counted(0.2), counted(0.1)

    def said(**how):
        return "\n".join(report.describe_comparison(fast, plain, False, True, None, str, **how))

    assert "guessing was slower here (0.50x); try --adaptive, or --no-spec" in said()
    assert "guessing was slower here (0.50x); try --no-spec" in said(adaptive=True)
    doubt = busy(1.5, 2)
    assert doubt is not None and busy(0.1, 2) is None and busy(None, 2) is None
    lines = said(busy=doubt).splitlines()
    at = lines.index(doubt)
    assert "other processes used 1.5 of 2 cores" in doubt and lines[at + 1] == "speedup: 0.50x measured, no verdict"
    assert "slower" not in said(busy=doubt)


def test_compare_with_sampled_drafts_promises_the_law_only(on):
    result = call("generate", *on, "-p", "hello", "-n", "12", "--compare", "--draft-sampling", "--temp", "1.5")
    assert result.exit_code == 0
    assert "identical: yes" in result.stderr or "not promised" in result.stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "plain generation; -d FILE or --lookup makes guesses"),
        (["--no-spec"], "plain generation: --no-spec"),
        (["-d", "DRAFTER", "--draft-max", "0"], "plain generation: --draft-max is 0"),
        (["--compare"], "nothing to compare"),
    ],
)
def test_plain_decoding_is_announced(pair, arguments, says):
    arguments = [pair[1] if a == "DRAFTER" else a for a in arguments]
    result = call("generate", "-m", pair[0], "-t", "1", "-p", "x", "-n", "3", *arguments)
    assert result.exit_code == 0 and says in result.stderr
    assert "plain: 3 tokens" in result.stderr


def test_logit_bias_changes_the_law_and_speculation_follows_it(on):
    common = ["generate", *on, "-p", "hello", "-n", "20", "--raw", "--json", "--compare", "--reproducible", "f32"]
    free = record(call(*common))
    first = tiny.tokenizer()["tokenizer.ggml.tokens"].index(free["text"][0])
    bound = record(call(*common, "--logit-bias", f"{first}=-inf"))
    assert free["text"][0] not in bound["text"] and bound["identical"] is True
    forced = record(call(*common, "--logit-bias", f"{first}=1e6"))
    assert forced["text"] == free["text"][0] * 20 and forced["identical"] is True


def test_an_error_about_a_name_with_a_line_break_is_one_line():
    assert "no\\nmodel.gguf" in one_line_error(call("generate", "-m", "no\nmodel.gguf", "-p", "x"))


def test_zero_tokens_run_and_print_nothing(on):
    assert record(call("generate", *on, "-p", "x", "-n", "0", "--json"))["text"] == ""


def test_a_full_context_stops_cleanly_and_says_so(on):
    result = call("generate", *on, "-p", "hello", "-c", "40", "-n", "100", "--raw")
    assert result.exit_code == 0 and "the context is full" in result.stderr
    fast = record(
        call(
            "generate",
            *on,
            "-p",
            "hello",
            "-c",
            "40",
            "-n",
            "100",
            "--raw",
            "--json",
            "--compare",
            "--reproducible",
            "f32",
        )
    )
    assert fast["stop"] == fast["plain"]["stop"] == "context" and fast["identical"]
    assert fast["prompt_tokens"] + fast["generated_tokens"] == 41  # the last token is decided, never run


def test_prompts_from_file_and_stdin_are_the_prompt_from_p(on, tmp_path):
    (tmp_path / "prompt.txt").write_bytes("héllo\n".encode())
    common = ["generate", *on, "-n", "8", "--json"]
    texts = [
        record(call(*common, "-p", "héllo")),
        record(call(*common, "-f", tmp_path / "prompt.txt")),
        record(call(*common, input="héllo\n".encode())),
        record(call(*common, "-f", "-", input="héllo\r\n".encode())),
    ]
    assert len({(t["text"], t["prompt_tokens"]) for t in texts}) == 1


def test_the_chat_template_is_applied_unless_raw(on):
    counts = [
        record(call("generate", *on, "-p", "hello", "-n", "1", "--json", *more))["prompt_tokens"]
        for more in ([], ["--raw"], ["--system", "Be brief."])
    ]
    assert counts[1] < counts[0] < counts[2]


def test_a_model_without_a_template_takes_the_prompt_as_it_is_and_says_so(tmp_path):
    model = tiny.target(tmp_path / "t.gguf")
    result = call("generate", "-m", model, "-t", "1", "-p", "hello", "-n", "2")
    assert result.exit_code == 0 and "no chat template" in result.stderr


def test_input_that_cannot_be_used_is_one_line(pair, tmp_path):
    target, drafter = pair
    (tmp_path / "junk.gguf").write_bytes(b"not a model")
    (tmp_path / "cut.gguf").write_bytes(Path(target).read_bytes()[:4000])
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff")
    metadata, tensors = tiny.target_parts()
    broken = tiny.write(
        tmp_path / "broken.gguf",
        "llama",
        metadata | {"tokenizer.chat_template": "{{ raise_exception('no') }}"},
        tensors,
    )
    wide = tiny.drafter(tmp_path / "wide.gguf", layers=[1, 2, 30])
    for says, arguments, given in [
        ("missing.gguf", ["-m", tmp_path / "missing.gguf", "-p", "x"], None),
        ("junk.gguf", ["-m", tmp_path / "junk.gguf", "-p", "x"], None),
        ("cut.gguf", ["-m", tmp_path / "cut.gguf", "-p", "x"], None),
        ("is a drafter", ["-m", drafter, "-p", "x"], None),
        ("30", ["-m", target, "-d", wide, "-p", "x"], None),
        ("nothing.txt", ["-m", target, "-f", tmp_path / "nothing.txt"], None),
        ("bytes.txt: byte 0xff at offset 2", ["-m", target, "-f", tmp_path / "bytes.txt"], None),
        ("stdin: byte 0xff at offset 0", ["-m", target], b"\xff"),
        ("empty", ["-m", target], b""),
        ("empty", ["-m", target, "-p", " "], None),
        ("--raw", ["-m", broken, "-p", "x"], None),
        ("the context 16", ["-m", target, "-c", "16", "-p", "a long prompt " * 20], None),
    ]:
        assert says in one_line_error(call("generate", "-t", "1", *arguments, input=given)), says


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "-1"],
        ["--draft-max", "-1"],
        ["-t", "0"],
        ["-c", "-5"],
        ["--temp", "-0.5"],
        ["--temp", "nan"],
        ["--top-p", "0"],
        ["--min-p", "2"],
        ["--top-k", "-3"],
        ["-f", "a.txt"],
        ["--raw", "--system", "S"],
        ["--unknown"],
        ["-d", ""],
        ["-m", ""],
        ["--logit-bias", "5"],
        ["--logit-bias", "x=1"],
        ["--logit-bias", "5=nan"],
        ["--logit-bias", "5=1", "--logit-bias", "5=2"],
        ["--logit-bias", "99999=1"],
    ],
)
def test_a_wrong_argument_exits_with_2(pair, arguments):
    result = call("generate", "-m", pair[0], "-p", "x", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output and result.stdout == ""


class Interrupting(toys.ToyTarget):
    """Sends the process a Ctrl-C during its fifth decode."""

    def decode(self, tokens, *, logits="all"):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().decode(tokens, logits=logits)


def test_ctrl_c_keeps_what_was_printed_and_gives_the_statistics_so_far(monkeypatch):
    monkeypatch.setattr(refspec, "load", lambda *a, **k: Session(Interrupting(n_ctx=300, end=())))
    before = signal.getsignal(signal.SIGINT)
    result = call("generate", "-p", "hello", "--raw", "-n", "200")
    assert result.exit_code == 130
    assert len(result.stdout) > 1 and "; interrupted" in result.stderr and "plain: 4 tokens" in result.stderr
    assert signal.getsignal(signal.SIGINT) is before, "the handler is put back"


def test_ctrl_c_with_json_still_prints_the_object(monkeypatch):
    monkeypatch.setattr(refspec, "load", lambda *a, **k: Session(Interrupting(n_ctx=300, end=())))
    result = call("generate", "-p", "hello", "--raw", "-n", "200", "--json")
    assert result.exit_code == 130 and '"stop": "interrupted"' in result.stdout


def test_an_unexpected_failure_is_one_line_that_says_how_to_see_more(monkeypatch):
    def fail(*a, **k):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(refspec, "load", fail)
    monkeypatch.delenv("REFSPEC_DEBUG", raising=False)
    result = call("generate", "-p", "x")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("refspec: ZeroDivisionError: two lines") and "REFSPEC_DEBUG=1" in result.stderr
    monkeypatch.setenv("REFSPEC_DEBUG", "1")
    assert isinstance(call("generate", "-p", "x").exception, ZeroDivisionError)


def test_a_closed_pipe_ends_the_program_without_a_word(on):
    process = spawn("generate", *on, "-p", "hello", "-n", "300")
    process.stdout.close()
    process.stdin.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 141
    assert b"Traceback" not in errors and b"BrokenPipe" not in errors


def test_exit_codes_of_the_real_program(on):
    process = spawn("generate", *on, "-n", "5")
    out, errors = process.communicate("grüß dich".encode(), timeout=120)
    assert process.returncode == 0 and out.endswith(b"\n") and b"tau" in errors
    process = spawn("generate", "-m", "nowhere.gguf", "-p", "x")
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, b"") and errors.count(b"\n") == 1


def test_comparing_a_plain_run_gives_the_same_keys_as_any_comparison(pair):
    got = record(call("generate", "-m", pair[0], "-t", "1", "-p", "x", "-n", "3", "--compare", "--json"))
    assert got["identical"] is True and got["plain"]["text"] == got["text"] and got["speedup"] == 1.0


def test_zero_threads_for_the_drafter_are_refused_not_replaced(pair):
    with pytest.raises(UsageError, match="n_threads = 0"):
        refspec.load(*pair, threads=1, threads_draft=0)
