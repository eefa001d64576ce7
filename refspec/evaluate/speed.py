"""What speculation costs and gains on this machine: measured, then predicted from its parts, so that each explains the
other.

Not a test: times depend on the machine and on who else uses it, so the load of other processes is recorded beside them.
Plain and speculative runs alternate, and so does which of the two goes first. The predictions, of chains and of trees,
are `bench_costs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.tree_lookup import TreeLookupDrafter
from refspec.errors import RefspecError
from refspec.evaluate.prompts import built_in
from refspec.evaluate.speed_costs import ROWS, cost_curve, predict, predict_tree, sizes_to_time
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import Sampler
from refspec.session import ADAPTIVE_MAX, DRAFT_MAX, GREEDY, Generation, Session

__all__ = ["ROWS", "ForeignLoad", "foreign_line", "kinds_of", "measure", "predict", "run_prompt", "table", "total"]

PROMPTS = built_in(6)  # one of each kind
STOCK = "stock plain"  # plain decoding whose products are llama.cpp's own, where the session's are refspec's
FOREIGN_LIMIT = 0.2  # cores other processes may use before the table warns


def measure(
    session: Session,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    repeat: int,
    progress: Callable[[str], None],
    rival: Callable[[str], Any] | None = None,
    sampler: Sampler = GREEDY,
) -> dict[str, Any]:
    """Run the benchmark on a session with a drafter and return every number `table` prints; times in seconds.

    `rival`, if given, runs another program on a prompt and returns an object with its `tokens_per_second`.
    """
    load = ForeignLoad()
    variants = kinds_of(session)
    trees = [name for name, (made, _) in variants.items() if made.tree is not None]
    session = variants["chain"][0]
    runs: dict[str, list[Generation]] = {name: [] for name in variants}
    rivals: list[Any] = []
    for i, prompt in enumerate(prompts):
        progress(f"bench: prompt {i + 1} of {len(prompts)}")
        run_prompt(session, prompt, {}, 8)  # pages in what the first timed run would otherwise pay for
        for turn in range(repeat):
            names = list(variants) if turn % 2 else list(variants)[::-1]  # who goes first changes
            for name in names:
                with products_of(session.target, name):
                    runs[name].append(
                        run_prompt(variants[name][0], prompt, variants[name][1] | {"sampler": sampler}, max_tokens)
                    )
            if rival is not None:
                rivals.append(rival(prompt))
    ratios = _ratios(runs["chain"], runs["plain"])
    fast, plain = (total([run.statistics for run in runs[name]]) for name in ("chain", "plain"))
    progress("bench: cost curve")
    grown = {name: total([run.statistics for run in runs[name]]) for name in trees}
    more = sorted({rows for run in grown.values() for rows in sizes_to_time(run, max(ROWS, session.draft_max + 1))})
    costs = cost_curve(session, runs["plain"][-1].prompt + runs["plain"][-1].tokens, more)
    foreign = load.cores()
    own = fast.other_seconds / fast.verify_steps
    own_plain = plain.other_seconds / plain.verify_steps
    predicted = predict(fast.accepted_by_position, costs, own, own_plain)
    k = len(predicted)
    kinds = {name: _about(found, runs["plain"]) for name, found in runs.items()}
    kinds["chain"]["predicted_speedup"] = predicted[-1] if k else None
    for name, run in grown.items():
        kinds[name]["predicted_speedup"] = predict_tree(run, costs, own_plain)
    return {
        "model": session.name,
        "prompts": len(prompts),
        "repeat": repeat,
        "max_tokens": max_tokens,
        "penalties": asdict(sampler.penalties) if sampler.penalties.on else None,
        "draft_max": session.draft_max,
        "plain_tokens_per_second": median(run.statistics.tokens_per_second for run in runs["plain"]),
        "speculative_tokens_per_second": median(run.statistics.tokens_per_second for run in runs["chain"]),
        "speedup": median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "predicted_speedup": predicted[-1] if k else None,
        "predicted_by_draft_length": predicted,
        "identical": all(a.tokens == b.tokens for a, b in zip(runs["chain"], runs["plain"], strict=True)),
        "kinds": kinds,
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
    if isinstance(trained, TreeLookupDrafter):  # measured beside the tree without it
        trained = trained.trained
    if shaped.tree is not None:  # what runs trees runs chains too
        session = Session(shaped.target, trained, draft_max=DRAFT_MAX, name=shaped.name)
        session.tuned = shaped.tuned
    lookup = Session(
        session.target, LookupDrafter(), draft_max=session.draft_max, name=session.name, draft_limit=session.draft_limit
    )
    found: dict[str, tuple[Session, dict[str, Any]]] = {
        "plain": (session, {"speculate": False}), "chain": (session, {"adaptive": False}), "adaptive": (session, {"adaptive": True, "draft_max": min(max(ADAPTIVE_MAX, session.draft_max), session.draft_limit)}),
        "lookup": (lookup, {}),
    }  # fmt: skip
    if panels_of(session.target) is not None:
        found[STOCK] = (session, {"speculate": False})
    if trained is not None and trained.capture_layers and not isinstance(trained, FallbackDrafter):
        both = Session(
            session.target,
            FallbackDrafter(trained),
            draft_max=session.draft_max,
            name=session.name,
            draft_limit=session.draft_limit,
        )
        found["chain + lookup"] = (both, {})
    if shaped.tree is not None:
        found |= tree_kinds(shaped, trained)
    return found


def panels_of(target: Any) -> Any:
    """What has refspec's kernels multiply in a target (`llama/matmul_hook.py`), or None."""
    return getattr(getattr(target, "model", None), "panels", None)


@contextmanager
def products_of(target: Any, kind: str) -> Iterator[None]:
    """Leaves the products to llama.cpp while a kind of that name is run."""
    panels = panels_of(target) if kind == STOCK else None
    if panels is not None:
        panels.switch(False)
    try:
        yield
    finally:
        if panels is not None:
            panels.switch(True)


def tree_kinds(shaped: Session, trained: Any) -> dict[str, tuple[Session, dict[str, Any]]]:
    """Ways to draft trees of `shaped.tree`, a session and options each, by name: the trained drafter's, with lookup in
    them, and both with the number of nodes chosen every step."""
    assert shaped.tree is not None
    found: dict[str, tuple[Session, dict[str, Any]]] = {}
    for adaptive in (False, True):
        for suffix, drafter in (("", trained), (" + lookup", TreeLookupDrafter(trained))):
            made = Session(shaped.target, drafter, draft_max=shaped.draft_max, name=shaped.name, tree=shaped.tree)
            made.tuned = shaped.tuned
            found[f"{'adaptive ' if adaptive else ''}tree {shaped.tree}{suffix}"] = (made, {"adaptive": adaptive})
    return found


def _ratios(fast: Sequence[Generation], plain: Sequence[Generation]) -> list[float]:
    return [a.statistics.tokens_per_second / b.statistics.tokens_per_second for a, b in zip(fast, plain, strict=True)]


def _about(runs: Sequence[Generation], plain: Sequence[Generation]) -> dict[str, Any]:
    """One kind in numbers, beside plain decoding of the same prompts; nothing is predicted of most."""
    ratios, everything = _ratios(runs, plain), total([run.statistics for run in runs])
    return {
        "tokens_per_second": median(run.statistics.tokens_per_second for run in runs), "speedup": median(ratios),
        "speedup_range": [min(ratios), max(ratios)], "predicted_speedup": None, "tau": everything.tau, "windows": everything.windows,
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


def run_prompt(session: Session, prompt: str | Sequence[int], options: dict[str, Any], max_tokens: int) -> Generation:
    """One generation from a text or tokens to its end, greedy unless `options` of `Session.generate` say else;

    RefspecError where nothing comes.
    """
    given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"tokens": prompt}
    generation = session.generate(**given, max_tokens=max_tokens, **({"sampler": GREEDY} | options))
    for _ in generation:
        pass
    if generation.statistics.verify_steps == 0:
        what = f"the prompt {prompt[:40]!r}" if isinstance(prompt, str) else f"a prompt of {len(prompt)} tokens"
        raise RefspecError(f"bench: nothing was generated for {what}; choose another")
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
        out.tree_sizes += run.tree_sizes
    return out


def _padded(counts: list[int], width: int) -> list[int]:
    return counts + [0] * (width - len(counts))


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
        f"{m['model']}: {m['prompts']} prompts x {m['repeat']} runs of up to {m['max_tokens']} tokens, draft length {m['draft_max']}"
        + (", under penalties" if m["penalties"] else ""),
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
    if more := m["more_verify_seconds"]:
        out.append("rows of trees    " + ", ".join(f"{rows}: {seconds * 1e6:.0f} us" for rows, seconds in more.items()))
    if by_length := m["predicted_by_draft_length"]:
        out.append("predicted for k  " + _row(by_length, "8.2f") + "  k = 1, 2, ...")
    for name, kind in m["kinds"].items():
        low, high = kind["speedup_range"]
        predicted = "" if kind["predicted_speedup"] is None else f", predicted {kind['predicted_speedup']:.2f} x"
        out.append(
            f"{name:16} {kind['tokens_per_second']:8.1f} tokens/s {kind['speedup']:6.2f} x ({low:.2f} to {high:.2f}){predicted}, tau {kind['tau']:.2f}"
            + ("" if name == "plain" else f", drafted 0, 1, ... tokens in {' '.join(map(str, kind['windows']))} steps")
            + ("" if kind["identical"] else ", text differs somewhere")
        )
    if STOCK in m["kinds"]:
        out.append(
            f"{STOCK:16} is by llama.cpp's own kernels on weights as stored; where it would lay them out anew --no-panels shows what that is worth"
        )
    if rival := m["llama_cpp"]:
        low, high = rival["speedup_range"]
        out.append(
            f"llama.cpp's own  {rival['tokens_per_second']:8.1f} tokens/s {rival['speedup']:6.2f} x ({low:.2f} to {high:.2f})"
        )
    if m["inflated"]:
        out.append(f"target           {m['inflated']}")
    out += foreign_line(m)
    if m["speedup"] < 1:
        out.append("Speculation LOSES here: plain decoding (--no-spec) or another --draft-max is faster.")
    return out


def foreign_line(m: dict[str, Any]) -> list[str]:
    """What other processes used meanwhile, and a warning where it was much."""
    foreign = m["foreign_cores"]
    out = ["other processes  " + ("unknown" if foreign is None else f"{foreign:8.2f} of {m['cores']} cores")]
    if foreign is not None and foreign > FOREIGN_LIMIT:
        out.append("  The machine was not idle: these times say little. Repeat without the other load.")
    return out


def _row(values: Sequence[float] | range, form: str) -> str:
    return "".join(format(value, form) for value in values)
