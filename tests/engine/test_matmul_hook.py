"""refspec's kernels multiply inside llama.cpp: the same function, and only with the weights of registered models."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

import refspec
from refspec import native
from refspec.errors import BackendError, UsageError
from refspec.gguf.io import read_gguf_header
from refspec.gguf.recast import recast
from refspec.llama import api, matmul_hook, matmul_trial, trial, weights
from refspec.llama.amx import repacking_works
from refspec.llama.target import LlamaTarget

pytestmark = pytest.mark.skipif(
    matmul_hook.unavailable() is not None, reason=f"llama.cpp multiplies by itself here: {matmul_hook.unavailable()}"
)
PROMPT = np.random.default_rng(3).integers(3, tiny.V, 40).tolist()


def logits_of(target: LlamaTarget, tokens: list[int]) -> np.ndarray:
    target.reset()
    target.decode(tokens, logits="all")
    return np.stack([target.logits(i).copy() for i in range(len(tokens))])


@pytest.mark.parametrize("quantize", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16"])
def test_the_logits_are_those_of_llama_cpp_but_for_rounding(tmp_path: Path, quantize: str) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize=quantize)
    ours, theirs = (LlamaTarget(file, n_ctx=128, n_threads=2, panels=on) for on in (True, False))
    assert ours.model.packed is not None and theirs.model.packed is None
    a, b = logits_of(ours, PROMPT), logits_of(theirs, PROMPT)
    assert ours.model.packed.calls > 0
    if quantize in ("Q4_1", "Q5_1"):
        # llama.cpp rounds the sums of the inputs that it multiplies their least values with to float16, refspec does
        # not: both are held against the same weights in F32
        exact = LlamaTarget(recast(file, "f32"), n_ctx=128, n_threads=2)
        truth = logits_of(exact, PROMPT)
        exact.close()
        mine, other = (float(np.sqrt(((x - truth) ** 2).mean())) for x in (a, b))
        assert mine <= 1.2 * other
    else:  # activations are rounded to 8 bits at other places once a last bit differs
        size = {"Q8_0": 0.02, "F16": 2e-3}.get(quantize, 0.04)
        assert np.abs(a - b).max() <= size * np.abs(b).max()
    before = ours.model.packed.calls
    ours.model.packed.switch(False)
    assert np.array_equal(
        logits_of(ours, PROMPT),
        logits_of(LlamaTarget(file, n_ctx=128, n_threads=2, panels=False, repack=False), PROMPT),
    )
    assert ours.model.packed.calls == before
    ours.model.packed.switch(True)
    assert np.array_equal(logits_of(ours, PROMPT), a)
    ours.close()
    theirs.close()


def test_types_that_are_not_taken_stay_with_llama_cpp(tmp_path: Path) -> None:
    target = LlamaTarget(tiny.target(tmp_path / "target.gguf"), n_ctx=128)
    assert target.model.packed is None and target.model.note is None  # F32
    target.close()


def test_models_of_one_file_are_told_apart_and_their_places_used_again(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    first, second = (LlamaTarget(file, n_ctx=128, n_threads=2) for _ in range(2))
    one, two = first.model.packed, second.model.packed
    assert one and two and one.index != two.index
    a = logits_of(first, PROMPT)
    assert one.calls > 0 and two.calls == 0
    first.close()
    again = LlamaTarget(file, n_ctx=128, n_threads=1)
    assert again.model.packed and again.model.packed.index == one.index
    assert np.array_equal(logits_of(again, PROMPT), a), "the number of threads changes nothing"
    assert np.array_equal(logits_of(second, PROMPT), a)
    again.close()
    second.close()


@pytest.mark.parametrize("quantize", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16"])
def test_exact_output_is_kept(tmp_path: Path, quantize: str) -> None:
    pair = (
        tiny.target(tmp_path / "target.gguf", quantize=quantize),
        tiny.drafter(tmp_path / "drafter.gguf", quantize=quantize),
    )
    with refspec.load(*pair, n_ctx=128, threads=2, reproducible="exact", adaptive=False) as session:
        assert session.target.model.packed is not None and session.batch_invariant
        outputs = []
        for options in ({"speculate": False}, {"draft_max": 3}, {"draft_max": 6}):
            generation = session.generate(tokens=PROMPT, max_tokens=80, **options)
            for _ in generation:
                pass
            outputs.append(generation.tokens)
    assert outputs[0] == outputs[1] == outputs[2]


def test_what_excludes_each_other_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    with pytest.raises(UsageError, match="matmul = refspec excludes gpu_layers = 1"):
        refspec.load(file, matmul="refspec", gpu_layers=1)
    with pytest.raises(BackendError, match="no matrices for refspec's kernels"):
        refspec.load(tiny.target(tmp_path / "f32.gguf"), matmul="refspec")
    with refspec.load(file, matmul="stored") as session:
        assert session.target.model.packed is None and not session.target.model.repack
    with refspec.load(file, matmul="refspec") as session:
        assert session.target.model.packed is not None
    monkeypatch.setattr(matmul_hook, "_why_not", "the moon is full")
    with pytest.raises(BackendError, match="cannot multiply here: the moon is full"):
        refspec.load(file, matmul="refspec")
    with refspec.load(file) as session:
        assert session.target.model.packed is None


def test_without_memory_for_them_llama_cpp_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "available", lambda: 1000)
    target = LlamaTarget(tiny.target(tmp_path / "target.gguf", quantize="Q4_0"), n_ctx=64)
    assert target.model.packed is None and target.model.repack == repacking_works()
    assert "memory has no room for refspec's fast kernels" in (target.model.note or "")
    logits_of(target, PROMPT[:5])
    target.close()


def test_more_models_than_there_are_places_for(tmp_path: Path) -> None:
    ffi, announce = native.ffi, native.lib.rs_matmul_announce
    one = [ffi.new(f"{kind}[]", [value]) for kind, value in (("int32_t", 8), ("size_t", 16), ("size_t", 32))]
    held = []
    while (index := announce(ffi.new("uintptr_t[]", [4096]), *one, 1)) >= 0:
        held.append(index)
    assert len(held) > 64
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    target = LlamaTarget(file, n_ctx=64)
    try:
        assert target.model.packed is None and target.model.repack == repacking_works(), "as without the kernels"
        assert "no place for its weights" in (target.model.note or "")
    finally:
        target.close()
        for index in held:
            native.lib.rs_matmul_forget(index)
    target = LlamaTarget(file, n_ctx=64)
    assert target.model.packed is not None
    target.close()


def test_seventy_models_at_once_keep_their_bits(tmp_path: Path) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    models = [LlamaTarget(file, n_ctx=64, n_threads=1) for _ in range(70)]
    assert all(m.model.packed for m in models)
    assert np.array_equal(logits_of(models[0], PROMPT), logits_of(models[-1], PROMPT))
    assert models[-1].model.packed and models[-1].model.packed.calls > 0
    for model in models:
        model.close()


def test_weights_are_found_without_a_mapped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    mapped = LlamaTarget(file, n_ctx=64, n_threads=1)
    expected = logits_of(mapped, PROMPT)
    mapped.close()
    made = api.model_params

    def without_mmap(**settings: Any) -> Any:
        params, keep = made(**settings)
        params.use_mmap = False
        return params, keep

    monkeypatch.setattr(api, "model_params", without_mmap)
    target = LlamaTarget(file, n_ctx=64, n_threads=1)
    assert np.array_equal(logits_of(target, PROMPT), expected)
    assert target.model.packed and target.model.packed.calls > 0
    target.close()


def test_only_what_is_in_memory_as_in_the_file_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    info = read_gguf_header(file)
    changed = "blk.0.ffn_up.weight"
    seen = matmul_hook._as_in_file
    monkeypatch.setattr(matmul_hook, "_as_in_file", lambda f, t, at: t.name != changed and seen(f, t, at))
    target = LlamaTarget(file, n_ctx=64, n_threads=1)
    assert target.model.packed
    assert target.model.packed.nbytes == sum(t.nbytes for t in matmul_hook.matrices(info) if t.name != changed)
    target.close()
    model = LlamaTarget(file, n_ctx=64, n_threads=1, panels=False)
    (address,) = matmul_hook._places(model.model.handle)[changed]
    with open(file, "rb") as opened:
        assert seen(opened, info.tensors[changed], address)
        assert not seen(opened, info.tensors[changed], address + 34)
    model.close()


@pytest.mark.parametrize(
    ("before", "environment", "why"),
    [
        ("import llama_cpp", {}, "llama_cpp was imported before refspec loaded it; load a model with refspec first"),
        ("", {"REFSPEC_BACKEND": "numpy"}, "refspec's C module is not in use"),
    ],
)
def test_why_not_is_said_and_everything_works(
    tmp_path: Path, before: str, environment: dict[str, str], why: str
) -> None:
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    code = f"""{before}
import refspec
from refspec.llama import weights
with refspec.load({str(file)!r}) as session:
    assert session.target.model.packed is None
    for _ in session.generate(tokens=[3, 4, 5], max_tokens=5): pass
print(weights.why_not())"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == why


def test_the_function_handed_over_is_llama_cpps() -> None:
    ours = native.lib.rs_matmul_entry()
    theirs = api._dll[matmul_hook.NAME]
    assert ctypes.cast(theirs, ctypes.c_void_p).value not in (0, None, ours)


@pytest.mark.parametrize(("code", "works"), [(0, True), (1, False), (-11, False)])
def test_a_trial_in_a_child_process_decides_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, works: bool
) -> None:
    calls: list[list[str]] = []

    def run(arguments: list[str], **_options: object) -> SimpleNamespace:
        calls.append(arguments)
        assert {file.name for file in Path(arguments[-1]).iterdir()} == {"q8_0.gguf", "f32.gguf"}
        return SimpleNamespace(returncode=code)

    monkeypatch.setenv("REFSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial.subprocess, "run", run)
    for _ in range(2):
        matmul_trial.works.cache_clear()  # as in the next process
        assert matmul_trial.works() is works and len(calls) == 1
    assert weights.why_not() == (None if works else "a trial of them failed with this llama.cpp")
    file = tiny.target(tmp_path / "target.gguf", quantize="Q8_0")
    target = LlamaTarget(file, n_ctx=64)
    assert (target.model.packed is not None) is works
    target.close()
    matmul_trial.works.cache_clear()


def test_the_trial_itself_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul_trial.write_models(tmp_path)
    matmul_trial.run(tmp_path)
    assert (tmp_path / "q4_k.gguf").stat().st_size < (tmp_path / "f32.gguf").stat().st_size / 3
    inner = matmul_trial.logits_of
    wrong = lambda file, ours: inner(file, ours=ours) * (1.2 if ours else 1.0)  # noqa: E731
    monkeypatch.setattr(matmul_trial, "logits_of", wrong)
    with pytest.raises(AssertionError):
        matmul_trial.run(tmp_path)
    monkeypatch.setattr(matmul_trial, "logits_of", inner)
    monkeypatch.setattr(matmul_hook.PackedMatrices, "calls", 0)
    with pytest.raises(AssertionError):
        matmul_trial.run(tmp_path)


@pytest.mark.parametrize("quantize", ["Q8_0", "Q4_1", "F16"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_token_has_the_same_bits_in_every_batch(tmp_path: Path, quantize: str, n_threads: int) -> None:
    """Weights and attention are multiplied here, nothing else mixes tokens: plain and speculative text is the same."""
    file = tiny.target(tmp_path / "target.gguf", quantize=quantize)
    tokens = np.random.default_rng(5).integers(3, tiny.V, 90).tolist()
    target = LlamaTarget(file, n_ctx=128, n_threads=n_threads)
    whole = logits_of(target, tokens)
    for step in (1, 2, 3, 7):
        target.reset()
        target.decode(tokens[:50], logits="none")
        for at in range(50, 90, step):
            rows = target.decode(tokens[at : at + step], logits="all")
            assert np.array_equal(np.stack([target.logits(i) for i in range(rows)]), whole[at : at + rows])
    target.close()


def test_attention_can_be_left_to_llama_cpp(tmp_path: Path) -> None:
    target = LlamaTarget(tiny.target(tmp_path / "target.gguf", quantize="F16"), n_ctx=128, n_threads=1)
    assert target.model.packed is not None
    ours = logits_of(target, PROMPT)
    target.model.packed.switch(False)
    theirs = logits_of(target, PROMPT)
    target.model.packed.switch(True)
    assert np.abs(ours - theirs).max() <= 2e-3 * np.abs(theirs).max() and not np.array_equal(ours, theirs)
    assert np.array_equal(logits_of(target, PROMPT), ours)
    target.close()
