"""A run's target answering in torch: the same tokens as the plain forward pass, whatever its neighbours."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("safetensors", reason="training needs the `train` extra (safetensors)")
pytest.importorskip("tqdm", reason="training needs the `train` extra (tqdm)")

from click.testing import CliRunner  # noqa: E402

from refspec.cli import main  # noqa: E402
from refspec.decoding.requests import Request  # noqa: E402
from refspec.errors import ShapeError, UsageError  # noqa: E402
from refspec.reference.sampling import Sampler, sample  # noqa: E402
from refspec.train import precision  # noqa: E402
from refspec.train.answering import TorchAnswers, draw  # noqa: E402
from refspec.train.data import prepare  # noqa: E402
from refspec.train.model import document_mask  # noqa: E402
from refspec.train.regenerate import regenerate  # noqa: E402
from refspec.train.tokenizer import BOS, load_tokenizer  # noqa: E402

MAX_NEW, TEMPERATURE = 20, 1.5


@pytest.fixture
def exact(monkeypatch):
    """float32 on this processor, so that two ways to compute a row agree to rounding."""
    monkeypatch.setattr(precision, "half_pays", lambda kind: False)
    monkeypatch.setattr("refspec.train.answering.compute_type", lambda device: torch.float32)


def requests(data, count=23):
    tokens = np.load(data / "train.tokens.npy")
    bos = load_tokenizer(data / "tokenizer.json").token_to_id(BOS)
    starts, rng = np.flatnonzero(tokens == bos)[:count], np.random.default_rng(0)
    lengths = rng.integers(1, 40, count)
    return [
        Request(i, tokens[s : s + n], rng.random(MAX_NEW) if i % 3 else None)
        for i, (s, n) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True))
    ]


@torch.no_grad()
def written_out(model, request, stop, bos):
    """The answer by one whole forward pass for every token."""
    tokens = request.prompt.tolist()
    for i in range(MAX_NEW):
        ids = torch.tensor([tokens])
        logits = model.head(model(ids, document_mask(ids, bos).float())[0])[0, -1].numpy()
        coin = np.nan if request.coins is None else request.coins[i]
        tokens.append(int(logits.argmax()) if np.isnan(coin) else sample(logits, Sampler(TEMPERATURE), coin))
        if tokens[-1] in stop:
            break
    return tokens[len(request.prompt) :]


def test_answers_are_those_of_the_plain_forward_pass(exact, data, target_run):
    """Batches of 4 and of 64: padding, memory, leaving a batch and stopping change no token."""
    bos = load_tokenizer(data / "tokenizer.json").token_to_id(BOS)
    asked = requests(data)
    stop = frozenset(range(0, 320, 17))  # often enough that answers end at different steps
    for parallel in (4, 64):
        target = TorchAnswers(target_run, n_ctx=64, device="cpu", parallel=parallel)
        found = {
            a.request.key: a.tokens
            for a in target.answers(asked, max_new=MAX_NEW, sampler=Sampler(TEMPERATURE), stop=stop)
        }
        assert found == {r.key: written_out(target.model, r, stop, bos) for r in asked}
    assert len({len(tokens) for tokens in found.values()}) > 3 and MAX_NEW in map(len, found.values())


def test_a_draw_is_the_one_of_the_llama_cpp_side():
    rng = np.random.default_rng(1)
    logits, coins = rng.normal(0, 3, (200, 50)).astype(np.float32), rng.random(200)
    logits[::5, 3] = -np.inf
    coins[:3] = 0.0, np.nextafter(1, 0), 0.5
    for temperature in (0.3, 1.0, 2.0):
        ours = draw(torch.from_numpy(logits), torch.from_numpy(coins), temperature)
        assert ours.tolist() == [sample(row, Sampler(temperature), c) for row, c in zip(logits, coins, strict=True)]


def test_a_data_set_made_by_a_folder_is_that_made_by_its_gguf(exact, data, target_run, tmp_path):
    """Prompts, format and nearly all tokens: the GGUF's weights are F16, so few answers may part."""
    how = dict(tokens=4000, temperature=1.0, greedy_share=0.3, max_new=24, max_prompt=400, seed=5, threads=1)
    regenerate(data, target_run / "target.gguf", tmp_path / "gguf", parallel=8, **how)
    regenerate(data, target_run, tmp_path / "folder", device="cpu", **how)
    there, here = (documents(tmp_path / name) for name in ("gguf", "folder"))
    both = [(a, b) for a, b in zip(there, here, strict=False)]
    assert len(both) > 20 and all(a[0] == b[0] for a, b in both), "the same prompts in the same order"
    assert np.mean([a[1][0] == b[1][0] for a, b in both]) > 0.9 and np.mean([a[1] == b[1] for a, b in both]) > 0.5


def documents(folder):
    """[(prompt, answer)] of the train split."""
    tokens, mask = (np.load(folder / f"train.{part}.npy") for part in ("tokens", "mask"))
    at = np.flatnonzero(tokens == load_tokenizer(folder / "tokenizer.json").token_to_id(BOS))[1:]
    return [
        (t[: m.tolist().index(1)].tolist(), t[m == 1].tolist())
        for t, m in zip(np.split(tokens, at), np.split(mask, at), strict=True)
    ]


def test_what_a_folder_cannot_do_is_said(corpus, data, target_run, tmp_path):
    with pytest.raises(UsageError, match=r"outside its 1\.\.1024"):
        TorchAnswers(target_run, n_ctx=2000)
    other = tmp_path / "other"
    prepare(corpus, other, vocab_size=300, seed=1, val_every=4)
    with pytest.raises(ShapeError, match=r"300 tokens, but .* has 303"):
        regenerate(other, target_run, tmp_path / "out", tokens=100, max_new=8, device="cpu")

    def refused(*options):
        run = CliRunner().invoke(
            main, ["train", "regenerate", "--data", str(data), "-o", str(tmp_path / "x"), "--tokens", "9", *options]
        )
        assert run.exit_code == 2 and not (tmp_path / "x").exists()
        return run.output

    assert "--device does nothing with a GGUF" in refused("-m", str(target_run / "target.gguf"), "--device", "cpu")
    assert "--gpu-layers does nothing with a folder" in refused("-m", str(target_run), "-ngl", "3")
