"""`refspec chat`: turns, commands, what is kept, and its manners on a terminal and in a pipe."""

import json
import os
import select
import signal
import sys
import time

import cli_models as models
import pytest
from cli_models import call, tiny

EXACTLY = ("-t", 1, "-fa", "off", "--kv-type", "f32")
pty = pytest.importorskip("pty", reason="no terminals of this kind here")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return models.write_pair(tmp_path_factory.mktemp("chat"))


def chat(pair, lines, *options):
    result = call("chat", "-m", pair[0], "-d", pair[1], "-n", 12, *EXACTLY, *options, input="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    return result


def records(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("options", [(), ("--temp", 0.8, "--seed", 5), ("--no-spec",), ("--tree", "8:3:4")])
def test_turns_go_on_from_what_is_kept_and_answer_as_fresh_runs_do(pair, options):
    import refspec
    from refspec.reference.sampling import Sampler

    answers = records(chat(pair, ["one", "two", "three"], "--json", *options))
    assert [a["prompt"] for a in answers] == ["one", "two", "three"] and answers[0]["prompt_kept"] == 0
    sampler = Sampler(temperature=0.8 if "--temp" in options else 0.0)
    with refspec.load(pair[0], threads=1, flash_attn="off", kv_type="f32", tuned=False) as session:
        messages = []
        for i, answer in enumerate(answers):
            messages.append({"role": "user", "content": answer["prompt"]})
            fresh = session.generate(
                messages, max_tokens=12, sampler=sampler, seed=5 * bool(sampler.temperature) + i, fresh=True
            )
            assert "".join(event.text for event in fresh) == answer["text"]
            messages.append({"role": "assistant", "content": answer["text"]})


def test_a_repeated_question_is_held_already(pair):
    first, again = records(chat(pair, ["tell me", "/retry"], "--json"))
    assert again["text"] == first["text"] and again["prompt_kept"] >= first["prompt_tokens"] - 20 > 0


def test_answers_are_on_stdout_and_their_figures_on_stderr(pair):
    result = chat(pair, ["hello"])
    assert "tau" not in result.stdout and result.stdout.strip()
    assert "tokens per model call (tau)" in result.stderr and "of 512 positions" in result.stderr


def test_undo_retry_and_clear_edit_the_conversation(pair, tmp_path):
    file = tmp_path / "c.json"

    def left(*lines):
        chat(pair, [*lines, f"/save {file}"])
        return [m["content"] for m in json.loads(file.read_text()) if m["role"] != "assistant"]

    assert left("a", "b") == ["a", "b"]
    assert left("a", "b", "/undo") == ["a"]
    assert left("a", "/undo", "/undo") == []
    assert left("a", "b", "/retry") == ["a", "b"]
    assert left("a", "/clear", "b") == ["b"]
    assert left("/system Be kind.", "a", "/clear") == ["Be kind."]
    assert left("x \\", "y", "//z", "", "  ") == ["x \ny", "/z"]
    assert left(f"/load {file}", "more") == ["x \ny", "/z", "more"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nonsense", "/nonsense: no such command"),
        ("/undo", "nothing has been said"),
        ("/retry", "nothing has been said"),
        ("/save", "name a file"),
        ("/load /not/there", "No such file"),
        ("/load {bad}", "a conversation is a JSON list"),
        ("/load {broken}", "Expecting value"),
        ("/system", "system: none"),
        ("/stats", "no answer yet"),
        ("/help", "/undo"),
        ("x" * 2000, "tokens, the context 512; shorten it or raise n_ctx (-c); here: /undo takes back a turn"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(pair, tmp_path, line, words):
    (tmp_path / "bad.json").write_text('[{"role": "nobody", "content": 1}]')
    (tmp_path / "broken.json").write_text("no")
    line = line.format(bad=tmp_path / "bad.json", broken=tmp_path / "broken.json") if "{" in line else line
    result = chat(pair, [line, "still here"], "--json")
    assert words in result.stderr and [r["prompt"] for r in records(result)] == ["still here"]
    assert records(result)[0]["prompt_tokens"] == records(chat(pair, ["still here"], "--json"))[0]["prompt_tokens"]


def test_a_full_context_ends_the_answer_and_says_what_to_do(pair):
    result = chat(pair, ["a b c"], "-c", 64, "-n", 500)
    assert "the context is full: /undo takes back a turn, /clear begins anew, -c makes room" in result.stderr


def test_exit_leaves_and_so_does_the_end_of_the_input(pair):
    assert len(records(chat(pair, ["one", "/exit", "two"], "--json"))) == 1
    assert call("chat", "-m", pair[0], input="").exit_code == 0


def test_a_model_without_a_template_does_not_chat(tmp_path):
    target = tiny.target(tmp_path / "target.gguf")
    result = call("chat", "-m", target, "--no-spec", input="x\n")
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("refspec: ")
    assert "has no chat template; `refspec generate` takes plain text" in result.stderr and not result.stdout


def test_on_a_terminal_ctrl_c_ends_the_answer_and_ctrl_d_the_chat(pair):
    pid, terminal = pty.fork()
    if pid == 0:
        command = ["-m", "refspec", "chat", "-m", pair[0], "-d", pair[1], "-n", "9999"]
        command += ["-c", "12000", "-t", "1", "--draft-max", "2"]
        os.execv(sys.executable, [sys.executable, *command])

    seen = b""

    def until(words):
        nonlocal seen
        ends = time.monotonic() + 150  # a busy machine
        while words not in seen:
            assert time.monotonic() < ends, seen[-2000:]
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096)
        seen = seen[seen.index(words) + len(words) :]

    try:
        until(b"Ctrl-D leaves")
        until(b"> ")
        os.write(terminal, b"never ending\n")
        until(b"never ending\r\n")
        while len(seen) < 20:  # the answer has begun
            seen += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        until(b"interrupted")
        until(b"> ")
        time.sleep(0.5)  # Python looks for a signal before it waits for a key, not between the prompt and that
        os.write(terminal, b"\x03")  # at the prompt it only drops the line
        until(b"> ")
        os.write(terminal, b"/undo\n")
        until(b"taken back: never ending")
        until(b"> ")
        os.write(terminal, b"\x04")
        ended, status = 0, 0
        ends = time.monotonic() + 30
        while not ended and time.monotonic() < ends:
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)
        pid -= ended
        assert ended and os.waitstatus_to_exitcode(status) == 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
