"""What a run did: counts and times are recorded, every rate is derived from them.

Not a benchmark, and no clock: times come from the caller. The definitions, because they differ between code bases:

  verify step  one run of the target that decides tokens; without a drafter it decides exactly one
  tau          generated tokens / verify steps: accepted draft tokens and the bonus (or correcting) token both count
  acceptance at position i
               of the verify steps that judged an i-th draft token, the share that accepted at least i
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple


class Seconds(NamedTuple):
    """Wall time split by who spent it, in seconds; `other` is refspec itself, in and around the calls."""

    target: float
    drafter: float
    other: float

    @property
    def total(self) -> float:
        """Wall time of the whole."""
        return self.target + self.drafter + self.other


class Step(NamedTuple):
    """One verify step: what was drafted, what was decided, what it cost."""

    position: int  # index of the first output token this step decided
    draft: Sequence[int]  # [k] draft tokens the target judged
    accepted: int  # how many of them were accepted, 0..k
    tokens: Sequence[int]  # [accepted + 1] tokens decided; [accepted] when an accepted draft token ended the output
    seconds: Seconds
    stop: str | None = None  # on the last step: length | end | context
    nodes: int = 0  # of a tree: draft tokens the target judged on all its paths
    depth: int = 0  # of a tree: draft tokens on its longest path, which may be another one than `draft`


@dataclass
class Statistics:
    """Counts and times of one generation; add Steps while it runs, read rates at any moment."""

    prompt_tokens: int = 0
    prompt_kept: int = 0  # of these, read for the run before
    prompt_seconds: float = 0.0  # reading the prompt, target and drafter together; in no rate below
    generated_tokens: int = 0  # an end-of-generation token counts: the target decided it
    verify_steps: int = 0
    judged: list[int] = field(default_factory=list)  # judged[i]: verify steps with more than i draft tokens
    accepted: list[int] = field(default_factory=list)  # accepted[i]: verify steps that accepted more than i
    tree_sizes: Counter[int] = field(default_factory=Counter)  # verify steps by the nodes of their tree
    target_seconds: float = 0.0
    drafter_seconds: float = 0.0
    other_seconds: float = 0.0
    stop: str = "running"  # length | end | context | interrupted | running

    def add(self, step: Step) -> None:
        """Count one verify step."""
        self.verify_steps += 1
        self.generated_tokens += len(step.tokens)
        depth = max(len(step.draft), step.depth)
        while len(self.judged) < depth:
            self.judged.append(0)
            self.accepted.append(0)
        for i in range(depth):
            self.judged[i] += 1
        for i in range(step.accepted):
            self.accepted[i] += 1
        if step.nodes:
            self.tree_sizes[step.nodes] += 1
        self.target_seconds += step.seconds.target
        self.drafter_seconds += step.seconds.drafter
        self.other_seconds += step.seconds.other

    @property
    def seconds(self) -> Seconds:
        """Decode time by who spent it, in seconds, without the prompt."""
        return Seconds(self.target_seconds, self.drafter_seconds, self.other_seconds)

    @property
    def tau(self) -> float:
        """Generated tokens per verify step, the bonus token included; 0 before the first step."""
        return self.generated_tokens / self.verify_steps if self.verify_steps else 0.0

    @property
    def accepted_by_position(self) -> list[float]:
        """[K] share of steps that accepted at least i+1 draft tokens, of those that judged as many."""
        return [accepted / judged for accepted, judged in zip(self.accepted, self.judged, strict=True)]

    @property
    def steps_by_drafted(self) -> list[int]:
        """[K+1] verify steps that judged exactly 0, 1, ..., K draft tokens."""
        more = [self.verify_steps, *self.judged, 0]  # more[k]: steps with at least k
        return [a - b for a, b in pairwise(more)]

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of decoding, without the prompt."""
        return self.generated_tokens / self.seconds.total if self.seconds.total > 0 else 0.0

    @property
    def own_share(self) -> float:
        """Refspec's own time as a share of decoding, 0..1."""
        return self.other_seconds / self.seconds.total if self.seconds.total > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The record for `--json`: counts, then what follows from them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "prompt_kept": self.prompt_kept,
            "prompt_seconds": self.prompt_seconds,
            "generated_tokens": self.generated_tokens,
            "verify_steps": self.verify_steps,
            "tau": self.tau,
            "accepted_by_position": self.accepted_by_position,
            "steps_by_drafted": self.steps_by_drafted,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds._asdict(),
            "stop": self.stop,
        }
