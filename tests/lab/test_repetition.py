"""What counts as a repeat, against its definition written out and against examples counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="training needs the `train` extra (tokenizers)")
pytest.importorskip("torch", reason="training needs the `train` extra (torch)")

from lab_command import call

from lab.repetition import SPAN, answers, measure, read_packed, repeats
from refspec.errors import UsageError
from refspec.train.tokenizer import TURN_END, load_tokenizer


def by_definition(tokens, mask, n):
    """Every answer by itself, every stretch of n compared with every earlier one."""
    marked, start = np.zeros(len(tokens), bool), 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and mask[end]:
            end += 1
        for i in range(start, end - n + 1):
            if any(list(tokens[j : j + n]) == list(tokens[i : i + n]) for j in range(start, i)):
                marked[i : i + n] = True
        start = max(end, start + 1)
    return marked


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 12, 13])
def test_repeats_are_those_of_the_definition(n):
    rng = np.random.default_rng(n)
    seen = 0
    for case in range(60):
        size = int(rng.integers(0, 90))
        tokens = rng.integers(0, 1 + case % 4, size).astype(np.uint16)
        mask = (rng.random(size) < (1.0, 0.95, 0.7)[case % 3]).astype(np.uint8)
        wanted = by_definition(tokens, mask, n)
        seen += wanted.sum()
        np.testing.assert_array_equal(repeats(tokens, mask, n), wanted)
    assert seen > 50  # the cases do repeat


def text(words):
    return np.array([ord(c) for c in words]), np.ones(len(words), np.uint8)


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        ("abcdXabcdY", "     ^^^^ "),  # the whole later stretch, its first token too, and nothing after it
        ("abcXabcY", "        "),  # three in a row are no repeat of four
        ("ababababa", "  ^^^^^^^"),  # a loop is marked from its second round on
        ("aaaaa", " ^^^^"),  # also one of a single token
        ("aaaa", "    "),
        ("abcdabcd", "    ^^^^"),
        ("abcdeXbcdeYabcd", "      ^^^^ ^^^^"),
        ("", ""),
        ("abc", "   "),
    ],
)
def test_a_repeat_of_four_counted_by_hand(answer, marks):
    tokens, mask = text(answer)
    np.testing.assert_array_equal(repeats(tokens, mask, 4), [c == "^" for c in marks])


def test_neither_the_question_nor_another_answer_makes_a_repeat():
    tokens, mask = text("abcd?abcd?abcd")
    mask[:5] = mask[9] = 0
    assert not repeats(tokens, mask, 4).any()
    mask[9] = 1  # one answer now
    np.testing.assert_array_equal(np.flatnonzero(repeats(tokens, mask, 4)), [9 + i for i in (0, 1, 2, 3, 4)][1:])


def test_short_restatements_and_indentation_are_no_repeat():
    code = "for i in x:\n    a = 1\n    b = 2\n    c = 3\nso 1124 and 1124, 3 * 1124"
    assert not repeats(*text(code)).any()
    assert repeats(*text("the tip is long. " * 2)).sum() == len("the tip is long. ")
    assert len("the tip is long. ") >= SPAN


def test_grams_of_large_token_ids_do_not_collide():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2**16, 5000).astype(np.uint16)
    tokens[3000:3012] = tokens[100:112]
    marked = repeats(tokens, np.ones(5000, np.uint8), 12)
    np.testing.assert_array_equal(np.flatnonzero(marked), np.arange(3000, 3012))


def test_answers_are_the_runs_of_the_mask():
    np.testing.assert_array_equal(answers(np.array([1, 1, 0, 0, 1, 0, 1], np.uint8)), [[0, 2], [4, 5], [6, 7]])
    assert answers(np.zeros(3, np.uint8)).shape == (0, 2)
    assert answers(np.zeros(0, np.uint8)).shape == (0, 2)


def test_the_measure_is_the_mean_over_answers():
    # "abcdabcd.": 6 grams, abcd twice -> 1/6. "xyzw": one gram -> 0. "no": none, left out. The full stop ends a turn.
    tokens, mask = text("abcdabcd.?xyzw?no.")
    mask[tokens == ord("?")] = 0
    found = measure(tokens, mask, ord("."))
    assert found.answers == 3
    assert found.mean_tokens == (9 + 4 + 3) / 3
    assert found.ended == 2 / 3
    assert found.seq_rep_4 == pytest.approx((1 / 6 + 0) / 2)
    assert found.looping == 0 and found.repeated == 0
    tokens, mask = text("the tip is long. " * 4 + "?other")
    mask[tokens == ord("?")] = 0
    found = measure(tokens, mask, ord("."))
    assert found.looping == 0.5
    assert found.repeated == pytest.approx(3 * 17 / (4 * 17 + 5))


def test_the_command_prints_what_it_measured(data):
    result = call("repetition", data, "--split", "val", "--json")
    assert result.exit_code == 0, result.output
    tokens, mask = read_packed(data, "val")
    turn_end = load_tokenizer(data / "tokenizer.json").token_to_id(TURN_END)
    wanted = measure(tokens, mask, turn_end)
    assert json.loads(result.stdout) == {k: round(v, 4) for k, v in wanted._asdict().items()}
    assert wanted.answers == 125 and wanted.ended == 1
    plain = call("repetition", data, "--split", "val")
    assert plain.stdout.splitlines()[0] == "answers: 125"


def test_a_folder_that_is_not_one_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "tokenizer.json").write_text((data / "tokenizer.json").read_text())
    with pytest.raises(UsageError, match=r"train\.tokens\.npy: no such file"):
        read_packed(tmp_path, "train")
    np.save(tmp_path / "train.tokens.npy", np.zeros(4, np.uint16))
    (tmp_path / "train.mask.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"train\.mask\.npy: not a NumPy array"):
        read_packed(tmp_path, "train")
    np.save(tmp_path / "train.mask.npy", np.zeros(3, np.uint8))
    with pytest.raises(UsageError, match=r"tokens \(4,\) and mask \(3,\)"):
        read_packed(tmp_path, "train")
    np.save(tmp_path / "train.mask.npy", np.zeros(4, np.uint8))
    result = call("repetition", tmp_path)
    assert result.exit_code == 2 and "holds no answer" in result.stderr and result.stderr.count("\n") == 1
