"""The best way to draft, searched: plain decoding, every fixed draft length, the adaptive window, by family of prompts.

What `bench speed` does for one draft length, this does for many, to answer two questions: which setting is the fastest
for this pair here, and is `--adaptive`, which nobody had to choose, as fast? Not a search by model: every kind runs on
every prompt, one after the other, in an order that turns round with each repetition.

Of a prompt and a kind the median of its repetitions counts, seconds for each token. A family's speedup is the time
plain decoding takes for its prompts over that of the kind, each for as many tokens as plain decoding decided. The best
fixed length of a family is the best of several noisy numbers, hence too good rather than too bad. How noisy, plain
decoding says that is measured twice; and where rounding gave a kind another text than plain decoding's (`other_texts`),
the two decoded things that are not equally easy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import UsageError
from refspec.evaluate.acceptance import room_for
from refspec.evaluate.prompts import Prompt, fit
from refspec.evaluate.speed import STOCK, ForeignLoad, foreign_line, panels_of, products_of, run_prompt, tree_kinds
from refspec.reference.sampling import Sampler
from refspec.session import ADAPTIVE_MAX, GREEDY, Session

PLAIN, AGAIN = "plain", "plain again"
SHORT = {"stock": "stock", "chain": "", "adaptive": "adapt", "tree": "tree", "llama.cpp": "cpp "}  # heads of columns


class Kind(NamedTuple):
    """One way to decode: its session, the options of its runs, and whether the adaptive window is compared with it."""

    session: Session
    options: dict[str, Any]
    fixed: bool = False


def kinds_of(session: Session, lengths: Sequence[int], *, lookup: bool) -> dict[str, Kind]:
    """The kinds to compare on a session with a drafter, by name; `lookup`: each also with drafts from the text where
    the drafter is unsure.

    A session made for trees runs chains on the same target too.
    """
    target, drafter = session.target, session.drafter
    assert drafter is not None
    chains = Session(target, drafter, draft_max=max(lengths), name=session.name, draft_limit=session.draft_limit)
    chains.tuned = session.tuned
    most = min(max(ADAPTIVE_MAX, *lengths), session.draft_limit)
    found = {PLAIN: Kind(chains, {"speculate": False}, fixed=True), AGAIN: Kind(chains, {"speculate": False})}
    if panels_of(target) is not None:
        found[STOCK] = Kind(chains, {"speculate": False})
    owners = {"": chains}
    if lookup:
        if isinstance(drafter, (LookupDrafter, FallbackDrafter)) or not drafter.capture_layers:
            raise UsageError("--lookup adds drafts from the text to an EAGLE-3 drafter; this drafter is none")
        owners[" + lookup"] = Session(
            target, FallbackDrafter(drafter), draft_max=max(lengths), name=session.name, draft_limit=session.draft_limit
        )
        owners[" + lookup"].tuned = session.tuned
    for suffix, owner in owners.items():
        found |= {
            f"chain {k}{suffix}": Kind(owner, {"adaptive": False, "draft_max": k}, fixed=owner is chains)
            for k in lengths
        }
        found[f"adaptive{suffix}"] = Kind(owner, {"adaptive": True, "draft_max": most})
    if session.tree is not None:
        trees = tree_kinds(session, drafter)
        found |= {
            name: Kind(made, options) for name, (made, options) in trees.items() if lookup or made.drafter is drafter
        }
    return found


def measure(
    session: Session,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    *,
    max_tokens: int,
    repeat: int,
    lookup: bool = False,
    progress: Callable[[], None] = lambda: None,
    rival: Callable[[str, int], Any] | None = None,
    sampler: Sampler = GREEDY,
) -> dict[str, Any]:
    """Run every kind on every prompt; {families: [...], all: {...}} and what was measured how. Rates are tokens per
    second.

    `rival`, if given, runs another program on a prompt with a draft length and returns an object with its
    `tokens_per_second`. Of a family: `speedup` {kind: over plain decoding}, `tau` {kind: tokens per verify step},
    `best_fixed` (a kind) and `adaptive_share`, what the adaptive window reaches of the best of plain decoding and fixed
    lengths without lookup. A prompt too long for the context loses its beginning, and with a `rival`, which cannot do
    that, raises UsageError.
    """
    load, kinds = ForeignLoad(), kinds_of(session, lengths, lookup=lookup)
    kinds = {name: kind._replace(options=kind.options | {"sampler": sampler}) for name, kind in kinds.items()}
    room = room_for(session, max_tokens, None)
    programs = [] if rival is None else [f"llama.cpp {k}" for k in lengths]
    rows: list[dict[str, Any]] = []
    encoded = [session.encode(prompt.text) for prompt in prompts]
    # before anything is measured
    for prompt, tokens in zip(prompts, encoded, strict=True) if rival is not None else ():
        if len(tokens) > room:
            raise UsageError(
                f"a prompt of {prompt.family} has {len(tokens)} tokens, and {room} fit; raise -c, or leave the family out (--family)"
            )
    for i, prompt in enumerate(prompts):
        tokens = fit(encoded[i], room)
        for kind in kinds.values() if i == 0 else ():  # page in what the first timed runs would otherwise pay for
            run_prompt(kind.session, tokens, kind.options, 8)
        spent: dict[str, list[float]] = {name: [] for name in [*kinds, *programs]}
        steps: dict[str, tuple[int, int]] = dict.fromkeys(kinds, (0, 0))
        texts: dict[str, list[int]] = {}
        for turn in range(repeat):
            for name in list(spent) if (i + turn) % 2 else list(spent)[::-1]:
                if name in kinds:
                    with products_of(session.target, name):
                        generation = run_prompt(kinds[name].session, tokens, kinds[name].options, max_tokens)
                    said, texts[name] = generation.statistics, generation.tokens
                    steps[name] = (said.generated_tokens, said.verify_steps)
                else:
                    assert rival is not None
                    said = rival(prompt.text, int(name.split()[1]))
                    # its process has taken the caches from whoever comes next
                    run_prompt(kinds[PLAIN].session, tokens, kinds[PLAIN].options, 8)
                spent[name].append(1 / said.tokens_per_second)
        decided = steps[PLAIN][0]
        rows.append({"family": prompt.family, "tokens": decided, "seconds": {n: decided * median(s) for n, s in spent.items()}, "steps": steps,
                     "other_texts": {n: int(texts[n] != texts[PLAIN]) for n in kinds}})  # fmt: skip
        progress()
    fixed = [name for name, kind in kinds.items() if kind.fixed]
    names = list(dict.fromkeys(row["family"] for row in rows))
    return {
        "model": session.name, "drafter": str(getattr(session.drafter, "path", "")) or None,
        "draft_max": list(lengths), "prompts": len(rows), "repeat": repeat, "max_tokens": max_tokens, "tuned": bool(session.tuned.record),
        "inflated": session.target.metadata.get("refspec.inflated"), "penalties": asdict(sampler.penalties) if sampler.penalties.on else None,
        "families": [family_of(name, [row for row in rows if row["family"] == name], fixed) for name in names], "all": family_of("all", rows, fixed),
        "foreign_cores": load.cores(), "cores": os.cpu_count(),
    }  # fmt: skip


def family_of(name: str, rows: Sequence[dict[str, Any]], fixed: Sequence[str]) -> dict[str, Any]:
    """The rows of one family as one: times add up, and so do tokens and steps.

    Kinds that are `fixed` are what the adaptive window is compared with.
    """
    seconds = {kind: sum(row["seconds"][kind] for row in rows) for kind in rows[0]["seconds"]}
    steps = {kind: [sum(row["steps"][kind][i] for row in rows) for i in (0, 1)] for kind in rows[0]["steps"]}
    speedup = {kind: seconds[PLAIN] / spent for kind, spent in seconds.items()}
    best = max(fixed, key=speedup.__getitem__)
    return {
        "family": name, "prompts": len(rows), "plain_tokens_per_second": sum(row["tokens"] for row in rows) / seconds[PLAIN], "speedup": speedup,
        "tau": {kind: tokens / count for kind, (tokens, count) in steps.items()}, "best_fixed": best,
        "other_texts": {kind: sum(row["other_texts"][kind] for row in rows) for kind in steps},
        "adaptive_share": speedup["adaptive"] / speedup[best],
    }  # fmt: skip


def table(m: dict[str, Any]) -> list[str]:
    """The numbers of `measure` as lines of text."""
    kinds = [kind for kind in m["all"]["speedup"] if kind not in (PLAIN, AGAIN)]
    out = [
        f"{m['model']}: {m['prompts']} prompts x {m['repeat']} runs of up to {m['max_tokens']} tokens{', under penalties' if m['penalties'] else ''}; speedup over plain decoding",
        *table_of(m), *summary(m),
    ]  # fmt: skip
    twice, others = [f["speedup"][AGAIN] for f in m["families"]], m["all"]["other_texts"]
    out += [
        f"noise:    plain decoding against itself {min(twice):.2f} to {max(twice):.2f} x by family; another text than its own, by rounding, in "
        f"{min(others[k] for k in kinds if k in others)} to {max(others[k] for k in kinds if k in others)} of {m['prompts']} prompts by kind (none with --exact)",
        "heads: draft lengths; + is with --lookup"
        + ("; atree: adaptive trees" if any("adaptive tree" in k for k in kinds) else "")
        + ("; stock: plain decoding by llama.cpp's own kernels, weights as stored" if STOCK in kinds else "")
        + ("; cpp K is llama.cpp's own driver at that length" if any("llama" in k for k in kinds) else ""),
    ]
    if m["inflated"]:
        out.append(f"target: {m['inflated']}")
    return out + foreign_line(m)


def table_of(m: dict[str, Any], *, rates: bool = True) -> list[str]:
    """Kinds by family, and tau; `rates`: with plain decoding's tokens per second."""
    kinds = [kind for kind in m["all"]["speedup"] if kind not in (PLAIN, AGAIN)]
    heads = {kind: _head(kind) for kind in kinds}
    name = max(len(f["family"]) for f in [*m["families"], m["all"]])
    out = [
        " " * name
        + "  plain t/s" * rates
        + "".join(f"{heads[kind]:>{_width(heads[kind])}}" for kind in kinds)
        + "  best fixed  adaptive of it"
    ]
    for f in [*m["families"], *([m["all"]] if len(m["families"]) > 1 else [])]:
        cells = "".join(f"{f['speedup'][kind]:{_width(heads[kind])}.2f}" for kind in kinds)
        best, rate = f["best_fixed"].removeprefix("chain "), f" {f['plain_tokens_per_second']:10.1f}" * rates
        out.append(f"{f['family']:{name}}{rate}{cells}{best:>12}{f['adaptive_share']:16.2f}")
    return [
        *out,
        "tau of all " + ", ".join(f"{kind} {m['all']['tau'][kind]:.2f}" for kind in kinds if kind in m["all"]["tau"]),
    ]


def summary(m: dict[str, Any]) -> list[str]:
    """What the adaptive window reaches over all and at least, and which kind is the fastest."""
    low = min(m["families"], key=lambda f: f["speedup"]["adaptive"])
    far = min(m["families"], key=lambda f: f["adaptive_share"])
    fastest = max((kind for kind in m["all"]["speedup"] if kind != AGAIN), key=m["all"]["speedup"].__getitem__)
    return [
        f"adaptive: {m['all']['speedup']['adaptive']:.2f} x over all, at least {low['speedup']['adaptive']:.2f} x plain decoding ({low['family']}); "
        f"{m['all']['adaptive_share']:.2f} of the best fixed length over all, at least {far['adaptive_share']:.2f} of a family's own ({far['family']})",
        f"fastest:  {fastest}, {m['all']['speedup'][fastest]:.2f} x over all",
    ]


def _head(kind: str) -> str:
    """A kind as the head of a column: 3, 3+, adapt, adapt+, tree, atree (adaptive), cpp 3."""
    if kind.startswith("adaptive tree"):
        return "atree" + ("+" if kind.endswith("lookup") else "")
    first, _, rest = kind.partition(" ")
    return (
        SHORT[first]
        + (rest.partition(" ")[0] if first in ("chain", "llama.cpp") else "")
        + ("+" if kind.endswith("lookup") else "")
    )


def _width(head: str) -> int:
    return max(len(head) + 2, 6)
