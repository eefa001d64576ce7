"""A data set of the target's own answers:

the source's prompts, the source's format, the same whatever was killed in between.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the toy target is trained (torch)")
pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("safetensors", reason="training needs the `train` extra (safetensors)")
pytest.importorskip("tqdm", reason="training needs the `train` extra (tqdm)")

from click.testing import CliRunner  # noqa: E402
from toy_training import CONFIG  # noqa: E402

from refspec.cli import main  # noqa: E402
from refspec.errors import CheckpointError, ShapeError, UsageError  # noqa: E402
from refspec.evaluate.journal import Journal  # noqa: E402
from refspec.reference.penalties import Penalties  # noqa: E402
from refspec.train.data import Batches  # noqa: E402
from refspec.train.drafters import drafter_for, train_drafters  # noqa: E402
from refspec.train.packing import WholeDocuments  # noqa: E402
from refspec.train.regenerate import Source, regenerate  # noqa: E402
from refspec.train.tokenizer import BOS, EOS, TURN_END, load_tokenizer  # noqa: E402

TOKENS, MAX_NEW = 12000, 24
# Hot enough that a target of four training steps ends some answers by itself.
HOW = dict(
    tokens=TOKENS, temperature=3.0, greedy_share=0.3, max_new=MAX_NEW, max_prompt=400, seed=5, parallel=8, threads=1
)


@pytest.fixture(scope="session")
def gguf(target_run):
    return target_run / "target.gguf"


@pytest.fixture(scope="session")
def own(data, gguf, tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    return out, regenerate(data, gguf, out, **HOW)


def ids(folder):
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    return tokenizer.token_to_id(BOS), {tokenizer.token_to_id(t) for t in (EOS, TURN_END)}, newline


def arrays(folder, split):
    return np.load(folder / f"{split}.tokens.npy"), np.load(folder / f"{split}.mask.npy")


def documents(folder, split):
    """[(tokens, mask)] as lists, cut at BOS."""
    tokens, mask = arrays(folder, split)
    assert (tokens.dtype, mask.dtype) == (np.uint16, np.uint8) and tokens.shape == mask.shape
    at = np.flatnonzero(tokens == ids(folder)[0])
    assert at[0] == 0
    return [(t.tolist(), m.tolist()) for t, m in zip(np.split(tokens, at[1:]), np.split(mask, at[1:]), strict=True)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_document_is_a_prompt_of_the_source_and_one_answer_of_the_target(data, own, split):
    _, ends, newline = ids(data)
    prompts = {tuple(t[: m.index(1)]) for t, m in documents(data, split)}
    cut = ended = 0
    for tokens, mask in documents(own[0], split):
        first = mask.index(1)
        assert tuple(tokens[:first]) in prompts
        answer = [t for t, m in zip(tokens, mask, strict=True) if m]
        tail = tokens[first + len(answer) :]
        assert mask == [0] * first + [1] * len(answer) + [0] * len(tail), "one answer, without a gap"
        assert not ends & set(answer[:-1]) and len(answer) <= MAX_NEW
        assert tail == (newline if answer[-1] in ends else [])
        cut, ended = cut + (answer[-1] not in ends), ended + (answer[-1] in ends)
    assert cut and ended, "one of the two was not tested"
    assert own[1][split]["ended"] == ended / (cut + ended)


def test_counts_are_those_of_the_arrays(own):
    out, made = own
    counts = json.loads((out / "counts.json").read_text())
    for split in ("train", "val"):
        tokens, mask = arrays(out, split)
        found = {"records": len(documents(out, split)), "tokens": tokens.size, "assistant": int(mask.sum())}
        assert counts[split] == found == {name: made[split][name] for name in found}
    assert TOKENS <= counts["train"]["tokens"] < TOKENS + 1000


def test_every_prompt_of_the_validation_split_is_answered(data, own):
    """But for answers that began with BOS at once: there is nothing to learn from those."""
    asked = [t[: m.index(1)] for t, m in documents(data, "val")]
    answered = [t[: m.index(1)] for t, m in documents(own[0], "val")]
    at = iter(asked)
    assert all(prompt in at for prompt in answered), "in the order of the source"
    assert len(asked) * 0.9 < len(answered) <= len(asked)


def test_trainings_read_it_as_they_read_the_source(own, target_run, tmp_path):
    bos = ids(own[0])[0]
    rows = WholeDocuments(own[0], "train", length=256, rows=2, seed=1, bos=bos)
    packed = np.concatenate([np.concatenate(rows[i][1]) for i in range(rows.per_epoch)])
    assert packed.sum() > 0.8 * arrays(own[0], "train")[1].sum()
    assert Batches(own[0], "val", length=128, rows=2, seed=0)[0][0].shape == (2, 129)
    variants = {"drafter": drafter_for(target_run, 64, (1, 2, 4))}
    figures = train_drafters(own[0], target_run, tmp_path, variants, steps=1, depth=2, seed=1, threads=1)
    assert np.isfinite(figures["drafter_loss"])


def test_a_killed_run_goes_on_to_the_same_data(data, gguf, own, tmp_path, monkeypatch):
    add, added = Journal.add, []

    def add_then_die(self, key, value):
        add(self, key, value)
        added.append(key)
        if len(added) == 150:  # in the middle of the second split
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", add_then_die)
        regenerate(data, gguf, tmp_path, **HOW)
    with open(tmp_path / "answers.jsonl", "a", encoding="utf-8") as file:
        file.write('{"key": "train 1", "val')  # what a kill during a write leaves
    monkeypatch.setattr(Journal, "add", lambda self, key, value: (added.append(key), add(self, key, value))[1])
    made = regenerate(data, gguf, tmp_path, **HOW)
    assert len(set(added)) == len(added), "a finished answer was generated again"
    assert made["val"]["generated"] == 0 < made["train"]["generated"]
    for split in ("train", "val"):
        for a, b in zip(arrays(own[0], split), arrays(tmp_path, split), strict=True):
            assert np.array_equal(a, b), split


def test_more_tokens_add_to_what_is_there(data, gguf, own, tmp_path):
    shutil.copytree(own[0], tmp_path, dirs_exist_ok=True)
    made = regenerate(data, gguf, tmp_path, **(HOW | {"tokens": TOKENS + 4000, "parallel": 3}))
    before, after = documents(own[0], "train"), documents(tmp_path, "train")
    assert made["train"]["tokens"] >= TOKENS + 4000
    assert after[: len(before)] == before


def test_the_seed_decides_and_the_number_of_parallel_texts_does_not(data, gguf, own, tmp_path):
    regenerate(data, gguf, tmp_path / "one", **(HOW | {"parallel": 1}))
    same = [a == b for a, b in zip(documents(own[0], "train"), documents(tmp_path / "one", "train"), strict=True)]
    # The toy is F16: rounding differs between batches, and a coin may fall in between.
    assert np.mean(same) > 0.9
    regenerate(data, gguf, tmp_path / "two", **(HOW | {"seed": 6, "tokens": 900}))
    assert documents(own[0], "train")[:5] != documents(tmp_path / "two", "train")[:5]


def test_temperature_zero_is_all_greedy(data, gguf, tmp_path):
    regenerate(data, gguf, tmp_path / "a", **(HOW | {"temperature": 0.0, "tokens": 900}))
    regenerate(data, gguf, tmp_path / "b", **(HOW | {"greedy_share": 1.0, "tokens": 900}))
    assert documents(tmp_path / "a", "train") == documents(tmp_path / "b", "train")


def test_penalties_decide_the_answers_and_belong_to_the_settings(data, gguf, target_run, tmp_path):
    greedy = HOW | {"temperature": 0.0, "tokens": 900}
    dry = greedy | {"penalties": Penalties(dry_multiplier=1e6, dry_allowed_length=2, dry_breakers=())}

    def repeating(folder):
        answers = [[t for t, m in zip(tokens, mask, strict=True) if m] for tokens, mask in documents(folder, "train")]
        threes = [[tuple(a[i : i + 3]) for i in range(len(a) - 2)] for a in answers]
        return sum(len(set(found)) < len(found) for found in threes)

    regenerate(data, gguf, tmp_path / "free", **greedy)
    regenerate(data, gguf, tmp_path / "dry", **dry)
    assert repeating(tmp_path / "free") and not repeating(tmp_path / "dry")
    with pytest.raises(UsageError, match="penalties"):
        regenerate(data, gguf, tmp_path / "free", **dry)
    with pytest.raises(UsageError, match="torch answers without penalties"):
        regenerate(data, target_run, tmp_path / "torch", **dry)


def write_source(folder, docs, name="train"):
    np.save(folder / f"{name}.tokens.npy", np.array([t for d in docs for t, _ in d], np.uint16))
    np.save(folder / f"{name}.mask.npy", np.array([m for d in docs for _, m in d], np.uint8))


def test_a_prompt_is_answered_greedily_once_and_long_or_unanswered_ones_never(tmp_path):
    ask = [(1, 0), (5, 0), (6, 0), (7, 1), (8, 0), (9, 1)]  # two turns: the prompt ends before the first answer
    other, silent, long = [(1, 0), (4, 0), (2, 1)], [(1, 0), (4, 0), (4, 0)], [(1, 0), *[(4, 0)] * 9, (2, 1)]
    write_source(tmp_path, [ask, silent, other, ask, long, ask])
    source = Source(tmp_path, "train", bos=1, vocab=10)
    assert len(source.starts) == 5
    order = np.arange(5)

    def given(greedy):
        return list(source.prompts(order, key=[1, 1], greedy=greedy, max_new=4, longest=8))

    assert [p.tokens.tolist() for p in given(1.0)] == [[1, 5, 6], [1, 4]]
    sampled = given(0.0)
    assert [p.tokens.tolist() for p in sampled] == [[1, 5, 6], [1, 4], [1, 5, 6], [1, 5, 6]]
    assert len({p.coins.tobytes() for p in sampled}) == 4, "the same prompt has other coins each time"


def test_what_cannot_be_used_is_one_error(data, gguf, own, tmp_path):
    with pytest.raises(UsageError, match="is --data itself"):
        regenerate(data, gguf, data, **HOW)
    with pytest.raises(UsageError, match="seed = 5, now 6"):
        regenerate(data, gguf, own[0], **(HOW | {"seed": 6}))
    with pytest.raises(UsageError, match="allow shorter ones"):
        regenerate(data, gguf, tmp_path / "o", **(HOW | {"max_new": CONFIG.context_length}))
    with pytest.raises(UsageError, match="max-prompt"):
        regenerate(data, gguf, tmp_path / "p", **(HOW | {"max_prompt": 3}))
    folder = tmp_path / "data"
    for name, message in (("val.mask.npy", "no such file"), ("tokenizer.json", "no such file")):
        shutil.copytree(data, folder)
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=message):
            regenerate(folder, gguf, tmp_path / "q", **HOW)
        shutil.rmtree(folder)
    shutil.copytree(data, folder)
    (folder / "train.mask.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CheckpointError, match="not a NumPy array"):
        regenerate(folder, gguf, tmp_path / "q", **HOW)
    write_source(folder, [[(1, 0), (400, 0), (2, 1)]])
    with pytest.raises(ShapeError, match="token 400"):
        regenerate(folder, gguf, tmp_path / "q", **HOW)


def test_the_vocabularies_must_be_the_same(data, gguf, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    vocab = said["model"]["vocab"]
    a, b = (next(k for k, v in vocab.items() if v == i) for i in (70, 71))
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ShapeError, match=r"is token 71, but 70 in"):
        regenerate(folder, gguf, tmp_path / "o", **HOW)
    said["model"]["vocab"] = {k: v for k, v in vocab.items() if v < len(vocab) - 3}
    said["model"]["merges"] = said["model"]["merges"][:-3]
    (folder / "tokenizer.json").write_text(json.dumps(said))
    for split in ("train", "val"):
        write_source(folder, [[(1, 0), (9, 0), (9, 1)]], split)
    with pytest.raises(ShapeError, match=r"300 tokens, but .* has 303"):
        regenerate(folder, gguf, tmp_path / "o", **HOW)


def test_the_command_says_what_it_made(data, gguf, tmp_path):
    base = ["train", "regenerate", "--data", str(data), "-m", str(gguf), "--max-prompt", "400", "-t", "1"]
    ran = CliRunner().invoke(main, [*base, "-o", str(tmp_path), "--tokens", "900", "--max-new", "8", "--parallel", "4"])
    assert ran.exit_code == 0, ran.output
    assert "val: 125 documents" in ran.stdout and "ended by themselves" in ran.stdout
    assert "per second" in ran.stderr
    for extra, code in ((["--max-new", "9"], 2), (["--temp", "nan"], 2), (["-m", "nothing.gguf"], 1)):
        ran = CliRunner().invoke(main, [*base, "-o", str(tmp_path), "--tokens", "900", "--max-new", "8", *extra])
        assert ran.exit_code == code and ran.stderr.strip().count("\n") == 0, ran.stderr
