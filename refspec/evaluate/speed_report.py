"""The record of `speed.measure` in words: a line for each kind, one for each family, and what the steps cost.

`table_of` and `summary` are also what the laboratory prints of computed times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refspec.evaluate.kinds import AGAIN, PLAIN, STOCK
from refspec.evaluate.report import guessed, kept
from refspec.evaluate.speed import busy, foreign_line

Record = Mapping[str, Any]
HEADS = {"stock": "stock", "lookup": "lookup", "chain": "", "adaptive": "adapt", "tree": "tree", "llama.cpp": "cpp "}


def table(m: Record) -> list[str]:
    """For people: what makes the times doubtful first, then kinds, families, costs and the verdict."""
    doubt = busy(m["foreign_cores"], m["cores"])
    lengths = ", ".join(map(str, m["draft_max"]))
    out = [doubt] if doubt else []
    out.append(
        f"{m['model']}: {m['prompts']} prompts x {m['repeat']} runs of up to {m['max_tokens']} tokens, draft length "
        f"{lengths}" + (", under penalties" if m["penalties"] else "")
    )
    if m["inflated"]:
        out.append(f"target: {m['inflated']}")
    out += ["", *_kinds(m)]
    if len(m["families"]) > 1:
        out += ["", "speedup by family of prompts", *table_of(m)]
        out.append(f"  {_legend(m)}")
    out += ["", *summary(m), *_noise(m)]
    if m["costs"]:
        out += ["", *_costs(m)]
    if not doubt:
        out += ["", *foreign_line(m), *_verdict(m)]
    return out


def _kinds(m: Record) -> list[str]:
    """A line for each kind over all prompts, and under it what it guessed."""
    shown = {name: kind for name, kind in m["kinds"].items() if name != AGAIN}
    width = max(map(len, shown))
    forecast = any(kind["predicted_speedup"] for kind in shown.values())
    out = [f"{'':{width}}  tokens/s  speedup  by prompt     " + "forecast  " * forecast + "  tau  differing outputs"]
    for name, kind in shown.items():
        low, high = kind["speedup_range"]
        predicted = kind["predicted_speedup"]
        line = f"{name:{width}}  {kind['tokens_per_second']:8.1f}  {kind['speedup']:6.2f}x  {low:5.2f} - {high:5.2f}x"
        if forecast:
            line += f"  {f'{predicted:.2f}x' if predicted else '':>8}"
        if "tau" in kind:
            line += f"  {kind['tau']:5.2f}  {m['all']['other_texts'][name]:>17}"
        out.append(line.rstrip())
    for name, kind in shown.items():
        if m["costs"] and kind.get("accepted_by_position"):
            out.append(f"{name}: {kept(kind['accepted_by_position'])}")
            if len(kind["guesses"]) > 1:
                out.append(f"  {guessed({int(k): steps for k, steps in kind['guesses'].items()})}")
    out.append("tau: tokens per model call; speedup: over plain; by prompt: the smallest and the largest")
    if STOCK in shown:
        out.append(f"{STOCK}: llama.cpp's kernels on weights as stored; --matmul repack shows what repacking gains")
    return out


def table_of(m: Record, *, rates: bool = True) -> list[str]:
    """Speedups of the kinds by family; `rates`: with plain decoding's tokens per second."""
    kinds = [kind for kind in m["all"]["speedup"] if kind not in (PLAIN, AGAIN)]
    heads = {kind: _head(kind) for kind in kinds}
    name = max(len(f["family"]) for f in [*m["families"], m["all"]])
    adaptive = "adaptive" in kinds
    columns = "".join(f"{heads[kind]:>{_width(heads[kind])}}" for kind in kinds)
    out = [" " * name + "  plain t/s" * rates + columns + "  best fixed" + "  adaptive of it" * adaptive]
    for f in [*m["families"], *([m["all"]] if len(m["families"]) > 1 else [])]:
        cells = "".join(f"{f['speedup'][kind]:{_width(heads[kind])}.2f}" for kind in kinds)
        best, rate = f["best_fixed"].removeprefix("chain "), f" {f['plain_tokens_per_second']:10.1f}" * rates
        share = f"{f['adaptive_share']:16.2f}" if adaptive else ""
        out.append(f"{f['family']:{name}}{rate}{cells}{best:>12}{share}")
    if "kinds" not in m:  # computed times, which have no line of their own for each kind
        tau = m["all"]["tau"]
        out.append("tau over all: " + ", ".join(f"{kind} {tau[kind]:.2f}" for kind in kinds if kind in tau))
    return out


def _legend(m: Record) -> str:
    kinds = m["all"]["speedup"]
    return (
        "heads: draft lengths; + is with lookup"
        + ("; atree: adaptive trees" if any("adaptive tree" in k for k in kinds) else "")
        + (f"; stock: {STOCK}" if STOCK in kinds else "")
        + ("; cpp K: llama.cpp's own driver at that length" if any("llama" in k for k in kinds) else "")
    )


def summary(m: Record) -> list[str]:
    """Which kind is the fastest, and what the adaptive kind reaches over all and at least."""
    everything = m["all"]
    fastest = max((kind for kind in everything["speedup"] if kind != AGAIN), key=everything["speedup"].__getitem__)
    out = [f"fastest:  {fastest}, {everything['speedup'][fastest]:.2f}x over all"]
    if everything["adaptive_share"] is not None:
        line = f"adaptive: {everything['speedup']['adaptive']:.2f}x over all"
        share = f"; {everything['adaptive_share']:.2f} of the best fixed length ({everything['best_fixed']})"
        if len(m["families"]) > 1:
            low = min(m["families"], key=lambda f: f["speedup"]["adaptive"])
            far = min(m["families"], key=lambda f: f["adaptive_share"])
            line += f", at least {low['speedup']['adaptive']:.2f}x ({low['family']})"
            share += f", at least {far['adaptive_share']:.2f} of a family's own ({far['family']})"
        out.append(line + share)
    return out


def _noise(m: Record) -> list[str]:
    twice = [f["speedup"][AGAIN] for f in m["families"]]
    differing = sum(m["all"]["other_texts"].values())
    between = f"{min(twice):.2f} to {max(twice):.2f}x by family" if len(twice) > 1 else f"{twice[0]:.2f}x"
    out = [f"noise:    plain decoding against itself {between}"]
    if differing:
        out.append("          outputs differ by rounding (--reproducible exact: none do)")
    return out


def _costs(m: Record) -> list[str]:
    """What a step is made of."""
    c = m["costs"]
    verify = c["verify_seconds"]
    out = [
        "tokens checked   " + _cells(range(1, len(verify) + 1), "8d"),
        "  us             " + _cells([t * 1e6 for t in verify], "8.0f"),
        "  of one         " + _cells([t / verify[0] for t in verify], "8.2f"),
    ]
    if more := c["more_verify_seconds"]:
        out.append("of trees         " + ", ".join(f"{n}: {seconds * 1e6:.0f} us" for n, seconds in more.items()))
    out += [
        f"one guess        {c['draft_token_seconds'] * 1e6:8.0f} us ({c['draft_token_seconds'] / verify[0]:.3f} of one "
        "target token)",
        f"telling drafter  {c['extend_seconds'] * 1e6:8.0f} us for two accepted tokens",
    ]
    for name, kind in m["kinds"].items():
        if name in c["predicted"] or name == PLAIN:
            out.append(
                f"{f'step, {name}':16} {kind['step_seconds'] * 1e6:8.0f} us, of it drafter "
                f"{kind['drafter_share']:.1%}, refspec itself {kind['own_share']:.1%} "
                f"({kind['own_seconds_per_step'] * 1e6:.0f} us)"
            )
    if by_length := c["predicted_by_draft_length"]:
        out.append("forecast for k   " + _cells(by_length, "8.2f") + "  k = 1, 2, ...")
    return out


def _verdict(m: Record) -> list[str]:
    """Advice where no kind of guessing is faster than plain decoding, or fixed chains are not."""
    guessing = {name: x for name, x in m["all"]["speedup"].items() if name.startswith(("chain", "adaptive", "tree"))}
    if not guessing:
        return []
    best = max(guessing, key=guessing.__getitem__)
    if guessing[best] < 1:
        return [f"guessing was slower here (at best {guessing[best]:.2f}x, {best}); use --no-spec"]
    slower = [name for name, x in guessing.items() if x < 1 and name.startswith("chain")]
    return [f"guessing was slower here with {', '.join(slower)}; {best} is {guessing[best]:.2f}x"] if slower else []


def _cells(values: Sequence[float] | range, form: str) -> str:
    return "".join(format(value, form) for value in values)


def _head(kind: str) -> str:
    """A kind as the head of a column: 3, 3+, adapt, adapt+, tree, atree (adaptive), cpp 3."""
    if kind.startswith("adaptive tree"):
        return "atree" + "+" * kind.endswith("lookup")
    first, _, rest = kind.partition(" ")
    length = rest.partition(" ")[0] if first in ("chain", "llama.cpp") else ""
    return HEADS[first] + length + "+" * rest.endswith("lookup")


def _width(head: str) -> int:
    return max(len(head) + 2, 6)
