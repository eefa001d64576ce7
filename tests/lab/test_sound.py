"""Of a folder of answers, those that rules find nothing wrong with."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("torch", reason="training needs the `train` extra (torch)")

from lab_command import call

from lab.sound import sound
from refspec.errors import UsageError
from refspec.train.data import encode_conversation
from refspec.train.tokenizer import TURN_END, load_tokenizer

LOOP = "the cat sees a tree the dog runs home the cat sees "
ANSWERS = {
    "a plain one": "kept",
    "2 + 3 = 5, so 5 * 4 = 20": "kept",
    "```python\nx = 1\n```": "kept",
    "the same the same": "kept",
    "": "empty",
    LOOP * 6: "repeats",
    "2 + 3 = 6": "sums",
    "```python\ndef f(x:\n```": "python",
}


@pytest.fixture
def folder(data, tmp_path):
    """One conversation for every answer, and one that was cut."""
    tokenizer = load_tokenizer(data / "tokenizer.json")
    end = tokenizer.token_to_id(TURN_END)
    tokens, mask, kept = [], [], []
    for answer, verdict in [*ANSWERS.items(), ("was cut", "cut")]:
        ids, mine = encode_conversation(
            tokenizer, [{"role": "user", "content": "say"}, {"role": "assistant", "content": answer}]
        )
        if verdict == "cut":
            at = ids.index(end, mine.index(1))
            ids, mine = ids[:at], mine[:at]
        tokens, mask = tokens + ids, mask + mine
        kept += ids if verdict == "kept" else []
    out = tmp_path / "own"
    out.mkdir()
    (out / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    for split in ("train", "val"):
        np.save(out / f"{split}.tokens.npy", np.array(tokens, np.uint16))
        np.save(out / f"{split}.mask.npy", np.array(mask, np.uint8))
    return out, kept


def test_each_rule_leaves_out_what_breaks_it_and_nothing_else(folder, tmp_path):
    source, kept = folder
    made = sound(source, tmp_path / "sound")
    assert made["train"] == made["val"] == {"kept": 4, "cut": 1, "empty": 1, "repeats": 1, "sums": 1, "python": 1}
    tokens, mask = (np.load(tmp_path / "sound" / f"train.{part}.npy") for part in ("tokens", "mask"))
    assert tokens.tolist() == kept and tokens.dtype == np.uint16 and mask.dtype == np.uint8 and len(mask) == len(tokens)
    counts = json.loads((tmp_path / "sound" / "counts.json").read_text())
    assert counts["train"] == {"records": 4, "tokens": len(kept), "assistant": int(mask.sum())}


def test_the_command_says_what_it_left_out(folder, tmp_path):
    run = call("sound", "--data", folder[0], "-o", tmp_path / "sound")
    assert run.exit_code == 0, run.output
    assert "train: 4 of 9 documents kept; left out: 1 cut, 1 empty, 1 repeats, 1 sums, 1 python" in run.output


def test_nothing_is_written_where_nothing_is_sound_or_over_the_source(folder, tmp_path):
    source, _ = folder
    with pytest.raises(UsageError, match="--data itself"):
        sound(source, source)
    tokens = np.load(source / "val.tokens.npy")
    end = load_tokenizer(source / "tokenizer.json").token_to_id(TURN_END)
    tokens[tokens == end] = 300  # every answer is cut now
    np.save(source / "val.tokens.npy", tokens)
    with pytest.raises(UsageError, match="val has no sound answer"):
        sound(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
