"""Template perturbations: the same question in a scaffold the drafter was not trained on.

Pure functions of strings. The scaffold is everything a chat template writes around the messages' own words. These
never change, so that what a drafter loses is due to the template. The output stays the target's: it answers the
perturbed prompt, with and without a drafter. Source of the question: Attention Drift (arXiv 2605.09992), which reports
the largest gains under such changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from refspec.decoding.chat import Message

FOREIGN_SYSTEM = (
    "You are the night clerk of a small hotel by the sea. Be brief and polite, never mention the weather, and answer "
    "in the language of the guest."
)
CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
INSTRUCTION = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '### ' + ('Response' if m.role == 'assistant' else 'Instruction') + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{{ '### Response:\n' }}"
)
# Marks of a turn: <|user|>, <|im_start|>user, [INST], and a line that begins "User:" or "### Response:".
_MARK = re.compile(r"</?\|?\w+\|?>\w*|\[/?\w+\]|^#* ?\w+(?=:)", re.M)
_RENAMED = {
    "user": "guest", "assistant": "clerk", "system": "house", "human": "guest", "model": "clerk", "inst": "task",
    "instruction": "task", "response": "answer",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")


class Perturbation(NamedTuple):
    """What is done to a prompt on its way to tokens; a field left out does nothing."""

    about: str  # for people
    system: str | None = None  # a system message put before the others
    template: Callable[[str], str] = lambda own: own  # the Jinja template to render with, given the model's own
    scaffold: Callable[[str], str] = lambda text: text  # applied to the text between the messages' words
    is_raw: bool = False  # no template at all
    has_bos: bool = True


def _without_newlines(text: str) -> str:
    return text.replace("\n", "")


def _with_spaces(text: str) -> str:
    return re.sub(r"\n+", lambda m: "  " + m.group() + "  ", text)


def renamed(text: str) -> str:
    """Role words inside the marks of a turn become other words; case is kept where it is all upper or capitalized."""
    return _in_marks(text, lambda word: _like(word, _RENAMED.get(word.lower(), word)))


def misspelt(text: str) -> str:
    """Words of four letters or more inside the marks of a turn have their last two different neighbours swapped."""
    return _in_marks(text, lambda word: _swapped(word) if len(word) >= 4 else word)


def other_template(own: str) -> str:
    """ChatML for a model that does not use it, instruction headings for one that does."""
    return INSTRUCTION if "<|im_start|>" in own else CHATML


PERTURBATIONS: dict[str, Perturbation] = {
    "none": Perturbation("the model's own template"),
    "no-bos": Perturbation("own template, first token BOS dropped", has_bos=False),
    "no-newlines": Perturbation("newlines of the template dropped", scaffold=_without_newlines),
    "extra-spaces": Perturbation("two spaces on both sides of the template's newlines", scaffold=_with_spaces),
    "foreign-system": Perturbation("a system message of another trade", system=FOREIGN_SYSTEM),
    "renamed-roles": Perturbation("role words renamed: user -> guest, assistant -> clerk", scaffold=renamed),
    "misspelt-tags": Perturbation("two letters swapped in every tag of the template", scaffold=misspelt),
    "other-template": Perturbation("another template (ChatML, or instruction headings)", template=other_template),
    "raw": Perturbation("the text alone, no template", is_raw=True),
}


def around(text: str, contents: Sequence[str], change: Callable[[str], str]) -> str:
    """`change` applied to what is around the `contents`, which occur in the text in this order, perhaps stripped."""
    out, start = "", 0
    for content in contents:
        words = content.strip()
        at = text.find(words, start)
        if at < 0:  # the template rewrote or left out this message
            continue
        out += change(text[start:at]) + words
        start = at + len(words)
    return out + change(text[start:])


def messages(perturbation: Perturbation, given: Sequence[Message]) -> list[Message]:
    """The messages with the perturbation's system message in front, in place of their own."""
    if perturbation.system is None:
        return list(given)
    return [{"role": "system", "content": perturbation.system}, *(m for m in given if m["role"] != "system")]


def _in_marks(text: str, change: Callable[[str], str]) -> str:
    return _MARK.sub(lambda mark: _WORD.sub(lambda word: change(word.group()), mark.group()), text)


def _like(word: str, new: str) -> str:
    if word.isupper():
        return new.upper()
    return new.capitalize() if word[0].isupper() else new


def _swapped(word: str) -> str:
    for i in range(len(word) - 2, -1, -1):
        if word[i] != word[i + 1]:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word
