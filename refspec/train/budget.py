"""Hours -> how many tokens to learn from and how often: what each stage costs here, measured on the model itself.

With a, l and t the document tokens a second that are answered, turned into lessons and trained on, N tokens and E
epochs take

    seconds  =  N (1 / a + 1 / l + E / t)

and E is what makes training take about as long as making what it is trained on, 1 to MOST_EPOCHS. Where the disk has
no room for the lessons of so many tokens there are fewer, read more often: to make a lesson again for each epoch takes
longer than to train on it (SmolLM2-135M: 470 and 850 tokens a second). What the rates are measured on is not lost: the
answers are the run's first.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from refspec.errors import UsageError

MOST_EPOCHS, MOST_WHEN_FEW = 4, 8
OF_FREE_DISK = 0.8
MARGIN = 0.95  # of the hours: loading, held-out text and the last file take the rest
FEWEST = 20_000  # tokens below which a drafter learns nothing


@dataclass(frozen=True)
class Plan:
    """What is made: all of it decides the result, and a run that goes on must be given the same."""

    tokens: int = 400_000  # of answers, their prompts included
    epochs: float = 3.0
    depth: int = 3  # training-time-test steps
    draft_vocab: int = 8192
    ffn: int | None = None  # feed-forward channels; None: the target's
    feature_norm: str = "per_state"
    feedback: str = "post_norm"
    residual: str = "raw"
    twin: bool = False  # also plain EAGLE-3, on the same batches
    layer_ids: tuple[int, ...] | None = None
    temperature: float | None = None  # of sampled answers; None: as the file recommends, else 0.7
    greedy: float = 0.5  # share of greedy answers
    max_new: int = 256
    max_prompt: int = 512
    teacher_temp: float = 1.0
    seed: int = 1


@dataclass(frozen=True)
class Rates:
    """Document tokens a second of each stage."""

    answers: float
    lessons: float
    training: float

    def seconds(self, tokens: float, epochs: float) -> tuple[float, float, float]:
        """What each stage takes."""
        return tokens / self.answers, tokens / self.lessons, epochs * tokens / self.training


def fit(plan: Plan, hours: float, rates: Rates, most: int | None = None) -> Plan:
    """The plan with as many tokens and epochs as fit into the hours; UsageError where that is too little.

    `most` is the number of tokens whose lessons the disk has room for.
    """
    making = 1 / rates.answers + 1 / rates.lessons
    epochs = float(min(max(round(making * rates.training), 1), MOST_EPOCHS))
    tokens = int(MARGIN * 3600 * hours / (making + epochs / rates.training))
    if tokens < FEWEST:
        needed = FEWEST * (making + epochs / rates.training) / 3600 / MARGIN
        raise UsageError(
            f"--hours {hours:g}: {tokens} tokens are too few to learn from here; give {needed:.1f} or more"
        )
    if most is not None and tokens > most:
        left = MARGIN * 3600 * hours - most * making
        tokens, epochs = most, float(min(max(int(left * rates.training / most), 1), MOST_WHEN_FEW))
    return replace(plan, tokens=tokens, epochs=epochs)


def free_disk(folder: Path) -> int:
    """Bytes that lessons in a run's folder may take: what is free, and what they take already."""
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free + sum(f.stat().st_blocks * 512 for f in folder.glob("lessons/*.bin"))


def check_disk(folder: Path, nbytes: int) -> None:
    """UsageError where the lessons have no room."""
    free = free_disk(folder)
    if nbytes > free:
        raise UsageError(
            f"{folder}: lessons take {nbytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; name another -o, or give"
            " fewer --tokens or --hours"
        )


def described(plan: Plan, rates: Rates, nbytes: int) -> list[str]:
    """The plan in words, before it is begun."""
    parts = rates.seconds(plan.tokens, plan.epochs)
    names = ("answers", "lessons", "training")
    lines = [
        f"plan: {plan.tokens / 1e6:.2f} M tokens, {plan.epochs:g} epochs, {nbytes / 1e9:.1f} GB of lessons on disk"
    ]
    lines += [
        f"  {name:<9} {seconds / 60:6.0f} min at {rate:.0f} tokens/s"
        for name, seconds, rate in zip(names, parts, (rates.answers, rates.lessons, rates.training), strict=True)
    ]
    return [*lines, f"  together  {sum(parts) / 60:6.0f} min"]
