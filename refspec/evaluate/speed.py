"""What every way to draft gains on this machine, by family of prompts, and for what reasons.

Not a test: times depend on the machine and on who else uses it, so the load of other processes is recorded beside
them. Not a search by model either: every kind (`kinds.py`) runs on every prompt, one after the other, in an order that
turns round with each repetition.

Of a prompt and a kind the median of its repetitions counts, seconds per token. A family's speedup is the time plain
decoding takes for its prompts over that of the kind, each for as many tokens as plain decoding decided. The best fixed
length of a family is the best of several noisy numbers, hence too good rather than too bad; how noisy, plain decoding
says that is measured twice. Where rounding gave a kind another output than plain decoding's (`other_texts`), the two
decoded things that are not equally easy. What steps cost, and the speedup predicted from that, is `speed_costs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from refspec.errors import RefspecError, UsageError
from refspec.evaluate.acceptance import room_for
from refspec.evaluate.kinds import PLAIN, Kind, kinds_of, matmul_for
from refspec.evaluate.outputs import finished
from refspec.evaluate.prompts import Prompt, fit
from refspec.evaluate.report import guesses
from refspec.evaluate.speed_costs import ROWS, cost_curve, predict, predict_tree, sizes_to_time
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import Sampler
from refspec.session import GREEDY, Generation, Session

ADDED = (
    "prompt_tokens", "generated_tokens", "verify_steps", "prompt_seconds", "target_seconds", "drafter_seconds",
    "other_seconds",
)  # fmt: skip
FOREIGN_LIMIT = 0.2  # cores other processes may use before times are doubted
Rival = Callable[[str, int], Any]  # (prompt, draft length) -> an object with its `tokens_per_second`


def measure(
    session: Session, prompts: Sequence[Prompt], lengths: Sequence[int], chosen: Sequence[str], *, max_tokens: int,
    repeat: int, costs: bool = False, progress: Callable[[], None] = lambda: None, rival: Rival | None = None,
    sampler: Sampler = GREEDY,
) -> dict[str, Any]:  # fmt: skip
    """Run every kind on every prompt; {families, all, kinds, costs, ...}. Rates are tokens per second.

    `costs`: also what a call of the target costs by the tokens it checks, and the speedups predicted from that. `rival`
    runs another program. A prompt too long for the context loses its beginning; with a rival it raises UsageError.
    """
    load = ForeignLoad()
    kinds = {
        name: kind._replace(options=kind.options | {"sampler": sampler})
        for name, kind in kinds_of(session, lengths, chosen).items()
    }
    room = room_for(session, max_tokens, None)
    encoded = [session.encode(prompt.text) for prompt in prompts]
    if rival is not None:
        _check_room(prompts, encoded, room)
    programs = [] if rival is None else [f"llama.cpp {k}" for k in lengths]
    rows: list[dict[str, Any]] = []
    runs: dict[str, list[Statistics]] = {name: [] for name in kinds}
    longest: list[int] = []  # an output with its prompt, to measure costs in
    for i, prompt in enumerate(prompts):
        tokens = fit(encoded[i], room)
        for kind in kinds.values() if i == 0 else ():  # page in what the first timed runs would otherwise pay for
            run_prompt(kind.session, tokens, kind.options, 8)
        spent: dict[str, list[float]] = {name: [] for name in [*kinds, *programs]}
        steps: dict[str, tuple[int, int]] = dict.fromkeys(kinds, (0, 0))
        outputs: dict[str, list[int]] = {}
        for turn in range(repeat):
            for name in list(spent) if (i + turn) % 2 else list(spent)[::-1]:
                if name in kinds:
                    with matmul_for(session.target, name):
                        generation = run_prompt(kinds[name].session, tokens, kinds[name].options, max_tokens)
                    said, outputs[name] = generation.statistics, generation.tokens
                    steps[name] = (said.generated_tokens, said.verify_steps)
                    runs[name].append(said)
                else:
                    assert rival is not None
                    said = rival(prompt.text, int(name.split()[1]))
                    # Its process has taken the caches from whoever comes next.
                    run_prompt(kinds[PLAIN].session, tokens, kinds[PLAIN].options, 8)
                spent[name].append(1 / said.tokens_per_second)
        decided = steps[PLAIN][0]
        rows.append({
            "family": prompt.family, "tokens": decided, "steps": steps,
            "seconds": {name: decided * median(each) for name, each in spent.items()},
            "other_texts": {name: int(outputs[name] != outputs[PLAIN]) for name in kinds},
        })  # fmt: skip
        longest = max(longest, [*tokens, *outputs[PLAIN]], key=len)
        progress()
    totals = {name: total(each) for name, each in runs.items()}
    cost = _costs(kinds, totals, longest) if costs else None
    families = list(dict.fromkeys(row["family"] for row in rows))
    fixed = [name for name, kind in kinds.items() if kind.fixed]
    everything = family_of("all", rows, fixed)
    return {
        "model": session.name, "drafter": str(getattr(session.drafter, "path", "")) or None,
        "draft_max": list(lengths), "prompts": len(rows), "repeat": repeat, "max_tokens": max_tokens,
        "tuned": bool(session.tuned.record), "inflated": session.target.metadata.get("refspec.inflated"),
        "penalties": asdict(sampler.penalties) if sampler.penalties.on else None,
        "families": [family_of(name, [row for row in rows if row["family"] == name], fixed) for name in families],
        "all": everything,
        "kinds": {name: _about(name, rows, everything, totals.get(name), cost) for name in [*kinds, *programs]},
        "costs": cost, "foreign_cores": load.cores(), "cores": os.cpu_count(),
    }  # fmt: skip


def _check_room(prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], room: int) -> None:
    for prompt, tokens in zip(prompts, encoded, strict=True):
        if len(tokens) > room:
            raise UsageError(
                f"a prompt of {prompt.family} has {len(tokens)} tokens, and {room} fit; raise -c, or leave the family "
                "out (--family)"
            )


def family_of(name: str, rows: Sequence[Mapping[str, Any]], fixed: Sequence[str]) -> dict[str, Any]:
    """The prompts of one family as one: times, tokens and steps add up.

    `adaptive_share` is what the adaptive kind reaches of the best of the kinds that are `fixed`.
    """
    seconds = {kind: sum(row["seconds"][kind] for row in rows) for kind in rows[0]["seconds"]}
    steps = {kind: [sum(row["steps"][kind][i] for row in rows) for i in (0, 1)] for kind in rows[0]["steps"]}
    speedup = {kind: seconds[PLAIN] / spent for kind, spent in seconds.items()}
    best = max(fixed, key=speedup.__getitem__)
    return {
        "family": name, "prompts": len(rows),
        "plain_tokens_per_second": sum(row["tokens"] for row in rows) / seconds[PLAIN], "speedup": speedup,
        "tau": {kind: tokens / count for kind, (tokens, count) in steps.items()}, "best_fixed": best,
        "other_texts": {kind: sum(row["other_texts"][kind] for row in rows) for kind in steps},
        "adaptive_share": speedup["adaptive"] / speedup[best] if "adaptive" in speedup else None,
    }  # fmt: skip


def _about(
    name: str, rows: Sequence[Mapping[str, Any]], everything: Mapping[str, Any], run: Statistics | None, cost: Any
) -> dict[str, Any]:
    """One kind in numbers over all prompts; `run` is None for another program, of which only the rate is known."""
    each = [row["seconds"][PLAIN] / row["seconds"][name] for row in rows]
    found = {
        "tokens_per_second": everything["plain_tokens_per_second"] * everything["speedup"][name],
        "speedup": everything["speedup"][name], "speedup_range": [min(each), max(each)],
        "predicted_speedup": cost["predicted"].get(name) if cost else None,
    }  # fmt: skip
    if run is not None:
        found |= {
            "tau": run.tau, "accepted_by_position": run.accepted_by_position,
            "guesses": {str(k): steps for k, steps in guesses(run).items()},
            "verify_steps": run.verify_steps, "step_seconds": run.seconds.total / run.verify_steps,
            "drafter_share": run.drafter_seconds / run.seconds.total, "own_share": run.own_share,
            "own_seconds_per_step": run.other_seconds / run.verify_steps,
            "identical": not everything["other_texts"][name],
        }  # fmt: skip
    return found


def _costs(kinds: Mapping[str, Kind], totals: Mapping[str, Statistics], text: Sequence[int]) -> dict[str, Any]:
    """The cost curve, and the speedups it predicts for fixed chains and for trees."""
    trees = {name: totals[name] for name, kind in kinds.items() if kind.session.tree is not None}
    session = kinds[PLAIN].session
    timed = max(ROWS, session.draft_max + 1)
    found = cost_curve(session, text, sorted({n for run in trees.values() for n in sizes_to_time(run, timed)}))
    own_plain = totals[PLAIN].other_seconds / totals[PLAIN].verify_steps
    predicted: dict[str, float] = {}
    by_length: list[float] = []
    for name in [name for name, kind in kinds.items() if kind.fixed and name != PLAIN]:
        run = totals[name]
        by_length = predict(run.accepted_by_position, found, run.other_seconds / run.verify_steps, own_plain)
        predicted |= {name: by_length[-1]} if by_length else {}
    predicted |= {name: predict_tree(run, found, own_plain) for name, run in trees.items()}
    return found | {"predicted": predicted, "predicted_by_draft_length": by_length}


def run_prompt(session: Session, prompt: str | Sequence[int], options: dict[str, Any], max_tokens: int) -> Generation:
    """One finished generation, greedy unless `options` of `Session.generate` say else; RefspecError if it is empty."""
    given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"tokens": prompt}
    given |= {"max_tokens": max_tokens, "sampler": GREEDY, "fresh": True}
    generation = finished(session.generate(**given | options))
    if generation.statistics.verify_steps == 0:
        what = f"the prompt {prompt[:40]!r}" if isinstance(prompt, str) else f"a prompt of {len(prompt)} tokens"
        raise RefspecError(f"bench: nothing was generated for {what}; choose another")
    return generation


def total(runs: Sequence[Statistics]) -> Statistics:
    """The counts and times of several runs as one."""
    out = Statistics()
    for run in runs:
        for name in ADDED:
            setattr(out, name, getattr(out, name) + getattr(run, name))
        out.judged = [sum(pair) for pair in zip_longest(out.judged, run.judged, fillvalue=0)]
        out.accepted = [sum(pair) for pair in zip_longest(out.accepted, run.accepted, fillvalue=0)]
        out.tree_sizes += run.tree_sizes
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


def busy(foreign: float | None, cores: int | None) -> str | None:
    """Where other processes used enough for times to be doubted: what to say before anything else."""
    if foreign is None or foreign <= FOREIGN_LIMIT:
        return None
    return (
        f"the machine was busy: other processes used {foreign:.1f} of {cores} cores, so these times say little; "
        "repeat it when the machine is idle"
    )


def foreign_line(m: Mapping[str, Any]) -> list[str]:
    """What other processes used during a measurement."""
    foreign = m["foreign_cores"]
    if (said := busy(foreign, m["cores"])) is not None:
        return [said]
    return ["other processes: " + ("unknown" if foreign is None else f"{foreign:.2f} of {m['cores']} cores")]
