"""Is speculative output the plain output? Many prompts, every first difference explained by llama.cpp's own rounding.

This checks a pair, a build and a machine; tests prove the rule by enumeration. With F32 weights, F32 cache and no flash
attention nothing may differ. Elsewhere a difference is legitimate only where two candidates are closer than the
rounding between batch shapes, which `compare.explain` measures on the output at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from refspec.evaluate.compare import Difference, explain
from refspec.evaluate.outputs import finished
from refspec.reference.sampling import Sampler
from refspec.session import Session


@dataclass
class Equality:
    """What `check` found for one sampler: prompts tried, tokens compared, and the differences."""

    sampler: Sampler
    prompts: int = 0
    tokens: int = 0
    verify_steps: int = 0
    differences: list[tuple[int, Difference]] = field(default_factory=list)  # (index of the prompt, difference)

    @property
    def tau(self) -> float:
        """Generated tokens per verify step over all prompts."""
        return self.tokens / self.verify_steps if self.verify_steps else 0.0

    @property
    def unexplained(self) -> int:
        """Differences larger than llama.cpp's rounding: there must be none."""
        return sum(not d.within_noise for _, d in self.differences)

    def as_dict(self) -> dict[str, Any]:
        """The record for `--json`."""
        return {
            "temperature": self.sampler.temperature, "prompts": self.prompts, "tokens": self.tokens, "tau": self.tau,
            "different": len(self.differences), "unexplained": self.unexplained,
            "differences": [
                {"prompt": i, **d._asdict(), "within_noise": d.within_noise} for i, d in self.differences
            ],
        }  # fmt: skip


def check(
    session: Session, prompts: Sequence[str], sampler: Sampler, *, max_tokens: int, seed: int,
    progress: Callable[[], None] = lambda: None,
) -> Equality:  # fmt: skip
    """Generate every prompt with and without speculation (seed + index of the prompt) and compare token by token."""
    found = Equality(sampler)
    for i, prompt in enumerate(prompts):
        options = {"max_tokens": max_tokens, "sampler": sampler, "seed": seed + i}
        fast = finished(session.generate(prompt, **options))  # type: ignore[arg-type]
        plain = finished(session.generate(tokens=fast.prompt, speculate=False, **options))  # type: ignore[arg-type]
        found.prompts += 1
        found.tokens += len(fast.tokens)
        found.verify_steps += fast.statistics.verify_steps
        if fast.tokens != plain.tokens:
            difference = explain(
                session.target, fast.prompt, plain.tokens, fast.tokens, sampler=sampler, seed=seed + i,
                draft_max=session.draft_max, trees=session.tree is not None,
            )  # fmt: skip
            if difference is None:  # one stopped before the other, which no rounding explains
                a, b = len(plain.tokens), len(fast.tokens)
                difference = Difference(min(a, b), -1, -1, "token", float(abs(a - b)), 0.0, 0.0)
            found.differences.append((i, difference))
        progress()
    return found


def advice(session: Session, found: Sequence[Equality]) -> list[str]:
    """What makes outputs equal that differ by rounding, or nothing."""
    if session.batch_invariant or not any(e.differences for e in found):
        return []
    return ["--reproducible exact decodes so that every token rounds alike, and no output differs"]


def describe(found: Equality) -> list[str]:
    """The result in a few lines, every difference with its gap and the limit that rounding sets."""
    how = "greedy" if found.sampler.greedy else f"temperature {found.sampler.temperature:g}"
    lines = [
        f"{how}: {found.prompts} prompts, {found.tokens} tokens, tau {found.tau:.2f}: {len(found.differences)} "
        f"differ from plain decoding, {found.unexplained} of them unexplained by rounding"
    ]
    for i, d in found.differences:
        verdict = "within" if d.within_noise else "NOT WITHIN"
        lines.append(
            f"  prompt {i + 1}, token {d.position + 1}: {d.gap:.2g} {d.unit} between the candidates, {verdict} the "
            f"{d.limit:.2g} that a rounding of {d.noise:.2g} per logit can close"
        )
    return lines
