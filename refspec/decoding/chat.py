"""Messages -> the prompt text a chat model was trained on, by the Jinja template its GGUF carries; and a conversation.

Not a tokenizer. A template is a program from a downloaded file: it runs in Jinja's sandbox, with the settings the
public chat templates are written for (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`, `tojson`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from refspec.errors import CheckpointError, UsageError

FAILURES = ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError  # of a template's code
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

ROLES = ("system", "user", "assistant")


def render(
    template: str, messages: Sequence[Message], *, bos: str = "", eos: str = "", source: str = "the GGUF"
) -> str:
    """The prompt text that asks for the assistant's next turn; CheckpointError when the template fails."""
    # Imported here: plain text generation with --raw works where Jinja is broken or missing.
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages], bos_token=bos, eos_token=eos, add_generation_prompt=True
        )
    except _Refused as error:
        reason = str(error)
    except (TemplateError, *FAILURES) as error:
        reason = f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())[:200] or "no reason given"
    raise CheckpointError(f"{source}: tokenizer.chat_template failed ({reason}); use --raw to do without") from None


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


class _Refused(Exception):
    """The template called raise_exception."""


def _refuse(message: object = "") -> NoReturn:
    raise _Refused(f"it says {str(message)!r}")


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=False, indent=indent)
