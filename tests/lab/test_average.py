"""The mean of a target's weights before and after a short training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the `train` extra (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
load_file = pytest.importorskip("safetensors.numpy", reason="training needs the `train` extra (safetensors)").load_file

from lab_command import call  # noqa: E402
from toy_training import CONFIG  # noqa: E402

from lab.average import average  # noqa: E402
from refspec.errors import CheckpointError, UsageError  # noqa: E402
from refspec.gguf.io import read_gguf_header  # noqa: E402
from refspec.train.data import prepare  # noqa: E402
from refspec.train.target import load_target, train_target  # noqa: E402


@pytest.fixture(scope="module")
def tuned(data, target_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    train_target(data, out, config=CONFIG, steps=2, seed=4, threads=1, init=target_run / "hf")
    return out


def weights(run):
    return load_file(str(run / "hf" / "model.safetensors"))


def test_every_weight_lies_where_the_share_says(target_run, tuned, tmp_path):
    run = call("average", target_run, tuned, "-o", tmp_path / "m", "--share", "0.25")
    assert run.exit_code == 0, run.output
    before, after, made = weights(target_run), weights(tuned), weights(tmp_path / "m")
    assert made.keys() == before.keys() and any((before[name] != after[name]).any() for name in made)
    for name, w in made.items():
        assert w.dtype == np.float32
        np.testing.assert_allclose(w, 0.75 * before[name] + 0.25 * after[name], rtol=1e-6, atol=1e-8)
    assert load_target(tmp_path / "m").config == load_target(tmp_path / "m" / "hf").config == CONFIG
    assert read_gguf_header(tmp_path / "m" / "target.gguf").metadata["general.architecture"] == "llama"


def test_the_ends_are_the_two(target_run, tuned, tmp_path):
    for share, run in ((0.0, target_run), (1.0, tuned)):
        average(target_run / "hf", tuned, tmp_path / str(share), share=share)
        there = weights(run)
        assert all((w == there[name]).all() for name, w in weights(tmp_path / str(share)).items())


def test_other_models_are_refused_and_nothing_is_written(corpus, data, target_run, tuned, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tuned / "hf", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    with pytest.raises(CheckpointError, match="not the sizes of"):
        average(target_run, other, tmp_path / "out")
    (other / "config.json").write_text(json.dumps(config))
    prepare(corpus, tmp_path / "words", vocab_size=300, seed=1, val_every=4)
    shutil.copy(tmp_path / "words" / "tokenizer.json", other / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not that of"):
        average(target_run, other, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such file"):
        average(target_run, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UsageError, match="is one of the two"):
        average(target_run, tuned, tuned)
    assert not (tmp_path / "out").exists()
