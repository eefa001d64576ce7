"""What verify steps of a pair cost here: for each number of tokens, for a change of that number, for the drafter.

Measured on a few tokens, and not a search: `evaluate/tune.py` tries settings with it. An adaptive session without a
record of `tune` begins with it, because every size of batch is new in its first steps and one disturbed step can turn
speculation off.

A size is how many tokens are verified together: the pending one and those drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from refspec.adaptive.costs import AFTER, TICK
from refspec.decoding.cycle import prefill
from refspec.decoding.drafter import Drafter
from refspec.decoding.target import Target
from refspec.errors import RefspecError
from refspec.reference.ops import Array

MOST = 8  # the longest draft considered
SAMPLES = 4  # runs of one size in a row, after one that builds the graph
CONTEXT = AFTER  # positions held when costs are measured, unless told
WARM, WARM_STEPS = 0.02, 20  # seconds, and steps, at most
KEPT, AWAY = 2, 64  # positions that a run leaves behind for the next one, and how far from the first they may lie
# seconds of single tokens, at the pace of the fastest: plain decoding has the processor's caches for itself, and after
# 20 ms of other work it takes 6 ms to be as fast again
ALONE = 0.02
BUDGET = 0.4  # seconds that a session may spend on this before its first answer
SMALL = 4  # the costs of sizes up to this decide whether to draft at all, and so they are measured more often
SMALL_ROUNDS = 2  # of small sizes for each round of all sizes, within a budget
ROUNDS = 5  # at most: so many tell sizes apart whose costs differ by a few percent
PREFILL = 0.2  # what a token of the sample costs to read, as a share of a step of one token
# of a model too slow for all sizes: these, so many runs of each, after so many positions, each further token guessed to
# cost this share of the first
FEW, FEW_SAMPLES, SHORT, FLAT = (1, 2, 3, 4, 6, MOST + 1), 2, 32, 0.15
QUARTILE = 0.25  # a size is judged by the run that this share of its runs are faster than
SLOW = 2.0  # times that is the most that a run counts as
SAMPLE = (
    "A small drafter proposes tokens, and the target model verifies them in one run. Every number of tokens has its "
    "price: the weights are read once for all of them, but each one is multiplied with them, and looks back at all "
    "that came before.\n"
)  # what the tokens are hardly changes what a step costs


def room_in(n_ctx: int, after: int | None = None) -> int:
    """Positions to measure after: `after`, else CONTEXT or what fits; RefspecError where that is too little."""
    room = min(n_ctx - MOST - 2, after or CONTEXT)
    if room < (after or 8):
        where = f" after {after} tokens" if after else ""
        raise RefspecError(f"a context of {n_ctx} positions is too small to measure in{where}; raise it (-c)")
    return room


def text_for(target: Target, after: int | None = None) -> list[int]:
    """Tokens to measure on: `room_in` and MOST + 1 more, of SAMPLE or any ids; RefspecError for too small a context."""
    wanted = room_in(target.n_ctx, after) + MOST + 1
    try:
        sample = list(target.tokenize(SAMPLE))
    except RefspecError:
        sample = []
    sample = sample or [5 + i % max(target.n_vocab - 8, 1) for i in range(wanted)]
    return (sample * (wanted // len(sample) + 1))[:wanted]


def measure_in_time(target: Target, drafter: Drafter | None) -> dict[str, Any] | None:
    """`measure` in about BUDGET seconds: as many rounds, else sizes, as the first steps say will fit; None if none."""
    try:
        tokens = text_for(target)
    except RefspecError:
        return None
    one = max(min(_first_steps(target, tokens)), TICK)
    small, others = (
        (SAMPLES + 1) * sum(1 + 0.4 * (r - 1) for r in sizes)
        for sizes in (range(2, SMALL + 1), range(SMALL + 1, MOST + 2))
    )
    small += max(SAMPLES + 1, ALONE / one)
    left = BUDGET / one - PREFILL * len(tokens)
    rounds = int(left / ((1 + SMALL_ROUNDS) * small + others))
    if rounds > 0:
        return measure(target, drafter, tokens, min(rounds, ROUNDS), SMALL_ROUNDS * min(rounds, ROUNDS))
    if left > small + others:
        return measure(target, drafter, tokens, 1)
    few, start = (FEW_SAMPLES + 1) * sum(1 + FLAT * (r - 1) for r in FEW), tokens[-(SHORT + MOST + 1) :]
    if BUDGET / one - PREFILL * len(start) <= few:
        return None
    return measure(target, drafter, start, 1, sizes=FEW, samples=FEW_SAMPLES)


def _first_steps(target: Target, tokens: Sequence[int]) -> list[float]:
    """Seconds of single tokens, until caches and threads are warm: the first may take three times as long."""
    target.reset()
    target.decode(tokens[:1], logits="all")
    seconds: list[float] = []
    while not seconds or (len(seconds) < min(WARM_STEPS, len(tokens) - 1) and sum(seconds) < min(WARM, BUDGET)):
        began = perf_counter()
        target.decode(tokens[len(seconds) + 1 : len(seconds) + 2], logits="all")
        seconds.append(perf_counter() - began)
    return seconds


def measure(
    target: Target, drafter: Drafter | None, tokens: Sequence[int], rounds: int, small: int = 0, *,
    sizes: Sequence[int] = range(1, MOST + 2), samples: int = SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """What steps take after the positions of `tokens` but its last MOST + 1, in seconds, as `Costs.of` reads it.

    `after`: positions held; `target`: {size: one run}; `switch`: what the first run of another size takes longer;
    `feed`: the drafter's rows of two accepted tokens, and its first draft token; `draft`: each further one. `rounds`
    are of all `sizes`, `small` further ones of those up to SMALL; `samples` runs of a size count in a round.
    """
    base = len(tokens) - MOST - 1
    target.capturing = drafter is not None and bool(drafter.capture_layers)
    for _ in prefill(target, drafter, tokens[: base + 1]):
        pass
    feeds: list[float] = []
    drafts: list[float] = []

    def drafting(features: Array) -> None:
        if drafter is not None:
            feed, draft = _drafter_costs(drafter, tokens, base, features)
            feeds.append(feed)
            drafts.append(draft)

    turns = [[r for r in sizes if i < rounds or r <= SMALL] for i in range(rounds + small)]
    times, switches = time_rows(
        target, drafter, tokens[base:], base, turns, samples=samples, drafted=lambda r: r - 1, each_round=drafting
    )
    costs = {"after": base, "target": usual(times), "switch": max(median(switches), 0.0), "feed": 0.0, "draft": 0.0}
    if drafter is not None:
        costs |= {"feed": median(feeds), "draft": max(median(drafts), 0.0)}
    return costs


def time_rows(
    target: Target, drafter: Drafter | None, tokens: Sequence[int], base: int, rounds: Sequence[Iterable[int]], *,
    samples: int, drafted: Callable[[int], int], each_round: Callable[[Array], None],
) -> tuple[dict[int, list[float]], list[float]]:  # fmt: skip
    """Seconds of the target on r of `tokens` (KEPT + 1 or more) after `base` positions, for each r of each round.

    Returns ({r: seconds of every run}, extra seconds of each first run of a size, which builds llama.cpp's graph and
    does not count). Between two runs of several tokens the drafter takes two rows and drafts `drafted(r)` tokens, as in
    a decode cycle: what it reads displaces the target's weights in the caches, and the target's threads go to sleep.
    Every run begins two tokens after the one before: in the same place it is up to a tenth faster. `each_round` is
    called after every round with the states of two positions, and leaves the drafter as it was.
    """
    times: dict[int, list[float]] = {}
    switches: list[float] = []
    for sizes in rounds:  # all sizes in turn: a disturbance then hits them alike
        for r in sizes:
            runs: list[float] = []
            at = base
            # not their sum: one disturbed run would end it
            while len(runs) <= samples or (r == 1 and len(runs) * min(runs) < ALONE):
                # there is room at `base`, not always beyond
                if at + KEPT + max(r, drafted(r)) > target.n_ctx or at - base > AWAY:
                    at = base
                target.rollback(at)
                following = [tokens[(at - base + i) % len(tokens)] for i in range(max(r, KEPT + 1))]
                runs.append(seconds_in(target, partial(target.decode, following[:r], logits="all")))
                if drafter is not None and r > 1:
                    drafter.rollback(at)
                    drafter.extend(np.asarray(following[1 : 1 + KEPT], np.int32), target.features()[:KEPT])
                    drafter.draft(drafted(r))
                at += min(r, KEPT)
            if drafter is not None:
                drafter.rollback(base)
            settled = runs[-max(samples, len(runs) // 2) :]
            times.setdefault(r, []).extend(settled)
            switches.append(runs[0] - median(settled))
        target.rollback(base)
        target.decode(tokens[:KEPT], logits="all")
        features = target.features()[:KEPT].copy()
        target.rollback(base)
        each_round(features)
    return times, switches


def usual(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """One number for each size from those of its runs: {size: [seconds]} -> {size: seconds}.

    Other programs slow runs down for tens of milliseconds, of one size more than of another, and draft lengths hang on
    the ratios: medians put two tokens at 0.9 to 1.5 times one, lower quartiles at 1.3 to 1.4. So sizes have their
    quartiles, all scaled by what the runs together take beside them.
    """
    fast = {r: sorted(runs)[int(QUARTILE * len(runs))] for r, runs in times.items()}
    spent = sum(min(t, SLOW * fast[r]) for r, runs in times.items() for t in runs)
    level = spent / sum(len(runs) * fast[r] for r, runs in times.items())
    return {r: level * t for r, t in fast.items()}


def _drafter_costs(drafter: Drafter, tokens: Sequence[int], base: int, features: Array) -> tuple[float, float]:
    """(seconds to take the rows of two accepted tokens and draft one token, seconds of each further draft token)."""
    two, drafted = np.asarray(tokens[base + 1 : base + 3], np.int32), 0

    def draft_many() -> None:
        nonlocal drafted
        drafted = len(drafter.draft(MOST).tokens)

    feed = seconds_in(drafter, lambda: drafter.extend(two, features)) + seconds_in(drafter, lambda: drafter.draft(1))
    again, many = seconds_in(drafter, lambda: drafter.draft(1)), seconds_in(drafter, draft_many)
    drafter.rollback(base)
    return feed, (many - again) / max(drafted - 1, 1)


def seconds_in(model: Target | Drafter, call: Callable[[], object]) -> float:
    """Seconds of `call` inside the model; all of its seconds for a model that does not count them."""
    before, began = model.seconds, perf_counter()
    call()
    took, inside = perf_counter() - began, model.seconds - before
    return inside if inside > 0 else took
