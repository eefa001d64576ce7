"""Outputs of many prompts in a row, for measurements that look at nothing before an output has ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from refspec.evaluate.prompts import fit
from refspec.session import Generation, Session


def finished(generation: Generation) -> Generation:
    """The same generation, run to its end."""
    for _ in generation:
        pass
    return generation


def outputs(session: Session, prompts: Iterable[str], *, max_tokens: int, **options: Any) -> Iterator[Generation]:
    """A finished generation for each prompt, which is cut to fit; `options` are those of `Session.generate`."""
    for prompt in prompts:
        tokens = fit(session.encode(prompt), session.target.n_ctx - max_tokens)
        yield finished(session.generate(tokens=tokens, max_tokens=max_tokens, **options))
