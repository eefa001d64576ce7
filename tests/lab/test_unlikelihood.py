"""The term against its formula, its batches, and a toy training that unlearns a loop."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("safetensors", reason="training needs the `train` extra (safetensors)")

from lab_command import call  # noqa: E402
from toy_training import CONFIG  # noqa: E402

from lab.repetition import repeats  # noqa: E402
from lab.unlikelihood import OwnRepeats, UnlikelyRepeats, unlikelihood  # noqa: E402
from refspec.errors import CheckpointError, UsageError  # noqa: E402
from refspec.train.data import encode_conversation  # noqa: E402
from refspec.train.model import document_mask  # noqa: E402
from refspec.train.packing import WholeDocuments  # noqa: E402
from refspec.train.target import load_target, train_target  # noqa: E402
from refspec.train.tokenizer import BOS, load_tokenizer  # noqa: E402

LOOP = "the cat sees a tree. " * 14


def pack(folder, data, talks):
    """A folder in the format of `data.prepare` of (question, answer) pairs."""
    folder.mkdir(exist_ok=True)
    text = (data / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    ids, mask = [], []
    for question, answer in talks:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        one, its = encode_conversation(tokenizer, messages)
        ids += one
        mask += its
    np.save(folder / "train.tokens.npy", np.array(ids, np.uint16))
    np.save(folder / "train.mask.npy", np.array(mask, np.uint8))
    return folder


@pytest.fixture(scope="module")
def looping(data, tmp_path_factory):
    talks = [(f"the dog {i}", LOOP if i % 2 else "a tree") for i in range(120)]
    return pack(tmp_path_factory.mktemp("own"), data, talks)


def test_the_term_is_minus_log_of_one_minus_p():
    torch.manual_seed(0)
    logits, tokens = torch.randn(40, 11) * 4, torch.randint(0, 11, (40,))
    p = logits.double().softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(unlikelihood(logits, tokens).double(), -torch.log1p(-p), rtol=1e-5, atol=1e-6)


def test_the_gradient_at_the_token_is_its_probability_even_when_certain():
    logits = torch.tensor([[0.0, 0.0, 1.0], [100.0, 0.0, 0.0], [-200.0, 0.0, 0.0]], requires_grad=True)
    value = unlikelihood(logits, torch.zeros(3, dtype=torch.int64))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert value[1].item() == pytest.approx(100 - np.log(2), rel=1e-6)
    torch.testing.assert_close(logits.grad[:, 0], torch.tensor([1 / (2 + np.e), 1.0, 0.0], dtype=torch.float32))
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(3), rtol=0, atol=1e-6)


def test_batches_hold_the_repeating_documents_and_mark_what_the_rule_marks(looping, data):
    own = OwnRepeats(looping, data / "tokenizer.json", length=128, rows=4, seed=2)
    bos = load_tokenizer(data / "tokenizer.json").token_to_id(BOS)
    marks = repeats(np.load(looping / "train.tokens.npy"), np.load(looping / "train.mask.npy"))
    total = 0
    for step in range(own.rows.per_epoch):
        tokens, at = own[step]
        assert tokens.shape == (4, 129) and at.shape == (4, 128) and at.dtype == bool
        assert at.any(1).all()
        assert not (tokens[:, 1:] == bos)[at].any()
        total += at.sum()
    dropped = len(own.rows._packed) % 4  # rows that do not fill a batch of this epoch
    assert marks.sum() - dropped * 128 <= total <= marks.sum()
    again = OwnRepeats(looping, data / "tokenizer.json", length=128, rows=4, seed=2)
    later = again.rows.per_epoch + 1
    np.testing.assert_array_equal(own[later][0], again[later][0])


def test_marks_take_the_masks_place_token_for_token(looping, data):
    bos = load_tokenizer(data / "tokenizer.json").token_to_id(BOS)
    tokens = np.load(looping / "train.tokens.npy")
    rng = np.random.default_rng(0)
    marks = rng.random(tokens.size) < 0.01
    rows = WholeDocuments(looping, "train", length=64, rows=2, seed=1, bos=bos, marks=marks)
    for start, end in rows.pieces:
        assert marks[start + 1 : end].any()
    assert sum(int(marks[start + 1 : end].sum()) for start, end in rows.pieces) == int(marks[tokens != bos].sum())
    got, where = rows[0]
    at = 0
    for piece in rows._packed[0]:
        start, end = rows.pieces[piece]
        np.testing.assert_array_equal(got[0, at : at + end - start], tokens[start:end])
        np.testing.assert_array_equal(where[0, at : at + end - start], marks[start:end])
        at += end - start


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr("refspec.train.target.TOKENS_PER_STEP", 1024)
    monkeypatch.setattr("refspec.train.loop.schedule", lambda step, steps: 1.0)


def test_the_term_makes_the_loop_less_likely_than_the_same_training_without_it(
    looping, data, target_run, tmp_path, small_steps
):
    how = {"config": CONFIG, "steps": 20, "seed": 3, "threads": 1, "init": target_run / "hf"}
    extra = UnlikelyRepeats(looping, data, seed=3, weight=4.0, every=2, batch_tokens=1024)
    train_target(data, tmp_path / "with", **how, extra_loss=extra)
    train_target(data, tmp_path / "without", **how)
    batch, at = map(torch.from_numpy, OwnRepeats(looping, data / "tokenizer.json", length=256, rows=4, seed=9)[0])
    bos = load_tokenizer(data / "tokenizer.json").token_to_id(BOS)
    means = {}
    for name in ("with", "without"):
        model = load_target(tmp_path / name)
        logits = model.head(model(batch[:, :-1], document_mask(batch[:, :-1], bos).float())[0])[at]
        means[name] = float(unlikelihood(logits, batch[:, 1:][at]).mean())
    assert means["with"] < 0.8 * means["without"]
    logs = {n: [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in means}
    first = logs["with"][0]
    assert first["loss"] == pytest.approx(first["cross_entropy"] + first["extra_loss"], abs=3e-4)
    assert set(logs["with"][1]["validation"]) == {"val_loss"}
    assert not {"cross_entropy", "extra_loss"} & logs["without"][0].keys()


def test_a_run_is_resumed_only_with_its_own_term(looping, data, target_run, tmp_path, small_steps):
    how = {"config": CONFIG, "steps": 2, "seed": 3, "threads": 1}

    def extra(**changes):
        return UnlikelyRepeats(looping, data, seed=3, batch_tokens=1024, **changes)

    figures = train_target(data, tmp_path, **how, extra_loss=extra(every=1))
    assert train_target(data, tmp_path, **how, extra_loss=extra(every=1)) == figures
    with pytest.raises(CheckpointError, match=r"unlikely_weight=0\.5, now 0\.25"):
        train_target(data, tmp_path, **how, extra_loss=extra(every=1, weight=0.25))
    with pytest.raises(CheckpointError, match=r"unlikely='.*', now None"):
        train_target(data, tmp_path, **how)
    with pytest.raises(CheckpointError, match="unlikely=None, now"):
        train_target(data, target_run, **how | {"steps": 4}, extra_loss=extra())


def test_own_text_that_cannot_serve_is_refused_in_one_line(looping, data, tmp_path):
    def refused(folder, words):
        with pytest.raises(UsageError, match=words) as error:
            OwnRepeats(folder, data / "tokenizer.json", length=512, rows=8, seed=0)
        assert "\n" not in str(error.value)

    refused(pack(tmp_path / "calm", data, [("a", "the cat runs home")] * 9), "no answer repeats 12 tokens")
    refused(pack(tmp_path / "few", data, [("a", LOOP)]), "fewer than 8")
    other = pack(tmp_path / "other", data, [("a", LOOP)])
    (other / "tokenizer.json").write_text(
        (data / "tokenizer.json").read_text().replace('"!": ', '"\\u0100\\u0100": ', 1)
    )
    refused(other, "not the one of")


def test_the_command_trains_with_the_term_and_takes_the_options_of_train_target(looping, data, tmp_path):
    sizes = ["--layers", 4, "--width", 32, "--heads", 1, "--ffn", 32, "-t", 1, "--batch-tokens", 2048]
    common = ["unlikelihood", "--data", data, "-o", tmp_path / "o", "--steps", 1, *sizes]
    run = call(*common, "--unlikely", looping, "--unlikely-every", 1)
    assert run.exit_code == 0, run.output
    assert "val_loss: " in run.stdout and (tmp_path / "o" / "target.gguf").is_file()
    missing = call(*common)
    assert missing.exit_code == 2 and "--unlikely" in missing.stderr
    alone = call(*common, "--unlikely", looping, "--finish-from", 0.5)
    assert alone.exit_code == 2 and "--finish-from does nothing without --finish" in alone.stderr
