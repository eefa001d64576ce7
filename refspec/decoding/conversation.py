"""A conversation: messages as they are said, taken back, written down and read again. `chat.py` renders them."""

from __future__ import annotations

from typing import Any

from refspec.decoding.chat import Message
from refspec.errors import UsageError

ROLES = ("system", "user", "assistant")


class Conversation:
    """Messages of a chat as they are said and taken back: `system` first if there is one, then `turns`."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[Message] = []  # user and assistant

    @property
    def messages(self) -> list[Message]:
        """All of it, as a template reads it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def say(self, role: str, content: str) -> None:
        """Add a message."""
        self.turns.append({"role": role, "content": content})

    def undo(self) -> str | None:
        """Take back the last message of the user and what follows it: its text, None where there is none."""
        said = None
        while self.turns and said is None:
            last = self.turns.pop()
            said = last["content"] if last["role"] == "user" else None
        return said

    def read(self, messages: Any) -> None:
        """Go on from messages as `messages` gives them; UsageError, and no change, for anything else."""
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") in ROLES for m in messages
        ):
            raise UsageError(f'a conversation is a JSON list of {{"role": {"|".join(ROLES)}, "content": "text"}}')
        first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        turns: list[Message] = [{"role": m["role"], "content": m["content"]} for m in messages[first is not None :]]
        if any(m["role"] == "system" for m in turns):
            raise UsageError("a conversation has one system message, the first; put its text there")
        self.system, self.turns = first, turns
