"""Bytes of tokens -> text that can be printed at once.

A byte-level tokenizer may end a token inside a UTF-8 character. The bytes of an unfinished character are held back
until they are complete; bytes that can never become one are replaced by U+FFFD, so a stream never raises and never
prints half a character.
"""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Feed bytes in any split, get the same text as `bytes.decode("utf-8", "replace")` of their concatenation."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Return the characters that `data` completes; possibly none."""
        return self._decoder.decode(data)

    def close(self) -> str:
        """Return what is left: one U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", True)
