"""What speculation costs and gains on this machine: measured, then predicted from its parts, so that each explains the other.

Not a test: times depend on the machine and on who else uses it, so the load of other processes is recorded beside them. Plain and
speculative runs alternate, and so does which of the two goes first. With c(r) the time of one target run over r rows, s the time of one
drafted token, x that of feeding accepted rows back and o refspec's own time per step:

    predicted speedup of draft length k  =  tau(k) (c(1) + o_plain) / (c(k+1) + k s + x + o)
    tau(k)                               =  1 + sum of accepted_by_position[0..k-1]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from refspec.api import ADAPTIVE_MAX, DRAFT_MAX, Generation, Session
from refspec.drafters.fallback import FallbackDrafter
from refspec.drafters.lookup import LookupDrafter
from refspec.errors import RefspecError
from refspec.measure.prompts import built_in
from refspec.metrics import Statistics
from refspec.speculate import prefill
from refspec.windows.measured import in_proportion

PROMPTS = built_in(6)  # one of each kind
ROWS = 8  # the cost curve goes at least so far
ROUNDS, SAMPLES = 5, 5  # of every point of the cost curve: rounds, and timed runs in a row per round
FOREIGN_LIMIT = 0.2  # cores other processes may use before the table warns


def measure(
    session: Session,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    repeat: int,
    progress: Callable[[str], None],
    rival: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Run the benchmark on a session with a drafter and return every number `table` prints; times in seconds.

    `rival`, if given, runs another program on a prompt and returns an object with its `tokens_per_second`.
    """
    load = ForeignLoad()
    variants = kinds_of(session)
    session = variants["chain"][0]
    runs: dict[str, list[Generation]] = {name: [] for name in variants}
    rivals: list[Any] = []
    for i, prompt in enumerate(prompts):
        progress(f"bench: prompt {i + 1} of {len(prompts)}")
        _run(session, prompt, {}, 8)  # pages in what the first timed run would otherwise pay for
        for turn in range(repeat):
            names = list(variants) if turn % 2 else list(variants)[::-1]  # who goes first changes
            for name in names:
                runs[name].append(_run(variants[name][0], prompt, variants[name][1], max_tokens))
            if rival is not None:
                rivals.append(rival(prompt))
    ratios = _ratios(runs["chain"], runs["plain"])
    fast, plain = (total([run.statistics for run in runs[name]]) for name in ("chain", "plain"))
    progress("bench: cost curve")
    costs = cost_curve(session, runs["plain"][-1].prompt + runs["plain"][-1].tokens)
    foreign = load.cores()
    own = fast.other_seconds / fast.verify_steps
    own_plain = plain.other_seconds / plain.verify_steps
    predicted = predict(fast.accepted_by_position, costs, own, own_plain)
    k = len(predicted)
    return {
        "model": session.name,
        "prompts": len(prompts),
        "repeat": repeat,
        "max_tokens": max_tokens,
        "draft_max": session.draft_max,
        "plain_tokens_per_second": median(run.statistics.tokens_per_second for run in runs["plain"]),
        "speculative_tokens_per_second": median(run.statistics.tokens_per_second for run in runs["chain"]),
        "speedup": median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "predicted_speedup": predicted[-1] if k else None,
        "predicted_by_draft_length": predicted,
        "identical": all(a.tokens == b.tokens for a, b in zip(runs["chain"], runs["plain"], strict=True)),
        "kinds": {name: _about(found, runs["plain"]) for name, found in runs.items()},
        "llama_cpp": _about_rival(rivals, runs["plain"]),
        "inflated": session.target.metadata.get("refspec.inflated"),
        "tau": fast.tau,
        "accepted_by_position": fast.accepted_by_position,
        "verify_steps": fast.verify_steps,
        "step_seconds": fast.seconds.total / fast.verify_steps,
        "own_seconds_per_step": own,
        "own_share": fast.own_share,
        "drafter_share": fast.drafter_seconds / fast.seconds.total,
        **costs,
        "foreign_cores": foreign,
        "cores": os.cpu_count(),
    }


def kinds_of(session: Session) -> dict[str, tuple[Session, dict[str, Any]]]:
    """What is compared: a session, on the one target, and the options of its runs, by name."""
    trained, shaped = session.drafter, session
    if shaped.tree is not None:  # what runs trees runs chains too
        session = Session(shaped.target, trained, draft_max=DRAFT_MAX, name=shaped.name)
        session.tuned = shaped.tuned
    lookup = Session(session.target, LookupDrafter(), draft_max=session.draft_max, name=session.name)
    found: dict[str, tuple[Session, dict[str, Any]]] = {
        "plain": (session, {"speculate": False}), "chain": (session, {"adaptive": False}), "adaptive": (session, {"adaptive": True, "draft_max": max(ADAPTIVE_MAX, session.draft_max)}),
        "lookup": (lookup, {}),
    }  # fmt: skip
    if trained is not None and trained.capture_layers and not isinstance(trained, FallbackDrafter):
        both = Session(session.target, FallbackDrafter(trained), draft_max=session.draft_max, name=session.name)
        found["chain + lookup"] = (both, {})
    if shaped.tree is not None:
        found[f"tree {shaped.tree}"] = (shaped, {})
    return found


def _ratios(fast: Sequence[Generation], plain: Sequence[Generation]) -> list[float]:
    return [a.statistics.tokens_per_second / b.statistics.tokens_per_second for a, b in zip(fast, plain, strict=True)]


def _about(runs: Sequence[Generation], plain: Sequence[Generation]) -> dict[str, Any]:
    """One kind in numbers, beside plain decoding of the same prompts."""
    ratios, everything = _ratios(runs, plain), total([run.statistics for run in runs])
    return {
        "tokens_per_second": median(run.statistics.tokens_per_second for run in runs), "speedup": median(ratios),
        "speedup_range": [min(ratios), max(ratios)], "tau": everything.tau, "windows": everything.windows,
        "own_share": everything.own_share, "identical": all(a.tokens == b.tokens for a, b in zip(runs, plain, strict=True)),
    }  # fmt: skip


def _about_rival(runs: Sequence[Any], plain: Sequence[Generation]) -> dict[str, Any] | None:
    if not runs:
        return None
    ratios = [a.tokens_per_second / b.statistics.tokens_per_second for a, b in zip(runs, plain, strict=True)]
    return {
        "tokens_per_second": median(run.tokens_per_second for run in runs), "speedup": median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
    }  # fmt: skip


def _run(session: Session, prompt: str, options: dict[str, Any], max_tokens: int) -> Generation:
    generation = session.generate(prompt, max_tokens=max_tokens, **options)
    for _ in generation:
        pass
    if generation.statistics.verify_steps == 0:
        raise RefspecError(f"bench: nothing was generated for the prompt {prompt[:40]!r}; choose another")
    return generation


def total(runs: Sequence[Statistics]) -> Statistics:
    """The counts and times of several runs as one."""
    out = Statistics()
    for run in runs:
        for name in ("prompt_tokens", "generated_tokens", "verify_steps"):
            setattr(out, name, getattr(out, name) + getattr(run, name))
        for name in ("prompt_seconds", "target_seconds", "drafter_seconds", "other_seconds"):
            setattr(out, name, getattr(out, name) + getattr(run, name))
        for name in ("judged", "stood"):
            mine, theirs = getattr(out, name), getattr(run, name)
            width = max(len(mine), len(theirs))
            setattr(out, name, [sum(pair) for pair in zip(_padded(mine, width), _padded(theirs, width), strict=True)])
    return out


def _padded(counts: list[int], width: int) -> list[int]:
    return counts + [0] * (width - len(counts))


def cost_curve(session: Session, text: Sequence[int]) -> dict[str, Any]:
    """Median seconds of verifying 1..R rows of a text, of one drafted token, and of feeding back two accepted rows.

    Between two runs of several rows the drafter runs, as in a decode cycle: what it reads takes the place of the target's weights in the
    caches, and the target's threads go to sleep meanwhile.
    """
    target, drafter, k = session.target, session.drafter, session.draft_max
    assert drafter is not None  # measure() is for sessions that have one
    largest = max(ROWS, k + 1)
    base = min(len(text), target.n_ctx) - largest
    if base < 2:
        raise RefspecError(f"bench: the text of {len(text)} tokens is too short for a cost curve; raise -n or -c")
    target.capturing = True
    for _ in prefill(target, drafter, text[: base + 1]):
        pass
    verify: dict[int, list[float]] = {rows: [] for rows in range(1, largest + 1)}
    draft, extend = [], []
    for _ in range(ROUNDS):  # all sizes in turn: a disturbance then hits them alike
        for rows, times in verify.items():
            steady = []
            for sample in range(SAMPLES + 1):
                began = perf_counter()
                target.decode(text[base : base + rows], logits="all")
                if sample:  # the first run of a size pays for llama.cpp's new graph, which a decode cycle keeps
                    steady.append(perf_counter() - began)
                if rows > 1:
                    drafter.extend(np.asarray(text[base + 1 : base + 3], np.int32), target.features()[:2])
                    drafter.draft(k)
                    drafter.rollback(base)
                if rows < largest or sample < SAMPLES:
                    target.rollback(base)
            times.append(median(steady))
        features = target.features().copy()
        target.rollback(base)
        for sample in range(SAMPLES + 1):  # as a decode cycle has it: feed back, then draft; the first pays for graphs
            began = perf_counter()
            drafter.extend(np.asarray(text[base + 1 : base + 3], np.int32), features[:2])
            extended = perf_counter()
            drafted = len(drafter.draft(k).tokens)
            if sample:
                draft.append((perf_counter() - extended) / max(drafted, 1))
                extend.append(extended - began)
            drafter.rollback(base)
    return {
        "verify_seconds": list(in_proportion(verify).values()),
        "draft_token_seconds": median(draft),
        "extend_seconds": median(extend),
    }


def predict(acceptance: Sequence[float], costs: dict[str, Any], own: float, own_plain: float) -> list[float]:
    """Predicted speedup of draft lengths 1..K over plain decoding, by the formula in the head of this file."""
    verify, out, tau = costs["verify_seconds"], [], 1.0
    for k, share in enumerate(acceptance, start=1):
        if k >= len(verify):
            break
        tau += share
        step = verify[k] + k * costs["draft_token_seconds"] + costs["extend_seconds"] + own
        out.append(tau * (verify[0] + own_plain) / step)
    return out


class ForeignLoad:
    """Cores that other processes use, on average since this object was made; None where the system does not say."""

    def __init__(self) -> None:
        self._before = self._read()

    def cores(self) -> float | None:
        """Busy time of all processors less that of this process and of programs it ran, per second."""
        now = self._read()
        if now is None or self._before is None:
            return None
        busy, own, clock = (b - a for a, b in zip(self._before, now, strict=True))
        return max(0.0, (busy - own) / clock)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
            )
        except (OSError, ValueError, IndexError):
            return None
        own = os.times()
        ticks = os.sysconf("SC_CLK_TCK")
        return (user + nice + system + irq + softirq + steal) / ticks, sum(own[:4]), perf_counter()


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` as lines of text."""
    verify, low_high = m["verify_seconds"], m["speedup_range"]
    out = [
        f"{m['model']}: {m['prompts']} prompts x {m['repeat']} runs of up to {m['max_tokens']} tokens, draft length {m['draft_max']}",
        f"plain            {m['plain_tokens_per_second']:8.1f} tokens/s (median)",
        f"speculative      {m['speculative_tokens_per_second']:8.1f} tokens/s (median)",
        f"speedup          {m['speedup']:8.2f} x (median of pairs, {low_high[0]:.2f} to {low_high[1]:.2f})",
        f"predicted        {m['predicted_speedup'] or 0:8.2f} x (from tau and the costs below)",
        f"tau              {m['tau']:8.2f} tokens per verify step over {m['verify_steps']} steps",
        "accepted         " + _row(m["accepted_by_position"], "8.2f") + "  by position",
        f"text             {'identical in every pair' if m['identical'] else 'differs in some pair (rounding; see generate --compare)'}",
        f"verify step      {m['step_seconds'] * 1e6:8.0f} us, of it drafter {m['drafter_share']:.1%}, refspec itself {m['own_share']:.1%}"
        f" ({m['own_seconds_per_step'] * 1e6:.0f} us)",
        "rows verified    " + _row(range(1, len(verify) + 1), "8d"),
        "  us             " + _row([t * 1e6 for t in verify], "8.0f"),
        "  relative       " + _row([t / verify[0] for t in verify], "8.2f"),
        f"drafted token    {m['draft_token_seconds'] * 1e6:8.0f} us ({m['draft_token_seconds'] / verify[0]:.3f} of one target token)",
        f"feeding back     {m['extend_seconds'] * 1e6:8.0f} us for two rows",
    ]
    if by_length := m["predicted_by_draft_length"]:
        out.append("predicted for k  " + _row(by_length, "8.2f") + "  k = 1, 2, ...")
    for name, kind in m["kinds"].items():
        low, high = kind["speedup_range"]
        out.append(
            f"{name:16} {kind['tokens_per_second']:8.1f} tokens/s {kind['speedup']:6.2f} x ({low:.2f} to {high:.2f}), tau {kind['tau']:.2f}"
            + ("" if name == "plain" else f", drafted 0, 1, ... tokens in {' '.join(map(str, kind['windows']))} steps")
            + ("" if kind["identical"] else ", text differs somewhere")
        )
    if rival := m["llama_cpp"]:
        low, high = rival["speedup_range"]
        out.append(f"llama.cpp's own  {rival['tokens_per_second']:8.1f} tokens/s {rival['speedup']:6.2f} x ({low:.2f} to {high:.2f})")
    if m["inflated"]:
        out.append(f"target           {m['inflated']}")
    foreign = m["foreign_cores"]
    out.append("other processes  " + ("unknown" if foreign is None else f"{foreign:8.2f} of {m['cores']} cores"))
    if foreign is not None and foreign > FOREIGN_LIMIT:
        out.append("  The machine was not idle: these times say little. Repeat without the other load.")
    if m["speedup"] < 1:
        out.append("Speculation LOSES here: plain decoding (--no-spec) or another --draft-max is faster.")
    return out


def _row(values: Sequence[float] | range, form: str) -> str:
    return "".join(format(value, form) for value in values)
