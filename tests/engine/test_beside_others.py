"""refspec beside threads, forks, signals and other users of llama.cpp: nothing is lost, nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny

import refspec
from refspec.errors import BackendError
from refspec.llama import matmul_hook, memory
from refspec.llama.target import LlamaTarget

HERE = Path(__file__).parent
PROMPT = [3, 4, 5, 6, 7, 8, 9]


def child(code: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with the toys on its path; a hang is a failure."""
    start = f"import sys; sys.path.insert(0, {str(HERE)!r}); import tiny\nfrom pathlib import Path\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )


def test_models_loaded_by_threads_at_once_all_get_the_kernels_and_the_same_bits(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    found: list[tuple[bool, np.ndarray]] = []
    errors: list[BaseException] = []
    gate = threading.Barrier(3)

    def work() -> None:
        try:
            gate.wait()
            for _ in range(8):
                target = LlamaTarget(file, n_ctx=64, n_threads=1)
                target.decode(PROMPT)
                found.append((target.model.packed is not None, target.logits(6).copy()))
                target.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 24
    assert {kernels for kernels, _ in found} == {matmul_hook.unavailable() is None}
    assert all(np.array_equal(logits, found[0][1]) for _, logits in found)


def test_what_the_program_prints_after_loading_in_threads_arrives(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf")
    done = child(
        """
import threading
from refspec.llama.target import LlamaTarget
def work():
    for _ in range(8): LlamaTarget(sys.argv[1], n_ctx=64, n_threads=1).close()
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
print("still here", file=sys.stderr)""",
        file,
    )
    assert done.returncode == 0 and done.stderr == "still here\n"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_a_model_loads_is_not_lost(tmp_path: Path) -> None:
    # the signal comes out of llama.cpp's own log callback, where an exception of Python would be dropped
    file = tiny.target(tmp_path / "target.gguf")
    done = child(
        """
import os, signal
from refspec.llama import api
from refspec.llama.target import LlamaTarget
count = 0
log = api._log
def noisy(level, text):
    global count
    count += 1
    if count == 5: os.kill(os.getpid(), signal.SIGINT)
callback = api.api.llama_log_callback(lambda level, text, _: noisy(level, text))
api.api.llama_log_set(callback, None)
try:
    LlamaTarget(sys.argv[1], n_ctx=64, n_threads=1)
    print("loaded", count)
except KeyboardInterrupt:
    print("interrupted")""",
        file,
    )
    assert (done.stdout, done.returncode) == ("interrupted\n", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("what", ["session.generate(tokens=[3, 4], max_tokens=3)", "refspec.load(sys.argv[1])"])
def test_a_process_forked_after_a_model_was_loaded_is_told(tmp_path: Path, what: str) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    done = child(
        f"""
import os, refspec
session = refspec.load(sys.argv[1], n_ctx=64, threads=2)
def run(): return list(session.generate(tokens=[3, 4, 5], max_tokens=4))
run()
parent, pid = os.getpid(), os.fork()
if pid == 0:
    try:
        [event for event in {what}]
        print("ran")
    except refspec.errors.BackendError as error:
        print(str(error).replace(str(parent), "PARENT").replace(str(os.getpid()), "CHILD"))
    session.close()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
run()
session.close()""",
        file,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("process CHILD was forked from PARENT") and "'spawn'" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_fork_before_the_first_model_is_harmless(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    done = child(
        """
import os, refspec
import refspec.llama.target
pid = os.fork()
with refspec.load(sys.argv[1], n_ctx=64, threads=2) as session:
    list(session.generate(tokens=[3, 4, 5], max_tokens=4))
if pid: assert os.waitpid(pid, 0)[1] == 0""",
        file,
    )
    assert done.returncode == 0, done.stderr


def test_a_model_of_another_user_in_the_process_changes_nothing(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")

    def tokens() -> list[int]:
        with refspec.load(file, n_ctx=64, threads=1, tuned=False) as session:
            generation = session.generate(tokens=PROMPT, max_tokens=20)
            list(generation)
            return generation.tokens

    alone = tokens()
    from llama_cpp import Llama

    plain = tiny.target(tmp_path / "plain.gguf", seed=5)  # F32: some builds crash on weights they repacked (amx.py)
    other = Llama(str(plain), n_ctx=64, n_threads=1, verbose=False)
    other.eval(PROMPT)
    assert tokens() == alone
    other.eval([5])
    other.close()
    assert tokens() == alone


def test_memory_is_flat_over_two_hundred_loads(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    done = child(
        """
from refspec.llama.target import LlamaTarget
def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4
def load():
    target = LlamaTarget(sys.argv[1], n_ctx=64, n_threads=1); target.decode([3, 4, 5]); target.close()
for _ in range(50): load()
before = rss()
for _ in range(200): load()
print(rss() - before)""",
        file,
    )
    if sys.platform.startswith("linux"):
        assert int(done.stdout) < 4096, "KiB more after 200 loads than after 50"


# ---- memory


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "outer/inner").mkdir(parents=True)
    (groups / "memory").mkdir()
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", groups)
    monkeypatch.setattr(memory, "_own", lambda: iter(()))
    assert memory.available() is None
    (proc / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:   4096 kB\n")
    assert memory.available() == 4 << 20
    (proc / "self/cgroup").write_text("0::/outer/inner\n")
    (groups / "outer/inner/memory.max").write_text("max\n")
    (groups / "outer/inner/memory.current").write_text("1000\n")
    (groups / "outer/memory.max").write_text("3000\n")
    (groups / "outer/memory.current").write_text("2500\n")
    (groups / "outer/memory.stat").write_text("anon 7\ninactive_file 400\n")
    assert memory.available() == 3000 - 2500 + 400
    # version 1, in a container that sees the host's path but not its group
    (proc / "self/cgroup").write_text("3:cpu:/x\n2:hugetlb,memory:/docker/abc\n")
    (groups / "memory/memory.limit_in_bytes").write_text("2000\n")
    (groups / "memory/memory.usage_in_bytes").write_text("1500\n")
    assert memory.available() == 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is read from /proc")
def test_under_a_limit_of_its_own_the_kernels_are_left_out_and_it_says_so(tmp_path: Path) -> None:
    done = child(
        """
import resource
from refspec.llama import memory
from refspec.llama.target import LlamaTarget
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
print(0 <= memory.available() <= 64 << 20)"""
    )
    assert done.stdout == "True\n", done.stderr


def test_an_error_names_both_processes() -> None:
    from refspec.llama import api

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "forked_from", 77)
        with pytest.raises(BackendError, match=f"process {os.getpid()} was forked from 77"):
            api.check_process()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- one session, two threads


def test_a_session_takes_one_caller_at_a_time(tmp_path: Path) -> None:
    target, drafter = tiny.target(tmp_path / "t.gguf", quantize="Q8_0"), tiny.drafter(tmp_path / "d.gguf")
    with refspec.load(target, drafter, n_ctx=512, threads=1, tuned=False, draft_max=3) as session:
        refused: list[str] = []
        finished: list[int] = []
        gate = threading.Barrier(3)

        def work() -> None:
            gate.wait()
            for _ in range(30):
                try:
                    generation = session.generate(tokens=PROMPT, max_tokens=30)
                    for _event in generation:
                        pass
                    finished.append(len(generation.tokens))
                except refspec.UsageError as error:
                    refused.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(finished) + len(refused) == 90 and refused
        assert all("another thread is using this session" in e or "ended by a later one" in e for e in refused)
        # nothing is left behind: alone, it generates as ever
        list(generation := session.generate(tokens=PROMPT, max_tokens=30))
        assert generation.tokens


def test_stop_from_another_thread_and_close_while_it_runs(tmp_path: Path) -> None:
    session = refspec.load(tiny.target(tmp_path / "t.gguf"), n_ctx=512, threads=1, tuned=False)
    session.target.end_tokens = frozenset()
    generation = session.generate(tokens=PROMPT, max_tokens=400)
    next(generation)
    stopper = threading.Thread(target=generation.stop)
    stopper.start()
    stopper.join()
    assert list(generation) == [] and generation.statistics.stop == "interrupted"
    generation = session.generate(tokens=PROMPT, max_tokens=400)
    next(generation)
    threads = [threading.Thread(target=session.close) for _ in range(2)]
    for thread in threads:
        thread.start()
    with pytest.raises((BackendError, refspec.UsageError)):
        while True:
            next(generation)
    for thread in threads:
        thread.join()


# ---- settings that a sound file cannot bear


def test_more_sequences_than_positions_are_refused(tmp_path: Path) -> None:
    pair = tiny.target(tmp_path / "t.gguf"), tiny.drafter(tmp_path / "d.gguf")
    with pytest.raises(refspec.UsageError, match=r"n_ctx = 8 \(-c\) is too small for 12 sequences"):
        refspec.load(*pair, tree="12:3", n_ctx=8)
    with refspec.load(*pair, tree="12:3", n_ctx=12, threads=1) as session:
        list(session.generate(tokens=[3, 4], max_tokens=20))


def test_a_context_beyond_memory_is_refused_with_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refspec.gguf.io import read_gguf_header
    from refspec.llama import context

    file = tiny.target(tmp_path / "t.gguf")
    each = 2 * tiny.N_LAYER * tiny.N_KV * tiny.HEAD  # keys and values
    assert memory.position_bytes(read_gguf_header(file), "f16") == 2 * each
    hybrid = read_gguf_header(tiny.target(tmp_path / "h.gguf", "lfm2"))
    assert memory.position_bytes(hybrid, "f32") == 4 * each * 3 // 5, "two of its five layers keep a state instead"
    monkeypatch.setattr(context, "available", lambda: 1 << 20)
    with pytest.raises(
        refspec.UsageError, match=rf"context of 100000 tokens takes .* give less than {(1 << 20) // 320}"
    ):
        LlamaTarget(file, n_ctx=100000)
    LlamaTarget(file, n_ctx=1000).close()


def test_a_context_longer_than_the_model_was_trained_for_is_noted(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "t.gguf")
    with refspec.load(file, n_ctx=513) as session:
        assert "the context of 513 tokens is longer than the 512 the model was trained for" in session.notes
    with refspec.load(file, n_ctx=512) as session:
        assert session.notes == []


# ---- a file that nobody has loaded yet


def test_an_unknown_file_is_tried_in_a_process_of_its_own_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refspec.llama import first_load

    monkeypatch.delenv("REFSPEC_FIRST_LOAD")
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "cache"))
    pair = tiny.target(tmp_path / "t.gguf"), tiny.drafter(tmp_path / "d.gguf")
    tried: list[list[str]] = []
    inner = first_load._tried
    monkeypatch.setattr(first_load, "_tried", lambda files: tried.append(files) or inner(files))
    for _ in range(2):
        refspec.load(*pair, n_ctx=64, threads=1).close()
    refspec.load(n_ctx=64, threads=1).close()
    assert tried == [[str(file) for file in pair]]
    other = tiny.target(tmp_path / "other.gguf", "qwen3")
    for answer, says in ((-11, r"ended the process \(code -11\)"), (first_load.HUNG, "did not end")):
        monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / str(answer)))
        monkeypatch.setattr(first_load, "_tried", lambda files, answer=answer: answer)
        with pytest.raises(refspec.CheckpointError, match=says):
            refspec.load(other, n_ctx=64, threads=1)


@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_what_the_child_does_is_what_the_parent_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    from refspec.llama import first_load

    does = {"hangs": "time.sleep(99)", "ends": "os._exit(7)"}[how]
    (tmp_path / "sitecustomize.py").write_text(f"import time, os\n{does}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(first_load, "PATIENCE", 0.5)
    file = tmp_path / "x"
    file.write_bytes(b"x")
    assert first_load._tried([str(file)]) == {"hangs": first_load.HUNG, "ends": 7}[how]
