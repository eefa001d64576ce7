"""Whether an output has begun to repeat itself: the one sign, without asking a model, that it has become easy to draft.

Small models under greedy decoding end in a loop, larger ones quote themselves, in code above all. A drafter that was
hardly ever right is right then, and a policy that has turned speculation off would find out late.
"""

from __future__ import annotations

from collections.abc import Iterable

STRETCH = 12  # tokens that occur twice: fewer do by chance
CHARACTERS = 0x110000


class Repeats:
    """An output, token by token, as a str of a character for each token, which Python searches at the speed of C."""

    def __init__(self) -> None:
        self._output, self._stretch = "", STRETCH

    def add(self, tokens: Iterable[int]) -> None:
        """Decided tokens that follow."""
        self._output += "".join([chr(token % CHARACTERS) for token in tokens])

    def begun(self) -> bool:
        """Whether the output ends in a stretch that it has already; after a yes the next one must be twice as long."""
        output, n = self._output, self._stretch
        if len(output) <= n or output.find(output[-n:], 0, -1) < 0:
            return False
        self._stretch = 2 * n
        return True
