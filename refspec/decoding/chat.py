"""Messages -> the prompt text a chat model was trained on, by the Jinja template its GGUF carries.

Not a tokenizer. A template is a program from a downloaded file: it runs in Jinja's sandbox, with the settings the
public chat templates are written for (trim_blocks, lstrip_blocks, `raise_exception`, `strftime_now`, `tojson`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from refspec.errors import CheckpointError

FAILURES = ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError  # of a template's code
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


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


class _Refused(Exception):
    """The template called raise_exception."""


def _refuse(message: object = "") -> NoReturn:
    raise _Refused(f"it says {str(message)!r}")


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=False, indent=indent)
