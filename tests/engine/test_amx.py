"""A llama.cpp whose AMX kernels crash: found out in a child process, never in this one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

import refspec
from refspec.errors import BackendError
from refspec.llama import amx, matmul_trial, trial

AMX = b"CPU : AVX512_VNNI = 1 | AMX_INT8 = 1 | REPACK = 1 | "


@pytest.fixture
def with_amx(monkeypatch, tmp_path):
    """A library that says it has AMX kernels, nothing known about them yet."""
    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(amx.api, "system_info", lambda: AMX)
    amx.repacking_works.cache_clear()
    yield tmp_path / "cache"
    amx.repacking_works.cache_clear()


def child(monkeypatch, code: int) -> list[list[str]]:
    """Stand-in for the child process: exits with `code`; what it was called with."""
    calls: list[list[str]] = []

    def run(arguments, **_options):
        calls.append(arguments)
        assert (Path(arguments[-1]) / amx.FILE).read_bytes()[:4] == b"GGUF", "the file is there while the child runs"
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(trial.subprocess, "run", run)
    return calls


def test_a_library_without_amx_is_not_tried(monkeypatch):
    monkeypatch.setattr(amx.api, "system_info", lambda: b"CPU : AVX2 = 1 | REPACK = 1 | ")
    monkeypatch.setattr(trial.subprocess, "run", lambda *a, **k: pytest.fail("a child was started"))
    amx.repacking_works.cache_clear()
    assert amx.repacking_works()
    amx.repacking_works.cache_clear()


@pytest.mark.parametrize("code, works", [(0, True), (-11, False), (1, False)])
def test_what_the_child_showed_is_kept_for_the_next_process(with_amx, monkeypatch, code, works):
    calls = child(monkeypatch, code)
    assert amx.repacking_works() is works and len(calls) == 1
    amx.repacking_works.cache_clear()  # as in the next process
    assert amx.repacking_works() is works and len(calls) == 1
    (file,) = with_amx.glob("amx-*.json")
    file.write_text("damaged")
    amx.repacking_works.cache_clear()
    assert amx.repacking_works() is works and len(calls) == 2


def test_a_child_that_hangs_or_cannot_start_counts_as_a_crash(with_amx, monkeypatch):
    for error in (subprocess.TimeoutExpired("python", 1), OSError("no process")):
        monkeypatch.setattr(trial.subprocess, "run", lambda *a, error=error, **k: (_ for _ in ()).throw(error))
        assert not amx.tried()


def test_where_it_crashes_weights_stay_as_stored_and_asking_for_more_is_one_line(with_amx, monkeypatch, tmp_path):
    child(monkeypatch, -11)
    monkeypatch.setattr(matmul_trial, "works", lambda: False)
    meta, tensors = tiny.target_parts()
    file = tiny.write(tmp_path / "target.gguf", "llama", meta, tensors, "Q8_0")
    asked: list[bool] = []
    original = amx.api.model_params
    monkeypatch.setattr(amx.api, "model_params", lambda **o: asked.append(o["repack"]) or original(**o))
    with refspec.load(file) as session:
        assert session.encode("abc", raw=True)
    assert asked == [False]
    with pytest.raises(BackendError, match="AMX"):
        refspec.load(file, matmul="repack")


def test_the_file_that_is_tried_runs_with_weights_as_stored(tmp_path):
    """So that only repacking can fail."""
    trial.write_model(tmp_path / amx.FILE, width=amx.WIDTH, outtype="q8_0")
    amx.run(tmp_path, repack=False)


@pytest.mark.skipif(b"AMX_INT8 = 1" in amx.api.system_info(), reason="this llama.cpp has AMX kernels, which may crash")
def test_the_real_child_survives_where_no_kernel_can_crash():
    assert amx.tried()
