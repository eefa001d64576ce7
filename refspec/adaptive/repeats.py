"""Whether a text has begun to say again what it said before: the one sign, without asking anybody, that it has become
easy to draft.

Small models under greedy decoding end in a loop, larger ones quote themselves, in code above all. A drafter that hardly
ever was right before is right then, and a window that has turned speculation off would find out late.
"""

from __future__ import annotations

from collections.abc import Iterable

STRETCH = 12  # tokens that stand in the text twice: fewer do by chance
CHARACTERS = 0x110000


class Repeats:
    """A text, token by token.

    It is kept as a str of a character for each token, which Python searches at the speed of C.
    """

    def __init__(self) -> None:
        self._text, self._stretch = "", STRETCH

    def add(self, tokens: Iterable[int]) -> None:
        """Decided tokens that follow."""
        self._text += "".join([chr(token % CHARACTERS) for token in tokens])

    def begun(self) -> bool:
        """Whether the text ends in a stretch that it has already;

        when it has said so, a stretch twice as long is wanted the next time.
        """
        text, n = self._text, self._stretch
        if len(text) <= n or text.find(text[-n:], 0, -1) < 0:
            return False
        self._stretch = 2 * n
        return True
