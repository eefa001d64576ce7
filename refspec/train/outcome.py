"""What a trained drafter does in front of its target, on prompts that it has not learned from.

Greedy answers to a few held-out prompts: plain, with drafts of fixed lengths, and as refspec decodes by default. Tau is
a count and holds on any machine; speed is this machine's, and doubted where other programs use it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refspec.evaluate.speed import ForeignLoad, busy, run_prompt, total
from refspec.session import load
from refspec.train.answers import Answered, Ids

PROMPTS, TOKENS, LENGTHS = 8, 96, (3, 5)


def held_out_prompts(answered: Answered, documents: Sequence[int]) -> list[Ids]:
    """The prompts of documents, those without one left out, at most PROMPTS."""
    found = []
    for d in documents:
        start, end = answered.starts[d : d + 2]
        mine = answered.mine[start:end]
        if mine.any() and not mine[0]:
            found.append(answered.tokens[start : start + int(mine.argmax())])
    return found[:PROMPTS]


def outcome(model: Path, drafter: Path, prompts: Sequence[Ids], **how: Any) -> dict[str, float]:
    """`tau K` by draft length, tokens a second `plain` and `drafted`; `how` goes to `refspec.load`."""
    foreign = ForeignLoad()
    room = max(map(len, prompts)) + TOKENS + 8
    with load(model, drafter, n_ctx=room, **how) as session:
        kinds: dict[str, dict[str, Any]] = {"plain": {"speculate": False}, "drafted": {}}
        kinds |= {f"tau {k}": {"adaptive": False, "draft_max": k} for k in LENGTHS}
        run_prompt(session, prompts[0].tolist(), {}, 8)  # page in what the first timed run would otherwise pay for
        runs = {
            name: total([run_prompt(session, p.tolist(), options, TOKENS).statistics for p in prompts])
            for name, options in kinds.items()
        }
    found = {name: runs[name].tau if name.startswith("tau") else runs[name].tokens_per_second for name in kinds}
    return found | {"foreign_cores": foreign.cores() or 0.0}


def described(name: str, figures: dict[str, float]) -> list[str]:
    """One variant's lines of the summary: held-out agreement of the training, then its outcome."""
    agree = [figures[k] for i in range(99) if (k := f"{name}_agree_{i}") in figures]
    lines = [f"{name}: agreement {' '.join(f'{a:.2f}' for a in agree)} by position on held-out answers"]
    if f"{name}_drafted" in figures:
        taus = ", ".join(f"{figures[f'{name}_tau {k}']:.2f} at draft length {k}" for k in LENGTHS)
        plain, fast = figures[f"{name}_plain"], figures[f"{name}_drafted"]
        lines.append(f"  tau {taus}: {PROMPTS} held-out prompts, greedy")
        lines.append(f"  {plain:.0f} tokens/s plain, {fast:.0f} with it: {fast / plain:.2f}x")
        if (why := busy(figures[f"{name}_foreign_cores"], os.cpu_count())) is not None:
            lines.append(f"  {why}")
    return lines
