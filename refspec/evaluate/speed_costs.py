"""What the parts of a verify step cost on this machine, and the speedup that follows from them.

Not a benchmark: `speed.py` runs the kinds, and measured and predicted explain each other. With c(r) the time of one
target run over r tokens, s the time of one drafted token, x that of feeding accepted tokens back and
o refspec's own time per step:

    predicted speedup of draft length k  =  tau(k) (c(1) + o_plain) / (c(k+1) + k s + x + o)
    tau(k)                               =  1 + sum of accepted_by_position[0..k-1]

A tree's steps differ in size and in how often its drafter runs, so there d, the drafter's time per step with the
feeding back in it, and o are those of the tree's own runs, and c is averaged over the nodes N its steps had:

    predicted speedup of a tree          =  tau (c(1) + o_plain) / (mean of c(N+1) + d + o)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from refspec.decoding.cycle import prefill
from refspec.errors import RefspecError
from refspec.reference.metrics import Statistics
from refspec.reference.ops import Array
from refspec.session import Session
from refspec.tuning.step_costs import time_rows, usual

ROWS = 8  # the cost curve goes at least so far
ROUNDS, SAMPLES = 5, 5  # of every point of the cost curve: rounds, and timed runs in a row per round
OFTEN = 0.05  # share of a tree's steps from which a number of rows is timed


def cost_curve(session: Session, text: Sequence[int], more: Sequence[int] = ()) -> dict[str, Any]:
    """Usual seconds of verifying 1..R tokens of a sequence, of one drafted token, and of feeding back two accepted.

    `more` are other numbers of tokens to time, such as a tree's; a sequence shorter than those goes round.
    Raises RefspecError for a sequence too short, or a context too small.
    """
    target, drafter, k = session.target, session.drafter, session.draft_max
    assert drafter is not None  # measure() is for sessions that have one
    largest = max(ROWS, k + 1)
    every = [*range(1, largest + 1), *sorted(set(more) - set(range(largest + 1)))]
    base = min(min(len(text), target.n_ctx) - largest, target.n_ctx - every[-1])
    if base < 2:
        raise RefspecError(f"bench: the text of {len(text)} tokens is too short for a cost curve; raise -n or -c")
    around = list(islice(cycle(text[base:]), every[-1]))  # what a token is does not change what a row costs
    target.capturing = True
    for _ in prefill(target, drafter, text[: base + 1]):
        pass
    draft, extend = [], []

    def drafting(features: Array) -> None:
        for sample in range(SAMPLES + 1):  # as a decode cycle has it: feed back, then draft; the first pays for graphs
            began = perf_counter()
            drafter.extend(np.asarray(text[base + 1 : base + 3], np.int32), features)
            extended = perf_counter()
            drafted = len(drafter.draft(k).tokens)
            if sample:
                draft.append((perf_counter() - extended) / max(drafted, 1))
                extend.append(extended - began)
            drafter.rollback(base)

    how: dict[str, Any] = {"samples": SAMPLES, "drafted": lambda r: k, "each_round": drafting}
    verify, _ = time_rows(target, drafter, around, base, [every] * ROUNDS, **how)
    costs = usual(verify)
    return {
        "verify_seconds": [costs[rows] for rows in every[:largest]],
        "more_verify_seconds": {rows: costs[rows] for rows in every[largest:]},
        "draft_token_seconds": median(draft), "extend_seconds": median(extend),
    }  # fmt: skip


def predict(acceptance: Sequence[float], costs: dict[str, Any], own: float, own_plain: float) -> list[float]:
    """Predicted speedup of draft lengths 1..K over plain decoding, by the first formula in the head of this file."""
    verify, out, tau = costs["verify_seconds"], [], 1.0
    for k, share in enumerate(acceptance, start=1):
        if k >= len(verify):
            break
        tau += share
        step = verify[k] + k * costs["draft_token_seconds"] + costs["extend_seconds"] + own
        out.append(tau * (verify[0] + own_plain) / step)
    return out


def rows_of(run: Statistics) -> dict[int, int]:
    """Verify steps of a run with trees by the rows they verified, the pending token's one included."""
    found = {nodes + 1: steps for nodes, steps in sorted(run.tree_sizes.items())}
    without = run.verify_steps - sum(found.values())
    return {1: without, **found} if without else found


def sizes_to_time(run: Statistics, timed: int) -> list[int]:
    """Numbers of rows above `timed` that are worth timing for a run with trees: the frequent ones and the largest."""
    found = rows_of(run)
    often = {rows for rows, steps in found.items() if steps >= OFTEN * run.verify_steps}
    return sorted(rows for rows in often | {max(found)} if rows > timed)


def predict_tree(run: Statistics, costs: dict[str, Any], own_plain: float) -> float:
    """Predicted speedup of a run with trees over plain decoding, by the second formula in the head of this file.

    Only the target's part of a step is predicted. Left out: what a row of several paths costs more than one of a single
    path, a graph for another number of rows than before, and the length of the sequence. Numbers of rows that were not
    timed lie on a line between those that were, though real costs have steps.
    """
    timed = dict(enumerate(costs["verify_seconds"], start=1)) | costs["more_verify_seconds"]
    rows = rows_of(run)
    each = np.interp(list(rows), sorted(timed), [timed[r] for r in sorted(timed)])
    target = float(np.average(each, weights=list(rows.values())))
    step = target + (run.drafter_seconds + run.other_seconds) / run.verify_steps
    return run.tau * (costs["verify_seconds"][0] + own_plain) / step
