"""Will it pay here? What one token and several cost, measured once for a pair on this machine; the best setting.

Not a benchmark of prompts: `bench` is. The settings are tried one after another, not every combination: first flash
attention, cache type and who multiplies, on all threads, then the numbers of threads on the best of them. Acceptance is
counted once, because no setting changes it beyond rounding. With costs c(r) of r tokens verified together, and the
drafter's per verify step (`adaptive/costs.py`),

    predicted speedup of draft length k  =  tau(k) (c(1) + o_plain) / (c(k+1) + feed + draft (k - 1) + o)
    tau(k)                               =  1 + sum of accepted shares

with o and o_plain refspec's own time in a step, which on a small model is not small. Where two tokens cost less than
one, a single token is run beside a copy of itself, and c(1) above is c(2). A cache in q8_0 rounds keys and values: it
is shown, and never chosen without being asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from refspec import named
from refspec.errors import BackendError, RefspecError
from refspec.evaluate import speed
from refspec.evaluate.outputs import finished
from refspec.evaluate.prompts import built_in
from refspec.gguf.io import read_gguf_header
from refspec.llama.amx import repacking_works
from refspec.llama.context import default_threads
from refspec.llama.target import DEFAULT_N_CTX
from refspec.llama.weights import why_not
from refspec.reference.metrics import Statistics
from refspec.session import GREEDY, Session, load
from refspec.tuning import step_costs, store
from refspec.tuning.step_costs import MOST

ROUNDS = 3
PROMPTS, TOKENS = 6, 64  # for the acceptance: a prompt of each built-in kind, or the easy ones alone decide the verdict
NEVER_CHOSEN = ("q8_0",)
PAIRED = 0.95  # of a single token's cost, at which a pair is worth it

Setting = dict[str, Any]


def run(
    model: str | None = None, drafter: str | None = None, *, n_ctx: int = 0, gpu_layers: int = 0,
    threads: int | None = None, rounds: int = ROUNDS, after: int | None = None,
    progress: Callable[[int, int, str], None] = lambda done, all, what: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, choose and store; returns the record.

    `threads` is the most to try, every processor if not given. Costs are those `after` so many tokens of context, 128
    or what fits if not given. Raises as `load`, and RefspecError where the context is too small to measure in.
    """
    pair = named.pair(model, drafter)
    model, drafter = str(pair.model), None if pair.drafter is None else str(pair.drafter)
    names = {"model": model, "drafter": drafter, "n_ctx": n_ctx, "gpu_layers": gpu_layers}
    cores = threads or default_threads()
    kernels = ["auto"] if why_not() is None and not gpu_layers else []  # then refspec's
    kernels += ["repack", "stored"] if repacking_works() else ["stored"]
    forms: list[Setting] = [
        {"flash_attn": flash, "kv_type": kv, "matmul": matmul}
        for matmul in kernels
        for flash, kv in (("off", "f16"), ("off", "f32"), ("on", "f16"), ("on", "q8_0"))
    ]
    counts = sorted({1, *(n for n in (2, 4, 6, 8, 12, 16, 24, 32) if n < cores), cores})
    total, foreign = len(forms) + len(counts), speed.ForeignLoad()
    tried: list[Setting] = []
    seen = Seen([], 0.0, 0.0)
    refused = [] if repacking_works() else ["repack: the AMX kernels of this llama.cpp crash on this processor"]
    for i, form in enumerate(forms):
        progress(i, total, describe_form(form))
        try:
            session = _session(names, form | {"threads": cores, "threads_batch": cores})
        except BackendError as error:
            if not tried:  # the plainest form: this is not about the form
                raise
            refused.append(f"{describe_form(form)}: {error}")
            continue
        with session:
            if not tried and session.drafter is not None:
                seen = acceptance(session)
            tried.append(form | {"threads": cores, "threads_batch": cores} | _priced(session, rounds, seen, after))
    best = max((s for s in tried if s["kv_type"] not in NEVER_CHOSEN), key=lambda s: s["tokens_per_second"])
    form = {name: best[name] for name in ("flash_attn", "kv_type", "matmul")}
    by_count: dict[int, Setting] = {}
    for i, n in enumerate(counts, start=len(forms)):
        progress(i, total, f"{n} threads")
        with _session(names, form | {"threads": n, "threads_batch": n}) as session:
            by_count[n] = form | {"threads": n, "threads_batch": n} | _priced(session, rounds, seen, after)
            tried.append(by_count[n])
    one = min(counts, key=lambda n: by_count[n]["target"][1])
    several = max(counts, key=lambda n: by_count[n]["tokens_per_second"])
    costs = by_count[several]
    rows, paired = paired_rows({**costs["target"], 1: by_count[one]["target"][1]})
    final = verdict(rows, costs["feed"], costs["draft"], seen)
    chosen = form | {"threads": one, "threads_batch": several, "threads_draft": several}
    if paired:
        chosen["pair_rows"] = True
    if seen.accepted:
        chosen["draft_max"] = max(final["best"], 1)
    record = {
        "chosen": chosen,
        "costs": {"target": {str(r): t for r, t in rows.items()}, **{n: costs[n] for n in ("switch", "feed", "draft")},
                  "own": seen.own, "own_plain": seen.own_plain},
        "settings": tried, "refused": refused, "accepted": seen.accepted, "predicted": final["by_length"],
        "speedup": final["speedup"], "paired": paired,
        "foreign_cores": foreign.cores(), "cores": os.cpu_count(),
    }  # fmt: skip
    if after:
        record["after"] = after
    record["file"] = str(store.save(model, drafter, record))
    progress(total, total, "done")
    return record


def check(model: str | None, drafter: str | None, n_ctx: int = 0, after: int | None = None) -> None:
    """Raise what is wrong with the files, or with a context too small for `after`, before anything is measured."""
    pair = named.pair(model, drafter)
    info = read_gguf_header(pair.model)
    if pair.drafter is not None:
        read_gguf_header(pair.drafter)
    trained = info.metadata.get(f"{info.arch}.context_length")
    if n_ctx or trained:
        step_costs.room_in(n_ctx or min(int(trained or 0), DEFAULT_N_CTX), after)


def paired_rows(rows: dict[int, float]) -> tuple[dict[int, float], float]:
    """Costs with a single token run in a pair if that pays, and how much faster that makes plain decoding, else 0."""
    if rows.get(2, math.inf) > PAIRED * rows[1]:
        return rows, 0.0
    return {**rows, 1: rows[2]}, rows[1] / rows[2]


class Seen(NamedTuple):
    """What a few prompts showed of a pair."""

    accepted: list[float]  # [MOST] share of steps that accept at least i + 1 draft tokens; empty without a drafter
    own: float  # seconds of refspec itself in a step that drafts
    own_plain: float  # and in one that does not


def verdict(rows: dict[int, float], feed: float, draft: float, seen: Seen) -> dict[str, Any]:
    """{by_length: predicted speedup of draft lengths 1..K, best: length (0 is plain), speedup, tokens_per_second}."""
    out, tau, plain = [], 1.0, rows[1] + seen.own_plain
    for k, share in enumerate(seen.accepted, start=1):
        tau += share
        if k + 1 in rows:
            out.append(tau * plain / (rows[k + 1] + feed + draft * (k - 1) + seen.own))
    speedup = max([1.0, *out])
    best = out.index(speedup) + 1 if speedup > 1.0 else 0
    return {"by_length": out, "best": best, "speedup": speedup, "tokens_per_second": speedup / plain}


def _priced(session: Session, rounds: int, seen: Seen, after: int | None) -> Setting:
    """What steps cost in one setting, and the verdict on it."""
    costs = step_costs.measure(session.target, session.drafter, step_costs.text_for(session.target, after), rounds)
    return costs | verdict(costs["target"], costs["feed"], costs["draft"], seen)


def _session(names: dict[str, Any], setting: Setting) -> Session:
    return load(**names, **setting, draft_max=MOST, adaptive=False, tuned=False)


def acceptance(session: Session) -> Seen:
    """Runs a few prompts with the longest drafts, and one of them without."""
    runs: list[Statistics] = []
    plain: list[Statistics] = []
    for prompt in built_in(PROMPTS):
        try:
            tokens = session.encode(prompt)
        except RefspecError:
            tokens = step_costs.text_for(session.target)[:32]
        room = max(min(TOKENS, session.target.n_ctx - len(tokens)), 1)
        for kind, speculate in (runs, True), (plain, False):
            if speculate or not plain:
                how: dict[str, Any] = {"max_tokens": room, "speculate": speculate, "sampler": GREEDY}
                kind.append(finished(session.generate(tokens=tokens[: session.target.n_ctx], **how)).statistics)
    fast, slow = speed.total(runs), speed.total(plain)
    own, own_plain = (run.other_seconds / run.verify_steps for run in (fast, slow))
    return Seen(fast.accepted_by_position, own, own_plain)


def describe_form(form: Setting) -> str:
    """A form in a few words, for the progress bar."""
    return f"flash {form['flash_attn']}, {form['kv_type']}, matmul {form['matmul']}"


def predict(record: dict[str, Any], steps: Sequence[int], tokens: int) -> float | None:
    """Predicted speedup of `tokens` tokens decided in steps[k] steps of k drafted tokens; None if unknown."""
    costs = record["costs"]
    rows = {int(r): t for r, t in costs["target"].items()}
    if not tokens or len(steps) > max(rows):
        return None
    feed, draft, own = (costs[name] for name in ("feed", "draft", "own"))
    spent = sum(n * (rows[k + 1] + feed + draft * max(k - 1, 0) + own) for k, n in enumerate(steps))
    return tokens * (rows[1] + costs["own_plain"]) / spent if spent else None
