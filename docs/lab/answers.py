"""`python docs/lab answers`: do a target's answers end, repeat themselves, hold Python that parses and right sums?

Not a judge of what answers say. The figures are those a small model can be compared by from one training to the next:

- ended, looping, seq_rep_4: `repetition.py`.
- Python: of the answers with a fenced block of code (```python, or ``` alone), those whose blocks all parse. Nothing is
  run. A block that was cut off at the last token is read as it is.
- sums: of the stretches `number op number ... = number` in an answer, those that are right, to the digits stated.
- concludes: answers that state a result (`the answer is`, `boxed`, `####`).
"""

from __future__ import annotations

import ast
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import click
import numpy as np

from lab import repetition
from refspec.cli.command import Command
from refspec.cli.group import load, model_options
from refspec.cli.measure import json_option, prompt_options
from refspec.cli.penalties import changed, penalty_options
from refspec.evaluate.acceptance import first_of_each
from refspec.evaluate.prompts import Prompt, fit, read
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.session import GREEDY, Session

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_TIMES, _OVER = "*x\u00d7", "/\u00f7"
_OP = f"[-+{re.escape(_TIMES + _OVER)}]"
_SUM = re.compile(
    rf"(?<![\w.])((?:\$?{_NUMBER}\s*{_OP}\s*)+\$?{_NUMBER})\s*=\s*\$?(-?{_NUMBER})(?![\w.]*\d|\s*{_OP}\s*\d)"
)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CONCLUDES = re.compile(r"\banswer\b|\\boxed|####", re.IGNORECASE)


def sums(text: str) -> list[bool]:
    """Whether each stretch `a op b ... = c` is right; a division by zero is not."""
    return [_right(left, right) for left, right in _SUM.findall(text)]


def _right(left: str, right: str) -> bool:
    parts = re.findall(rf"{_NUMBER}|{_OP}", left.replace("$", ""))
    terms = [Fraction(parts[0].replace(",", ""))]
    for op, number in zip(parts[1::2], parts[2::2], strict=True):
        value = Fraction(number.replace(",", ""))
        if op in _TIMES:
            terms[-1] *= value
        elif op in _OVER:
            if not value:
                return False
            terms[-1] /= value
        else:
            terms.append(value if op == "+" else -value)
    stated = right.replace(",", "")
    decimals = len(stated.partition(".")[2])
    allowed = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)  # whole numbers are not rounded
    return abs(sum(terms, Fraction(0)) - Fraction(stated)) <= allowed


def parses(text: str) -> bool | None:
    """Whether every fenced block of Python parses; None without one."""
    blocks = _BLOCK.findall(text)
    if not blocks:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of odd escapes is not asked for
            for block in blocks:
                ast.parse(block)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def measure(
    session: Session,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    sampler: Sampler = GREEDY,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Answers to first turns; {families: [{family, answers, ...}], all: {...}, max_tokens, model}.

    Shares are of 1, None of nothing.
    """
    room = max(session.target.n_ctx - max_tokens, 1)
    rows: list[tuple[str, list[int], str, bool]] = []
    for prompt in prompts:
        generation = session.generate(
            tokens=fit(session.encode(prompt.text), room), max_tokens=max_tokens, sampler=sampler
        )
        for _ in generation:
            pass
        rows.append((prompt.family, generation.tokens, generation.text, generation.statistics.stop == "end"))
        progress()
    families = list(dict.fromkeys(family for family, *_ in rows))
    return {
        "model": session.name,
        "max_tokens": max_tokens,
        "penalties": asdict(sampler.penalties) if sampler.penalties.on else None,
        "families": [_figures(name, [row for row in rows if row[0] == name]) for name in families],
        "all": _figures("all", rows),
    }


def _figures(name: str, rows: Sequence[tuple[str, list[int], str, bool]]) -> dict[str, Any]:
    # As in packed data: each answer a run of ones, a zero between two.
    tokens = np.concatenate([np.array([*ids, 0], np.int64) for _, ids, _, _ in rows])
    mask = np.concatenate([np.array([1] * len(ids) + [0], np.uint8) for _, ids, _, _ in rows])
    found = repetition.measure(tokens, mask, turn_end=-1)
    code = [said for *_, text, _ in rows if (said := parses(text)) is not None]
    stated = [right for *_, text, _ in rows for right in sums(text)]
    return {
        "family": name,
        "answers": len(rows),
        "mean_tokens": found.mean_tokens,
        "ended": _share([ended for *_, ended in rows]),
        "looping": found.looping,
        "seq_rep_4": found.seq_rep_4 if found.seq_rep_4 == found.seq_rep_4 else None,
        "code": len(code),
        "parses": sum(code),
        "sums": len(stated),
        "right": sum(stated),
        "concludes": sum(bool(_CONCLUDES.search(text)) for *_, text, _ in rows),
    }


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` in lines."""
    rows = [*m["families"], *([m["all"]] if len(m["families"]) > 1 else [])]
    name = max(len(f["family"]) for f in rows)
    out = [
        f"{m['model']}: greedy answers of up to {m['max_tokens']} "
        f"tokens{', under penalties' if m['penalties'] else ''}",
        f"{'':{name}} answers  tokens  ended  looping  rep-4   Python parses    sums right  conclude",
    ]
    for f in rows:
        rep = "" if f["seq_rep_4"] is None else f"{f['seq_rep_4']:.2f}"
        code, right = (f"{f[a]} of {f[b]}" if f[b] else "" for a, b in (("parses", "code"), ("right", "sums")))
        out.append(
            f"{f['family']:{name}} {f['answers']:7d} {f['mean_tokens']:7.0f} {f['ended']:6.2f} {f['looping']:8.2f} "
            f"{rep:>6} {code:>15} {right:>13} {f['concludes']:9d}"
        )
    return out


@click.command("answers", cls=Command)
@model_options
@prompt_options
@click.option("-n", "--max-tokens", type=click.IntRange(2), default=256, show_default=True, help="Tokens per answer.")
@click.option("--count", type=click.IntRange(1), help="At most so many prompts of each family.")
@penalty_options
@json_option
def command(
    max_tokens: int, prompts: str | None, families: tuple[str, ...], count: int | None, as_json: bool, **o: Any
) -> None:
    """How greedy answers end, repeat themselves, hold Python that parses and sums that are right, by family of prompts.

    \b
        ended     share that end by themselves, the others were cut off
        looping   share that repeat a stretch of 12 tokens word for word
        rep-4     mean over answers of 1 - distinct / all 4-grams
        Python    of the answers with a block of code, those that parse; nothing is run
        sums      of the stretches `a op b = c`, those that are right
        conclude  answers that state a result
    """
    texts = read(prompts, families)
    texts = texts if count is None else first_of_each(texts, count)
    sampler = Sampler(penalties=changed(Penalties(), o))
    with load(o) as session, click.progressbar(length=len(texts), label="answers", file=sys.stderr) as bar:
        measured = measure(session, texts, max_tokens=max_tokens, sampler=sampler, progress=lambda: bar.update(1))
    click.echo(json.dumps(measured) if as_json else "\n".join(table(measured)))
