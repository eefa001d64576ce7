"""Statistics in words, for stderr. Not a measurement: every number comes from `metrics` and `compare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refspec.evaluate.compare import Difference
from refspec.reference.metrics import Statistics

STOPS = {
    "end": "the model ended its text",
    "length": "the wanted number of tokens is reached",
    "context": "the context is full; what was generated is kept (raise -c for more)",
    "interrupted": "interrupted",
    "running": "not finished",
}


def describe(statistics: Statistics, name: str) -> list[str]:
    """A run in a few lines."""
    s = statistics
    lines = [
        f"{name}: {s.generated_tokens} tokens in {s.seconds.total:.2f} s, {s.tokens_per_second:.1f} tokens/s, "
        f"tau {s.tau:.2f} over {s.verify_steps} verify steps"
    ]
    if s.accepted_by_position:
        lines.append("  accepted by position: " + " ".join(f"{share:.2f}" for share in s.accepted_by_position))
    if len(s.windows) - s.windows.count(0) > 1:
        lines.append("  drafted per step: " + ", ".join(f"{k} in {n}" for k, n in enumerate(s.windows) if n))
    if total := s.seconds.total:
        parts = zip(("target", "drafter", "refspec itself"), s.seconds, strict=True)
        lines.append("  time: " + ", ".join(f"{who} {part:.3f} s ({part / total:.0%})" for who, part in parts))
    lines.append(f"  prompt: {s.prompt_tokens} tokens in {s.prompt_seconds:.2f} s; stopped: {STOPS[s.stop]}")
    return lines


def describe_comparison(
    fast: Statistics,
    plain: Statistics,
    draft_sampling: bool,
    same: bool,
    difference: Difference | None,
    show: Callable[[int], str],
) -> list[str]:
    """The plain run beside the speculative one: speedup, and whether the text is the same or why not."""
    ratio = speedup(fast, plain)
    lines = describe(plain, "plain")
    lines.append(f"speedup: {ratio:.2f}x")
    if ratio < 1:
        lines[-1] += "; speculation LOSES here: plain decoding (--no-spec) or another --draft-max is faster"
    if same:
        lines.append("identical: yes, every token")
    elif draft_sampling:
        lines.append(
            "identical: no, and not promised: with --draft-sampling the law is the same, the text of a seed is not"
        )
    elif difference is None:
        lines.append("identical: as far as both went; one run stopped before the other")
    else:
        d = difference
        what = "logits" if d.unit == "logit" else "of cumulative probability"
        lines.append(
            f"identical: no; token {d.position + 1} is {show(d.plain)!r} plain and {show(d.speculative)!r} speculative, {d.gap:.2g} {what} apart"
        )
        lines.append(
            f"  the engine's rounding between batch shapes, measured on this text, is {d.noise:.2g} per logit and closes gaps up to {d.limit:.2g}: "
            + ("within the noise (--exact avoids it)" if d.within_noise else "NOT within the noise: please report this")
        )
    return lines


def describe_prediction(predicted: float | None, measured: float) -> str:
    """The speedup that the costs stored by `refspec tune` predict for what was drafted and accepted, beside the one
    measured.
    """
    if predicted is None:
        return "predicted: unknown; `refspec tune` measures what steps cost here"
    return f"predicted: {predicted:.2f}x by the costs of `refspec tune` and this run's acceptance, measured {measured:.2f}x"


def speedup(fast: Statistics, plain: Statistics) -> float:
    """Tokens per second, speculative over plain; 0 when the plain run has none."""
    return fast.tokens_per_second / plain.tokens_per_second if plain.tokens_per_second else 0.0


def difference_as_dict(difference: Difference | None) -> dict[str, Any] | None:
    """The record for `--json`."""
    return None if difference is None else difference._asdict() | {"within_noise": difference.within_noise}
