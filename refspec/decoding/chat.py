"""Messages -> the prompt a chat model was trained on, by the Jinja template its GGUF carries.

A template is a program from a downloaded file: it runs in Jinja's sandbox, with limits (`sandbox.py`) and with the
settings the public chat templates are written for (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`,
`tojson`). What a message says is text: `Contents` keeps the names of control tokens in it from becoming such tokens.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, Protocol

from refspec.decoding.sandbox import Budget, environment_class
from refspec.errors import CheckpointError

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
CONTROL, UNKNOWN = 3, 2  # token types that llama.cpp finds in a text only where it is asked to (parse_special)
SENTENCEPIECE = "llama"  # the tokenizer that puts a space before a text
MARKS = range(0xE000, 0xF8FF)  # characters without a meaning of their own


def render(
    template: str, messages: Sequence[Message], *, bos: str = "", eos: str = "", source: str = "the GGUF"
) -> str:
    """The prompt text that asks for the assistant's next turn; CheckpointError when the template fails.

    A template that makes too much text, or takes too long, fails (`sandbox.Budget`).
    """
    try:
        with _rendering:
            environment, compiled = _compiled(template)
            environment.budget.begin(sum(len(str(text)) for message in messages for text in message.values()))
            text: str = compiled.render(
                messages=[dict(message) for message in messages], bos_token=bos, eos_token=eos,
                add_generation_prompt=True,
            )  # fmt: skip
        return text
    except _Refused as error:
        reason = str(error)
    except Exception as error:  # whatever a program from a file does, MemoryError and SyntaxError included
        reason = f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())[:200] or "no reason given"
    raise CheckpointError(f"{source}: tokenizer.chat_template failed ({reason}); use --raw to do without") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[Any, Any]:
    """A template's environment, whose budget is that of one run at a time, and the template in it."""
    environment = environment_class()(
        Budget(), trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment, environment.from_string(template)


_rendering = threading.Lock()


def control_tokens(metadata: Mapping[str, Any]) -> list[str]:
    """The names of a file's control tokens."""
    tokens = metadata.get("tokenizer.ggml.tokens") or ()
    types = metadata.get("tokenizer.ggml.token_type") or ()
    kinds = zip(tokens, types, strict=False)
    return [t for t, kind in kinds if kind in (CONTROL, UNKNOWN) and isinstance(t, str) and t]


class Tokenizer(Protocol):
    """What `Contents` needs of a target."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


class Contents:
    """Messages whose contents stay text, whatever they contain.

    The name of a control token in a content gets a mark before it, which the template copies like any character. In
    the rendered prompt the marked names are tokenized as text, all else with control tokens. A prompt without a marked
    name is tokenized as a whole.
    """

    def __init__(self, target: Tokenizer, messages: Sequence[Message], template: str, control: Sequence[str]) -> None:
        """`control` are the names of the target's control tokens."""
        self._target = target
        said = "".join(str(text) for message in messages for text in message.values())
        names_in = [name for name in control if name in said]
        self._names = [re.escape(name) for name in sorted(names_in, key=len, reverse=True)]
        self._mark = next(mark for mark in map(chr, MARKS) if mark not in said and mark not in template)
        names = "|".join(self._names)
        self.messages: list[Message] = [
            # a look-ahead, because names may overlap
            {key: re.sub(f"(?={names})", self._mark, str(text)) if names else text for key, text in message.items()}
            for message in messages
        ]

    def tokens(self, rendered: str) -> list[int]:
        """Token ids of the template's output."""
        if not self._names:
            return list(self._target.tokenize(rendered, add_special=True, parse_special=True))
        found: list[int] = []
        for i, part in enumerate(re.split(f"({self._mark}(?:{'|'.join(self._names)}))", rendered)):
            if part.startswith(self._mark):
                found += self._text(part.lstrip(self._mark))
            elif (part := part.replace(self._mark, "")) or i == 0:  # the first one gets what a prompt begins with
                found += self._target.tokenize(part, add_special=i == 0, parse_special=True)
        return found

    def _text(self, text: str) -> list[int]:
        """Token ids of a text in the middle of a prompt, without the space that SentencePiece begins a text with."""
        if self._target.metadata.get("tokenizer.ggml.model") == SENTENCEPIECE:
            line, both = (self._target.tokenize(t, add_special=False) for t in ("\n", "\n" + text))
            if both[: len(line)] == line:
                return list(both[len(line) :])
        return list(self._target.tokenize(text, add_special=False))


class _Refused(Exception):
    """The template called raise_exception."""


def _refuse(message: object = "") -> NoReturn:
    raise _Refused(f"it says {str(message)!r}")


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 16) if isinstance(indent, int) else indent)
