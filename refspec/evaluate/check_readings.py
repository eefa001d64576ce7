"""Which reading of a drafter's switches and layers was it trained with? Every usual mistake is undone and compared.

The reading it was trained with has the smallest cross-entropy on the target's output and the longest drafts. The
comparison is paired, so that a shift of the layers by one, which costs a robust drafter one draft token in a hundred,
can be told from chance. llama.cpp is not needed: the drafter is the reference code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from refspec import native
from refspec.errors import RefspecError
from refspec.evaluate.finding import MISFIT, NOTE, OK, Finding
from refspec.evaluate.teacher_forced import Gain, Recording, accepted, gain, scores
from refspec.reference.config import DrafterConfig, Feedback, Residual, RopeStyle, Weights
from refspec.reference.eagle3 import Eagle3Drafter

SURE = 3.5  # standard errors: about one false alarm in two thousand pairs with a dozen readings each
FEW = 40  # tokens below which nothing is concluded
WORSE = 0.98  # of tau: a better reading may not fall below this
SHORT = 1.15  # tau of a drafter about which nothing can be said
PLACES = 240  # places of the greedy output where it drafts


@dataclass(frozen=True)
class Reading:
    """One way to read the drafter: `changes` of its configuration, states that are `late`, and the `fix`."""

    name: str
    fix: str
    changes: dict[str, Any]
    late: int = 0
    usual: bool = True  # a mistake known from the field; the others are worth a note only


def readings(config: DrafterConfig, n_layer: int, target_theta: float | None = None) -> list[Reading]:
    """The usual mistakes undone, one at a time."""
    out = []

    def switch(name: str, value: Any, **more: Any) -> None:
        said = getattr(value, "value", value)
        if isinstance(said, bool):
            said = "yes" if said else "no"
        elif isinstance(said, float):
            said = f"{said:g}"
        option = f"--{name.replace('_', '-')} {said}"
        out.append(Reading(option, f"convert it again with {option}", {name: value} | more))

    switch("feedback", Feedback.PRE_NORM if config.feedback is Feedback.POST_NORM else Feedback.POST_NORM)
    switch("residual", Residual.RAW if config.residual is Residual.NORMED else Residual.NORMED)
    switch("head_norm", not config.head_norm)
    if target_theta and abs(target_theta - config.rope_theta) > 1e-6 * target_theta:
        switch("rope_theta", target_theta)
    other = RopeStyle.HALF_SPLIT if config.rope_style is RopeStyle.INTERLEAVED else RopeStyle.INTERLEAVED
    fix = "it was converted without reordering them: convert it with refspec"
    out.append(Reading("q and k rows in the other RoPE order", fix, {"rope_style": other}))
    fix = "it was trained on tokens paired with the previous state: train it again"
    out.append(Reading("the states of the row before", fix, {}, late=1))
    if config.biases:
        fix = "a program that goes by the flags trained or wrote it: --ignore the biases"
        out.append(Reading("no biases", fix, {"biases": ()}))
    layers, seen = config.capture_layers, {config.capture_layers}
    shifts = [(tuple(b + d for b in layers), True) for d in (-1, 1)]
    shifts.append(((2, n_layer // 2, n_layer - 3), True))
    shifts += [((*layers[:i], b + d, *layers[i + 1 :]), False) for i, b in enumerate(layers) for d in (-1, 1)]
    for ids, usual in shifts:
        if ids not in seen and len(ids) == len(layers) == len(set(ids)) and min(ids) > 0 and max(ids) < n_layer:
            seen.add(ids)
            option = "--layer-ids " + ",".join(map(str, ids))
            out.append(Reading(option, f"convert it again with {option}", {"capture_layers": ids}, usual=usual))
    return out


def boundaries(config: DrafterConfig, tried: Sequence[Reading]) -> tuple[int, ...]:
    """Every boundary of the target that a reading wants."""
    return tuple(sorted({b for r in tried for b in r.changes.get("capture_layers", ())} | set(config.capture_layers)))


@dataclass(frozen=True)
class Compared:
    """One reading compared with the file's: minus cross-entropy, and drafted tokens accepted."""

    reading: Reading
    score: Gain
    taken: Gain

    @property
    def better(self) -> bool:
        """Whether chance does not explain the gain: in cross-entropy without a loss in drafts, or in drafts alone."""
        no_worse = 1 + self.taken.other >= WORSE * (1 + self.taken.as_is)
        useful = 1 + self.taken.other >= SHORT
        return useful and ((self.score.sigmas >= SURE and no_worse) or self.taken.sigmas >= SURE)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for --json."""
        return {
            "tau": 1 + self.taken.other, "cross_entropy": -self.score.other, "sigmas_tau": _finite(self.taken.sigmas),
            "sigmas_cross_entropy": _finite(self.score.sigmas), "better": self.better,
        }  # fmt: skip


def _finite(sigmas: float) -> float:
    return max(min(sigmas, 99.0), -99.0)


def compare(
    config: DrafterConfig, weights: Weights, recorded: tuple[int, ...], sampled: Sequence[Recording],
    greedy: Sequence[Recording], tried: Sequence[Reading], *, depth: int, seconds: float,
    progress: Callable[[str], None],
) -> list[Compared]:  # fmt: skip
    """Judge every reading on recordings of the target, on as many as fit into about `seconds`.

    `recorded` are the boundaries of the recordings, in order. A reading whose tensors are not in the file is left out.
    """

    def build(r: Reading) -> tuple[Eagle3Drafter, list[int]]:
        changed = replace(config, **r.changes)
        biases = {f"{name}.bias" for name in changed.biases}
        held = {name: a for name, a in weights.items() if not name.endswith(".bias") or name in biases}
        return Eagle3Drafter(changed, held, native), [recorded.index(b) for b in changed.capture_layers]  # type: ignore[arg-type]

    as_is, columns = build(Reading("", "", {}))
    began = perf_counter()
    scores(as_is, sampled[:1], columns)
    each = (perf_counter() - began) / max(len(sampled[0].tokens), 1)  # seconds per token
    room = seconds / max(each, 1e-9) / (2 * len(tried) + 2)  # tokens; half of the time for either measure
    kept = [r for i, r in enumerate(sampled) if not i or sum(len(q.tokens) for q in sampled[: i + 1]) <= room]
    context = sum(len(r.tokens) for r in greedy)
    chained = [r for i, r in enumerate(greedy) if not i or sum(len(q.tokens) for q in greedy[: i + 1]) <= room / 2]
    places = min(PLACES, max(int((room - min(room / 2, context)) / depth), 10))
    base = scores(as_is, kept, columns), accepted(as_is, chained, columns, depth, places)
    out = []
    for r in tried:
        progress(f"reading it with {r.name}")
        try:
            drafter, columns = build(r)
            with np.errstate(over="ignore", invalid="ignore"):
                score = scores(drafter, kept, columns, r.late)
                taken = accepted(drafter, chained, columns, depth, places, r.late)
        except RefspecError:  # tensors this reading needs are not in the file, or its states overflow
            continue
        out.append(Compared(r, gain(base[0], np.nan_to_num(score, nan=-1e3, neginf=-1e3)), gain(base[1], taken)))
    return out


def verdict(found: Sequence[Compared], *, unexplained: bool) -> Finding:
    """The reading it was trained with, as far as the outputs tell; `unexplained` when another detector has fired."""
    if not found:
        return Finding("readings", NOTE, "nothing to compare")
    where, tau = "on the target's output", 1 + found[0].taken.as_is
    better = [c for c in found if c.better]
    if better:
        best = max(better, key=lambda c: (c.reading.usual, c.score.other + c.taken.other))
        said = (
            f"{best.reading.name} does better {where}: cross-entropy {-best.score.other:.3f} for "
            f"{-best.score.as_is:.3f} ({best.score.sigmas:.1f} standard errors), replayed tau "
            f"{1 + best.taken.other:.2f} for {tau:.2f} ({best.taken.sigmas:.1f})"
        )
        level = MISFIT if best.reading.usual else NOTE
        return Finding("readings", level, said, f"it was trained otherwise: {best.reading.fix}")
    said = f"no other reading of it does better {where} ({len(found)} tried, replayed tau {tau:.2f})"
    if unexplained:
        cause = "none of the usual mistakes explains it: another target, lost norms, or little training"
        return Finding("readings", NOTE, said, cause)
    return Finding("readings", OK, said)
