"""A conversation as the tokens a target reads: under a template perturbation, and padded to a wanted length.

The words of the messages never change; what is around and before them does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refspec.decoding.chat import Message
from refspec.errors import UsageError
from refspec.evaluate.perturb import PERTURBATIONS, around, messages
from refspec.evaluate.prompts import Prompt
from refspec.session import Session

SHORT = 0.9  # a padded prompt below this share of its length had too few other prompts to be padded with


def encode(session: Session, turns: Sequence[str], name: str = "none") -> list[int]:
    """Tokens of turns (user, assistant, user, ...) under a perturbation; without a chat template one turn a line.

    UsageError for a perturbation that finds no template, or nothing in it to change.
    """
    given: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    own = session.encode("\n".join(turns)) if session.chat_template is None else session.encode(given)
    if name == "none":
        return own
    how = PERTURBATIONS[name]
    if session.chat_template is None:
        raise UsageError(f"--perturb {name}: {session.name} has no chat template to change; leave it out")
    if how.is_raw:
        tokens = session.encode("\n".join(turns), raw=True)
    else:
        given = messages(how, given)
        rendered = session.render(given, how.template(session.chat_template))
        scaffold = around(rendered, [m["content"] for m in given], how.scaffold)
        tokens = session.target.tokenize(scaffold, add_special=True, parse_special=True)
    if not how.has_bos and tokens[:1] == [session.target.metadata.get("tokenizer.ggml.bos_token_id")]:
        tokens = tokens[1:]
    if tokens == own:
        raise UsageError(f"--perturb {name} finds nothing to change in the template of {session.name}; leave it out")
    return tokens


def padded(session: Session, prompts: Sequence[Prompt], index: int, length: int, name: str = "none") -> list[int]:
    """Tokens of prompt `index` after a document, made of the other prompts, that fills them up to `length` tokens.

    The document is cut at a word, so there may be fewer tokens. UsageError when the others are too short.
    """
    own = prompts[index].text
    pieces: list[str] = []  # of the document: words with the space after them, each at least one token
    for other in (*prompts[index + 1 :], *prompts[:index]):
        pieces += re.findall(r"\S+\s*", other.text + "\n\n")
        if len(pieces) >= length:
            break

    def tokens(count: int) -> list[int]:
        document = "".join(pieces[:count]).rstrip()
        return encode(session, [f"{document}\n\n{own}" if document else own], name)

    fits, too_many = 0, min(len(pieces), length) + 1
    while too_many - fits > 1:  # largest number of words that fits
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if len(tokens(middle)) <= length else (fits, middle)
    found = tokens(fits)
    if len(found) < SHORT * length:
        raise UsageError(
            f"--context {length}: the other prompts hold too little text to fill it; give more prompts or a shorter"
            " context"
        )
    return found
