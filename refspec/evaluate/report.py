"""Statistics in words, for stderr. Not a measurement: every number comes from `metrics` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from refspec.evaluate.compare import Difference
from refspec.reference.metrics import Statistics

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def describe(statistics: Statistics, name: str) -> list[str]:
    """A run in a few lines."""
    s = statistics
    lines = [
        f"{name}: {s.generated_tokens} tokens in {s.seconds.total:.2f} s, {s.tokens_per_second:.1f} tokens/s, "
        f"{tokens_per_call(s)}"
    ]
    if s.accepted_by_position:
        lines.append(f"  {kept(s.accepted_by_position)}")
    if len(made := guesses(s)) > 1:
        lines.append(f"  {guessed(made)}")
    if total := s.seconds.total:
        parts = zip(("target", "drafter", "refspec itself"), s.seconds, strict=True)
        lines.append("  time: " + ", ".join(f"{who} {part:.3f} s ({part / total:.0%})" for who, part in parts))
    held = f", {s.prompt_kept} of them held already," if s.prompt_kept else ""
    lines.append(f"  prompt: {s.prompt_tokens} tokens{held} in {s.prompt_seconds:.2f} s; {stopped(s)}")
    return lines


def tokens_per_call(s: Statistics) -> str:
    """Tau, and of how many verify steps."""
    return f"{s.tau:.2f} tokens per model call (tau), {s.verify_steps} call{'s' * (s.verify_steps != 1)}"


def kept(shares: Sequence[float]) -> str:
    """Acceptance by position."""
    named = [ORDINALS[i] if i < len(ORDINALS) else f"{i + 1}th" for i in range(len(shares))]
    return "guesses kept: " + ", ".join(f"{name} {100 * x:.0f} %" for name, x in zip(named, shares, strict=True))


def guesses(s: Statistics) -> dict[int, int]:
    """{draft tokens, of a tree its nodes: verify steps that had so many}."""
    if s.tree_sizes:
        without = s.verify_steps - sum(s.tree_sizes.values())
        return ({0: without} if without else {}) | dict(sorted(s.tree_sizes.items()))
    return {k: steps for k, steps in enumerate(s.steps_by_drafted) if steps}


def guessed(made: Mapping[int, int]) -> str:
    """`guesses` in words."""
    named = [f"{k or 'none'} {'once' if steps == 1 else f'{steps} times'}" for k, steps in made.items()]
    return "tokens guessed per call: " + ", ".join(named)


def stopped(s: Statistics) -> str:
    """Why a run ended."""
    return {
        "end": "the model ended its answer",
        "length": f"stopped after {s.generated_tokens} tokens (-n)",
        "context": "the context is full, what was generated is kept (-c makes room for more)",
        "interrupted": "interrupted",
        "running": "not finished",
    }[s.stop]


def describe_comparison(
    fast: Statistics, plain: Statistics, draft_sampling: bool, same: bool, difference: Difference | None,
    show: Callable[[int], str], *, adaptive: bool = False, busy: str | None = None,
) -> list[str]:  # fmt: skip
    """The plain run beside the speculative one: speedup, without a verdict when `busy`, and whether outputs differ."""
    ratio = speedup(fast, plain)
    lines = describe(plain, "plain")
    if busy is not None:
        lines += [busy, f"speedup: {ratio:.2f}x measured, no verdict"]
    else:
        lines.append(f"speedup: {ratio:.2f}x")
        if ratio < 1:
            other = "" if adaptive else "--adaptive, or "
            lines.append(f"guessing was slower here ({ratio:.2f}x); try {other}--no-spec")
    if same:
        lines.append("identical: yes, every token")
    elif draft_sampling:
        lines.append(
            "identical: no, and not promised: with --draft-sampling the distribution is the same, the output of a seed "
            "is not"
        )
    elif difference is None:
        lines.append("identical: as far as both went; one run stopped before the other")
    else:
        d = difference
        what = "logits" if d.unit == "logit" else "of cumulative probability"
        lines.append(
            f"identical: no; token {d.position + 1} is {show(d.plain)!r} plain and {show(d.speculative)!r} "
            f"speculative, {d.gap:.2g} {what} apart"
        )
        verdict = "within the noise (--reproducible exact avoids it)"
        if not d.within_noise:
            verdict = "NOT within the noise: please report this"
        lines.append(
            f"  the engine rounds differently for batches of other sizes: {d.noise:.2g} per logit on this output, "
            f"which closes gaps up to {d.limit:.2g}: {verdict}"
        )
    return lines


def describe_prediction(predicted: float | None, measured: float, command: str = "refspec tune") -> str:
    """The speedup that stored costs predict for what was drafted and accepted, or the command that stores them."""
    if predicted is None:
        return f"run `{command}` once for a forecast"
    how = "by the costs of `refspec tune` and the guesses kept here"
    return f"forecast: {predicted:.2f}x {how}, measured {measured:.2f}x"


def speedup(fast: Statistics, plain: Statistics) -> float:
    """Tokens per second, speculative over plain; 0 when the plain run has none."""
    return fast.tokens_per_second / plain.tokens_per_second if plain.tokens_per_second else 0.0


def difference_as_dict(difference: Difference | None) -> dict[str, Any] | None:
    """The record for `--json`."""
    return None if difference is None else difference._asdict() | {"within_noise": difference.within_noise}
