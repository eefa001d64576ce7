"""What windows would do on a machine with such costs: real drafts of real texts, replayed in computed time.

A window is good or bad by a few percent, and a machine that others use changes by more from one minute to the next. So
a pair's drafts are recorded once, at every position of plain decoding's own texts, and every way to draft is then run
over the record, the seconds of a step coming from a cost model (`Machine`) instead of a clock. Nothing is timed but,
where nobody names them, the costs. What it leaves out: rounding, which gives a drafted text another course now and
then, and what a machine does besides. `bench sweep` measures.

The window is the session's own, asked step by step as `speculate` does; several texts follow each other as in a
session, so what it learned stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from lab import tree_replay

from refspec.adaptive.costs import Costs
from refspec.adaptive.policy import Window
from refspec.adaptive.tree_policy import TreeWindow
from refspec.decoding.cycle import NO_DRAFT, drafting_under, feed, start_drafter
from refspec.decoding.drafter import TreeDrafter
from refspec.decoding.penalized_target import under
from refspec.decoding.tree_cycle import asked_at, cut_after_end
from refspec.evaluate import drift
from refspec.evaluate.acceptance import room_for
from refspec.evaluate.kinds import PLAIN
from refspec.evaluate.prompts import Prompt, fit
from refspec.evaluate.speed import family_of
from refspec.evaluate.speed_report import summary, table_of
from refspec.reference.metrics import Seconds, Step
from refspec.reference.sampling import Sampler
from refspec.reference.tree import NODES_LIMIT, Tree, TreeShape, empty_tree
from refspec.session import Session

CHUNK = 512  # rows of a prompt given at once, as the cycle does
WAITED = 0.1  # of what feeding back takes, a row that waited costs: many run together
# of a plain token, what refspec itself takes for a step that drafts and for one that does not
OWN, OWN_PLAIN = 0.03, 0.005


@dataclass(frozen=True)
class Machine:
    """What steps cost, in tokens of plain decoding: `rows` [R] a run of the target over 1, 2, ...

    rows, the other terms as in `adaptive/costs.py`.
    """

    rows: tuple[float, ...]
    switch: float = 0.0
    feed: float = 0.0
    draft: float = 0.0
    own: float = OWN
    own_plain: float = OWN_PLAIN

    @classmethod
    def of(cls, measured: dict[str, Any]) -> Machine:
        """From a record of `windows.measured.measure`."""
        rows = [float(measured["target"][r]) for r in sorted(measured["target"], key=int)]
        return cls(
            tuple(t / rows[0] for t in rows), *(float(measured[name]) / rows[0] for name in ("switch", "feed", "draft"))
        )

    def costs(self) -> Costs:
        """What a window would know of it."""
        rows = {r + 1: t for r, t in enumerate(self.rows)}
        return Costs(rows, switch=self.switch, draft=self.draft, feed=self.feed)

    def seconds(self, rows: int, before: int, asked: int, fed: bool, waited: int, noise: float) -> Seconds:
        """Of a step that verified `rows` after one of `before`, the drafter asked about `asked` tokens, given its rows,
        and `waited` older ones.
        """
        target = self.rows[rows - 1] * noise + (self.switch if before not in (0, rows) else 0.0)
        drafter = self.draft * max(asked - 1, 0) + (self.feed * (1 + WAITED * waited) if fed else 0.0)
        return Seconds(target, drafter, self.own if asked else self.own_plain)


class Recorded(NamedTuple):
    """A text of plain decoding, and what the drafter would have drafted at each position of it."""

    family: str
    held: int  # positions of the prompt that were run
    sureness: float  # of the drafter along its end, nan where it cannot tell
    tokens: list[int]
    confidences: list[list[float]]  # by position, of up to `most` tokens
    right: list[int]  # by position, how many of them the text goes on with
    trees: Sequence[Tree] = ()  # by position but the last, where trees were asked for


def record(
    session: Session,
    prompts: Sequence[Prompt],
    most: int,
    *,
    max_tokens: int,
    sampler: Sampler,
    progress: Callable[[], None] = lambda: None,
) -> list[Recorded]:
    """Decode every prompt plainly, and ask the drafter for `most` tokens at every position, and for a tree where the
    session drafts trees.

    A prompt too long for the context loses its beginning.
    """
    target, drafter = session.target, session.drafter
    assert drafter is not None
    room, found = room_for(session, max_tokens, None), []
    for prompt in prompts:
        tokens = fit(session.encode(prompt.text), room)
        penalized = under(target, sampler.penalties, tokens)
        decoded = drift.record(
            penalized, tokens, drafter.capture_layers, max_tokens=max_tokens, sampler=sampler, seed=0
        )
        text, n, told = decoded.tokens.astype(np.int32), decoded.n_prompt, [math.nan]
        start_drafter(drafter, tokens[0])
        minded = drafting_under(penalized, drafter)
        for start in range(0, n - 1, CHUNK):
            stop = min(start + CHUNK, n - 1)
            feed(
                drafter,
                text[start + 1 : stop + 1],
                decoded.features[start:stop],
                told.append if stop + 1 == n else None,
            )
        confidences: list[list[float]] = []
        right: list[int] = []
        trees: list[Tree] = []
        for row in range(n - 1, len(text) - 1):
            if minded is not None:
                minded.begin(int(text[row]), row)
            draft = drafter.draft(min(most, len(text) - 1 - row)) if drafter.n_rows else NO_DRAFT
            agree = [a == b for a, b in zip(draft.tokens.tolist(), text[row + 1 :].tolist(), strict=False)]
            right.append(agree.index(False) if False in agree else len(agree))
            confidences.append([float(c) for c in draft.confidence])
            if session.tree is not None and row + 2 < len(text):
                trees.append(
                    _tree(
                        cast(TreeDrafter, drafter),
                        session.tree,
                        len(text) - 2 - row,
                        sampler,
                        session.target.end_tokens,
                    )
                )
            drafter.extend(text[row + 1 : row + 2], decoded.features[row : row + 1])
        found.append(Recorded(prompt.family, n - 1, told[-1], text[n:].tolist(), confidences, right, trees))
        progress()
    return found


def _tree(drafter: TreeDrafter, shape: TreeShape, room: int, sampler: Sampler, ends: Container[int]) -> Tree:
    """The tree that the decode cycle would have grown, and what a smaller or a lower one would have held besides."""
    if not drafter.n_rows:
        return empty_tree()
    return cut_after_end(
        drafter.draft_tree(asked_at(shape._replace(nodes=NODES_LIMIT, depth=min(shape.depth, room)), sampler)), ends
    )


class Always:
    """The policy of a fixed length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def begin(self, held: int = 0) -> None:
        pass

    def expect(self, sureness: float) -> None:
        pass

    def waiting(self) -> bool:
        return not self.length

    def plan(self, room: int) -> int:
        return min(self.length, room)

    def stop(self, i: int, confidence: float) -> bool:
        return False

    def keep(self, drafted: int) -> int:
        return drafted

    def learn(self, step: Step) -> None:
        pass


def replay(text: Recorded, policy: Any, machine: Machine, dice: random.Random, noise: float = 0.0) -> tuple[float, int]:
    """(time in plain tokens, verify steps) that a text takes where a policy with the methods of `Window` chooses."""
    policy.begin(text.held)
    policy.expect(text.sureness)
    spent, steps, position, before, waited = 0.0, 0, 0, 0, 0
    while position < len(text.tokens):
        confidences = text.confidences[position]
        k = policy.plan(min(len(confidences), len(text.tokens) - position - 1))
        asked = drafted = 0
        while drafted < k:
            asked += 1
            if policy.stop(drafted, confidences[drafted]):
                break
            drafted += 1
        drafted = policy.keep(drafted) if asked else 0
        accepted = min(text.right[position], drafted)
        tokens = text.tokens[position : position + accepted + 1]
        fed = bool(asked) or not policy.waiting()
        seconds = machine.seconds(drafted + 1, before, asked, fed, waited, math.exp(noise * dice.gauss(0, 1)))
        waited = 0 if fed else waited + len(tokens)
        policy.learn(Step(position, [0] * drafted, accepted, tokens, seconds))
        spent, steps, before, position = spent + seconds.total, steps + 1, drafted + 1, position + len(tokens)
    return spent, steps


def measure(
    texts: Sequence[Recorded],
    machine: Machine,
    lengths: Sequence[int],
    most: int,
    *,
    sessions: int,
    noise: float,
    seed: int = 0,
    shape: TreeShape | None = None,
) -> dict[str, Any]:
    """Every fixed length and the window over the texts: {families, all} as `sweep.measure` has them, times in tokens of
    plain decoding.

    With a `shape`, which the trees of the texts have, also those trees as they are, and as many nodes of them as a
    window chooses.

    The texts come in their order, `sessions` times, each with a window that knows the costs and nothing else; times are
    the means.
    """
    names = [] if shape is None else [f"tree {shape}", f"adaptive tree {shape}"]
    kinds = [PLAIN, *(f"chain {k}" for k in lengths), "adaptive", *names]
    rows: list[dict[str, Any]] = [
        {"family": t.family, "tokens": len(t.tokens), "seconds": dict.fromkeys(kinds, 0.0), "steps": {k: (0, 0) for k in kinds}, "other_texts": dict.fromkeys(kinds, 0)}
        for t in texts
    ]  # fmt: skip
    for session in range(sessions):
        policies: dict[str, Any] = (
            {PLAIN: Always(0)}
            | {f"chain {k}": Always(k) for k in lengths}
            | {"adaptive": Window(most, machine.costs())}
        )
        if shape is not None:
            policies |= dict(
                zip(names, (tree_replay.AlwaysTree(shape.nodes), TreeWindow(shape.nodes, machine.costs())), strict=True)
            )
        for name, policy in policies.items():
            dice = random.Random(f"{seed} {session} {name}")
            run = tree_replay.replay if name in names else replay
            for text, row in zip(texts, rows, strict=True):
                spent, steps = run(text, policy, machine, dice, noise)
                row["seconds"][name] += spent / sessions
                decided, before = row["steps"][name]
                row["steps"][name] = (decided + len(text.tokens), before + steps)
    fixed, families = kinds[: len(lengths) + 1], list(dict.fromkeys(row["family"] for row in rows))
    return {
        "draft_max": list(lengths), "most": most, "prompts": len(rows), "sessions": sessions, "noise": noise, "seed": seed, "machine": asdict(machine),
        "tree": None if shape is None else str(shape),
        "families": [family_of(name, [row for row in rows if row["family"] == name], fixed) for name in families], "all": family_of("all", rows, fixed),
    }  # fmt: skip


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` as lines of text."""
    machine = m["machine"]
    return [
        f"{m['model']}: {m['prompts']} prompts of up to {m['max_tokens']} tokens{', under penalties' if m['penalties'] else ''}, replayed {m['sessions']} times on these costs; speedup over plain decoding",
        *table_of(m, rates=False),
        *summary(m),
        *([f"trees:    {m['tree']}, atree as many of their nodes as pay"] if m["tree"] else []),
        "costs:    in tokens of plain decoding, rows 1, 2, ... " + " ".join(f"{t:.2f}" for t in machine["rows"])
        + "; " + ", ".join(f"{what} {machine[name]:.3f}" for name, what in
            (("switch", "change of size"), ("feed", "feeding back"), ("draft", "drafted row"), ("own", "refspec itself"), ("own_plain", "in plain steps")))
        + f"; a step varies by {100 * m['noise']:.0f} %",
        "heads:    draft lengths; computed times, nothing here was measured" + (" but the costs" if m["measured"] else ""),
    ]  # fmt: skip
