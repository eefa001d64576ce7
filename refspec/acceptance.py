"""Tau and acceptance by position over families of prompts: what a drafter is worth, apart from the machine's speed.

Tau is generated tokens per verify step, the bonus token included; it is summed over a family, not averaged over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from refspec.api import Session
from refspec.bench import total
from refspec.errors import UsageError
from refspec.metrics import Statistics
from refspec.perturb import PERTURBATIONS, around, messages
from refspec.prompts import Prompt, fit
from refspec.sampling import Sampler


def first_of_each(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """At most `count` prompts of each family, in order."""
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        seen[prompt.family] = seen.get(prompt.family, 0) + 1
        if count is None or seen[prompt.family] <= count:
            out.append(prompt)
    return out


def perturbed(session: Session, text: str, name: str) -> list[int]:
    """Tokens of one user message under a perturbation of `perturb.PERTURBATIONS`.

    Raises UsageError for a model without a chat template, and where the perturbation finds nothing to change.
    """
    if name == "none":
        return session.encode(text)
    how = PERTURBATIONS[name]
    if session.chat_template is None:
        raise UsageError(f"--perturb {name}: {session.name} has no chat template to change; leave it out")
    if how.is_raw:
        tokens = session.encode(text, raw=True)
    else:
        given = messages(how, [{"role": "user", "content": text}])
        rendered = session.render(given, how.template(session.chat_template))
        scaffold = around(rendered, [m["content"] for m in given], how.scaffold)
        tokens = session.target.tokenize(scaffold, add_special=True, parse_special=True)
    if not how.has_bos and tokens[:1] == [session.target.metadata.get("tokenizer.ggml.bos_token_id")]:
        tokens = tokens[1:]
    if tokens == session.encode(text):
        raise UsageError(f"--perturb {name} finds nothing to change in the chat template of {session.name}; leave it out")
    return tokens


def measure(
    session: Session,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    *,
    max_tokens: int,
    progress: Callable[[], None],
    perturbation: str = "none",
) -> dict[str, Statistics]:
    """Generate every prompt (first turn) with speculation; statistics by family. The seed is the prompt's number.

    A prompt longer than the context minus `max_tokens` keeps its end: long documents ask their question last. Raises UsageError
    when `max_tokens` leave no room for a prompt.
    """
    room = session.target.n_ctx - max_tokens
    if room < 2:
        raise UsageError(f"{max_tokens} tokens leave no room for a prompt in a context of {session.target.n_ctx}; raise it (-c) or lower -n")
    found: dict[str, list[Statistics]] = {}
    for number, prompt in enumerate(prompts):
        tokens = fit(perturbed(session, prompt.text, perturbation), room)
        run = session.generate(tokens=tokens, max_tokens=max_tokens, sampler=sampler, seed=number)
        for _ in run:
            pass
        found.setdefault(prompt.family, []).append(run.statistics)
        progress()
    return {family: total(runs) for family, runs in found.items()}


def as_dict(found: dict[str, Statistics]) -> dict[str, Any]:
    """For --json: one object per family and `all`."""
    everything = found | {"all": total(list(found.values()))}
    return {
        family: {"tau": s.tau, "generated_tokens": s.generated_tokens, "verify_steps": s.verify_steps,
                 "accepted_by_position": s.accepted_by_position}
        for family, s in everything.items()
    }  # fmt: skip


def table(found: dict[str, Statistics]) -> list[str]:
    """For people: one line per family and `all`."""
    rows = as_dict(found)
    width = max(len(family) for family in rows)
    lines = [f"{'family':<{width}}  tau    tokens  steps  accepted by position"]
    for family, row in rows.items():
        shares = " ".join(f"{share:.2f}" for share in row["accepted_by_position"])
        lines.append(
            f"{family:<{width}}  {row['tau']:.2f}  {row['generated_tokens']:7d}  {row['verify_steps']:5d}  {shares}"
        )
    return lines
