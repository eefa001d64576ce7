"""Rows of whole documents: nothing is lost, nothing is cut that fits, and every step can be reached directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the train extra")
pytest.importorskip("tokenizers", reason="training needs the train extra")

import itertools

from refspec.errors import UsageError
from refspec.train.data import Batches, weight_of
from refspec.train.packing import Ahead, InTurn, WholeDocuments

BOS, LENGTH, ROWS = 1, 16, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents of 2 to 50 tokens whose tokens are all different, so that each can be told apart."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 51, 60)
    documents = np.split(np.arange(2, 2 + lengths.sum()), np.cumsum(lengths)[:-1])
    tokens = np.concatenate([[BOS, *d] for d in documents]).astype(np.uint16)
    np.save(tmp_path / "train.tokens.npy", tokens)
    np.save(tmp_path / "train.mask.npy", ((tokens % 2 == 1) & (tokens != BOS)).astype(np.uint8))
    return tmp_path


def documents(folder: Path) -> list[list[int]]:
    tokens = np.load(folder / "train.tokens.npy")
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == BOS)[1:])]


def whole(folder: Path, seed: int = 3) -> WholeDocuments:
    return WholeDocuments(folder, "train", length=LENGTH, rows=ROWS, seed=seed, bos=BOS)


def test_every_token_but_a_documents_first_is_a_label_once_an_epoch(folder: Path) -> None:
    batches = whole(folder)
    rows = [batches._packed[i] for i in range(len(batches._packed))]
    labels = sorted(int(t) for row in rows for piece in row for t in batches.tokens[slice(*batches.pieces[piece])][1:])
    assert labels == sorted(t for d in documents(folder) for t in d[1:])


def test_a_document_that_fits_is_whole_and_rows_are_filled_with_bos(folder: Path) -> None:
    batches = whole(folder)
    fits = {tuple(d) for d in documents(folder) if len(d) <= LENGTH + 1}
    seen = set()
    for step in range(batches.per_epoch):
        tokens, mask = batches[step]
        assert tokens.shape == mask.shape == (ROWS, LENGTH + 1) and tokens.dtype == np.int64 and mask.dtype == np.uint8
        assert np.array_equal(mask, (tokens % 2 == 1) & (tokens != BOS))  # padding is nobody's text
        for row in tokens:
            starts = [*np.flatnonzero(row == BOS), LENGTH + 1]
            seen |= {tuple(row[a:b].tolist()) for a, b in itertools.pairwise(starts)}
    assert len(seen & fits) > 0.7 * len(fits)  # rows that do not fill the epoch's last batch are not seen
    whole_pieces = {tuple(batches.tokens[a:b].tolist()) for a, b in batches.pieces}
    assert fits <= whole_pieces


def test_a_step_is_a_function_of_the_seed(folder: Path) -> None:
    one, other = whole(folder), whole(folder)
    later = one.per_epoch + 1
    other[0]
    assert np.array_equal(one[later][0], other[later][0])
    assert not np.array_equal(one[later][0], one[1][0]) and not np.array_equal(whole(folder, 4)[1][0], one[1][0])


def test_sources_take_turns(folder: Path) -> None:
    cut = Batches(folder, "train", length=8, rows=4, seed=1)
    turns = InTurn([whole(folder), cut])
    for step in range(4):
        expected = (whole(folder), cut)[step % 2][step // 2]
        assert np.array_equal(turns[step][0], expected[0])


def test_too_little_text_is_one_line(folder: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 4000"):
        WholeDocuments(folder, "train", length=LENGTH, rows=4000, seed=1, bos=BOS)


def test_weights_of_sources_go_by_name_then_by_the_longest_beginning() -> None:
    weights = {"py_sympy": 2, "py_*": 0.5, "p*": 3}
    assert [weight_of(s, weights) for s in ("py_sympy", "py_click", "peps", "mawps")] == [2, 0.5, 3, 1.0]


def test_batches_made_ahead_are_the_same(folder: Path) -> None:
    plain, ahead = whole(folder), Ahead(whole(folder))
    for step in (0, 1, 2, plain.per_epoch, plain.per_epoch + 1, 1):  # in turn, over an epoch's end, and back
        for one, other in zip(plain[step], ahead[step], strict=True):
            np.testing.assert_array_equal(one, other)
