"""Faults at the points where a program is caught by them: the table in docs/guarantees.md, a test for each row."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refspec import embedded
from refspec.errors import CheckpointError
from refspec.evaluate.journal import Journal
from refspec.gguf.complete import complete
from refspec.gguf.io import read_gguf_header
from refspec.gguf.recast import cache_directory, recast
from refspec.tuning import store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and file systems of POSIX")
ENGLISH = {"LC_ALL": "C", "GGML_NO_BACKTRACE": "1"}
# `refspec ARGUMENTS`, with DO done when half of the output file is written
HALFWAY = """
import os, signal, sys
from refspec.gguf.blocks import Blocks
wrote = Blocks.tofile
seen = 0
def tofile(self, file):
    global seen
    seen += 1
    wrote(self, file)
    if seen == 5:
        file.flush()
        {do}
Blocks.tofile = tofile
from refspec.cli import main
main(sys.argv[1:])
"""


def run(*arguments: object, do: str | None = None, env: dict[str, str] | None = None, **how: Any) -> Any:
    start = [sys.executable, "-m", "refspec"] if do is None else [sys.executable, "-c", HALFWAY.format(do=do)]
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    environment = {**os.environ, **ENGLISH, **(env or {})}
    return subprocess.run([*start, *map(str, arguments)], text=True, env=environment, timeout=120, check=False, **how)


def one_line(done: Any) -> str:
    """The last line on stderr; no traceback is before it."""
    assert "Traceback" not in done.stderr and "(unexpected" not in done.stderr
    return str(done.stderr.strip().splitlines()[-1])


@pytest.fixture
def recast_to(tmp_path: Path) -> list[object]:
    """A command that writes a file of 30 tensors and more."""
    source = embedded.path(embedded.TARGET)
    return ["recast", "--outtype", "f16", source, "-o", tmp_path / "out.gguf"]


# ---- the end of the process while a file is written


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
                                 (signal.SIGHUP, 143, "terminated")],
)  # fmt: skip
def test_a_signal_leaves_nothing_and_says_so(
    tmp_path: Path, recast_to: list[object], number: signal.Signals, code: int, says: str
) -> None:
    done = run(*recast_to, do=f"os.kill(os.getpid(), {int(number)})")
    assert done.returncode == code and one_line(done) == f"refspec: {says}"
    assert list(tmp_path.iterdir()) == []


def test_after_kill_9_there_is_no_file_and_the_next_run_cleans_up(tmp_path: Path, recast_to: list[object]) -> None:
    done = run(*recast_to, do="os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert [file.name.endswith(".partial") for file in left] == [True]
    other = tmp_path / "out.gguf.1.partial"
    with complete(tmp_path / "out.gguf") as partial:  # another process that is writing it now
        other = partial
        assert run(*recast_to).returncode == 0
        assert other.exists() and not left[0].exists()
        partial.write_bytes((tmp_path / "out.gguf").read_bytes())
    assert [file.name for file in tmp_path.iterdir()] == ["out.gguf"]
    read_gguf_header(tmp_path / "out.gguf")


@pytest.mark.parametrize("do", ["raise OSError(28, 'No space left on device')", "raise MemoryError"])
def test_a_full_disk_or_memory_leaves_nothing(tmp_path: Path, recast_to: list[object], do: str) -> None:
    done = run(*recast_to, do=do)
    assert done.returncode == 1 and any(w in one_line(done) for w in ("No space left on device", "out of memory"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on the size of a file")
def test_a_real_limit_on_the_size_of_a_file_is_said(tmp_path: Path, recast_to: list[object]) -> None:
    import resource

    done = run(*recast_to, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    assert done.returncode == 1 and "cannot be written (File too large)" in one_line(done)
    assert list(tmp_path.iterdir()) == []


# ---- streams

GENERATE = ["generate", "-n", "24", "-t", "1", "-p", "Why is the sky blue?"]


def test_a_reader_that_has_gone_ends_it_in_silence() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(*GENERATE, stdout=write)
    os.close(write)
    assert done.returncode == 141 and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = run(*GENERATE, stdout=full)
    assert done.returncode == 1 and one_line(done) == "refspec: the output: No space left on device"


def test_a_closed_stdin_is_a_usage_error() -> None:
    done = run("generate", "-t", "1", preexec_fn=lambda: os.close(0), stdin=None)
    assert done.returncode in (1, 2) and "prompt" in one_line(done)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_prompt_without_end_is_refused() -> None:
    done = run("generate", "-f", "/dev/zero")
    assert done.returncode == 1 and "more than 64 MiB" in one_line(done)


def test_numbers_beyond_all_are_usage_errors() -> None:
    for option in ("-n", "-c", "-t", "-ngl"):
        done = run("generate", "-p", "x", option, "99999999999999999999")
        assert done.returncode == 2 and "range" in one_line(done)


# ---- the cache


def test_without_home_or_with_an_empty_setting_nothing_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFSPEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory().is_relative_to(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory().is_relative_to(tmp_path)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert store.find(embedded.path(embedded.TARGET), None) == store.NOT_TUNED


@pytest.mark.parametrize("cache", ["/dev/null/cache", "FILE/cache"])
def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, cache: str) -> None:
    (tmp_path / "FILE").write_text("")
    place = cache.replace("FILE", str(tmp_path / "FILE"))
    done = run(*GENERATE, env={"REFSPEC_CACHE": place})
    assert done.returncode == 0 and done.stdout.strip()
    done = run(*GENERATE, "--reproducible", "f32", env={"REFSPEC_CACHE": place})
    assert done.returncode == 2 and "REFSPEC_CACHE" in one_line(done)


def test_a_damaged_recast_in_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path))
    made = recast(embedded.path(embedded.DRAFTER), "f32")
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) // 2])
    assert recast(embedded.path(embedded.DRAFTER), "f32") == made and made.read_bytes() == whole


RECORD = {
    "chosen": {"threads": 1, "threads_batch": 1, "flash_attn": "on", "kv_type": "f16", "matmul": "auto"},
    "costs": {"target": {"1": 0.001, "2": 0.0012}, "switch": 0.0, "draft": 1e-4, "feed": 1e-4, "after": 128},
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"chosen": {"threads": "1"}}, {"chosen": {"threads": 10**9}}, {"chosen": {"moon": 1}}, {"chosen": []},
        {"chosen": {"matmul": []}}, {"costs": {}}, {"costs": {"target": {"1": "x"}}}, {"costs": None},
        {"costs": RECORD["costs"] | {"target": {"99999999999": 1.0}}}, {"costs": RECORD["costs"] | {"draft": 1e300}},
        {"identity": 3},
    ],
)  # fmt: skip
def test_a_damaged_record_of_tune_is_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path))
    model = embedded.path(embedded.TARGET)
    file = store.save(model, None, dict(RECORD))
    assert store.find(model, None).record
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    assert store.find(model, None) == store.Found(None, f"{file} is damaged; run `refspec tune` again")


def test_two_processes_with_one_cache_do_not_disturb_each_other(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "refspec", *GENERATE, "--reproducible", "f32"]
    environment = {**os.environ, **ENGLISH, "REFSPEC_CACHE": str(tmp_path)}
    both = [subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert outputs[0] == outputs[1] and all(process.returncode == 0 for process in both)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("row", ["3", "{}", '{"key": 1}', '{"key": "a", "value": 3}'])
def test_a_damaged_line_of_a_record_is_said(tmp_path: Path, row: str) -> None:
    path = tmp_path / "record.jsonl"
    with Journal(str(path), "kind", {}) as journal:
        journal.add("a", {"x": 1})
    with open(path, "a") as file:
        file.write(row + "\n")
    with pytest.raises(CheckpointError, match="a line of it is damaged"):
        Journal(str(path), "kind", {})


# ---- checkpoints


def test_a_template_that_links_outside_its_checkpoint_is_refused(tmp_path: Path) -> None:
    from refspec.convert.tokenizer import chat_template

    secret = tmp_path / "secret"
    secret.write_text("the password")
    model = tmp_path / "model"
    model.mkdir()
    (model / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside its checkpoint"):
        chat_template(model)
    snapshot = tmp_path / "snapshots" / "abc"  # as the Hugging Face hub keeps models
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "f00").write_text("{{ x }}")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/f00")
    assert chat_template(snapshot) == "{{ x }}"


# ---- the table


def test_every_row_of_the_table_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs" / "guarantees.md").read_text("utf-8").split("## Faults")[1].split("## Where")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    written = "".join(file.read_text("utf-8") for file in (root / "tests").rglob("test_*.py"))
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(\w+)`", row.split("|")[3])
        assert named and all(f"def test_{name}(" in written for name in named), row
