"""Streaming text: any split of the bytes gives the text of the whole."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from refspec.decoding.text import Utf8Stream


def pushed(pieces):
    stream = Utf8Stream()
    return [stream.push(piece) for piece in pieces] + [stream.close()]


@given(st.text() | st.binary(), st.lists(st.integers(0, 40)))
def test_any_split_gives_the_text_of_the_whole(content, cuts):
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert "".join(pushed(pieces)) == data.decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_by_byte_never_shows_part_of_a_character(text):
    data = text.encode()
    assert [c for c in pushed(data[i : i + 1] for i in range(len(data))) if c] == list(text)


def test_an_unfinished_character_becomes_one_replacement_at_the_end():
    assert pushed([b"a\xe2\x82"]) == ["a", "\ufffd"]
