"""docs/findings.md: `findings_numbers.py` makes every number and every verdict that is quoted here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lab.findings_records import NORMALIZED, PLAIN

MISSING = "Not measured."
TITLES = {"standard": "Benchmarks, own template", "perturb": "Foreign templates", "context": "Long context"}
Value = Mapping[str, Any]


def interval(value: Value | None, digits: int = 2) -> str:
    """A mean with its interval in words, or that there is none."""
    if value is None or value["mean"] is None:
        return "not measured"
    mean = f"{value['mean']:.{digits}f}"
    if value.get("low") is None or value.get("high") is None:
        return mean
    return f"{mean} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def markdown(found: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The page; `figures` names those that were drawn."""
    paper = found["paper"]
    parts = [
        "# Findings",
        "Made by `python docs/lab findings write` from the recorded runs beside it; do not edit. The question is that "
        f"of Attention Drift (arXiv {paper['arxiv']}): does a drafter's state grow along the chain when it is fed back "
        "without a norm, does its attention leave the prompt for its own draft tokens, and does norming cure it?",
        "*Plain* is EAGLE-3 (no feature norm, pre-norm feedback, raw residual), *normalized* EAGLE 3.1 (a norm for "
        "each captured state, post-norm feedback, raw residual). Tau is tokens per verify step. Numbers are means "
        f"over training seeds; brackets hold {found['level']:.0%} intervals that resample seeds and prompts, or, for "
        "what `refspec drift` measures, the range over seeds.",
        *_short(found),
        "## Scale",
        *_scale(found["runs"]),
        "## Does the state grow, and does attention drift?",
        *_drift(found, "drift" in figures),
        "## What do the norms gain?",
        *_ratios(found, "ratios" in figures),
        "## Do drafters go deeper than they were trained?",
        *_depth(found["depth"], found["depth_kept"], "depth" in figures),
        "## Is it the growth that costs acceptance?",
        *_grow(found["grow"]),
        "## What does each norm do alone?",
        *_ablation(found, "ablation" in figures),
        "## What does attending to the prompt do instead?",
        *_mitigations(found),
        "",
    ]
    return "\n\n".join(parts[:-1]) + "\n"


def _short(found: Mapping[str, Any]) -> list[str]:
    """The answers, a line each, as far as they were measured."""
    lines, d = [], found["drift"]
    if d:
        growth = "; ".join(f"{role} {interval(d[role]['growth'][-1])} times" for role in ("plain", "normalized"))
        lines.append(f"Size of the state at depth {d['plain']['depths']} beside the first: {growth}.")
        word = {"less": "less", "more": "more, against the paper", "unclear": "neither more nor less"}[
            d["attention_verdict"]
        ]
        lines.append(
            "Share of attention on the chain's own draft tokens there: normalized "
            f"{interval(d['normalized']['chain'][-1])}, plain {interval(d['plain']['chain'][-1])}. The normalized "
            f"drafter drifts {word}."
        )
    for name, title in TITLES.items():
        if by_length := found["ratios"].get(name):
            values = ", ".join(f"{interval(v['all'])} at draft length {k}" for k, v in by_length.items())
            lines.append(f"{title}, tau normalized / plain: {values} (the paper: {found['paper'][name]:.2f}).")
    if held := next((e for e in found["grow"].values() if (e["of"], e["value"]) == ("plain", 1)), None):
        k, value = list(held["tau"].items())[-1]
        lines.append(
            "What of that the growth itself explains: holding the plain drafter's state at its first size gives tau "
            f"times {interval(value)} at draft length {k}."
        )
    lines += _by_training(found, longest=True)
    if kept := found["depth_kept"]:
        parts = ", ".join(f"{interval(v)} for depth {depth}" for depth, v in kept["of"].get("normalized", {}).items())
        if parts:
            lines.append(
                f"A normalized drafter trained less deep than {kept['deepest']}, its tau at draft length "
                f"{kept['length']} over that of depth {kept['deepest']}: {parts}."
            )
    return ["## In short", "\n".join(f"- {line}" for line in lines)] if lines else []


def _scale(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| run | trained to depth | seeds | steps | million tokens | variants |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        seeds = ", ".join(str(seed) for seed in r["seeds"])
        variants = ", ".join(name.replace("_", " ") for name in r["variants"])
        lines.append(f"| {r['run']} | {r['depth']} | {seeds} | {r['steps']} | {r['million_tokens']:.1f} | {variants} |")
    few = [f"{r['run']} (depth {r['depth']})" for r in runs if len(r["seeds"]) < 3]
    out = ["\n".join(lines)]
    measured = {name: about for r in runs for name, about in r["measured"].items()}
    if measured:
        about = next(iter(measured.values()))
        out.append(f"The target is {about['target']}, the prompts are those of {about['prompt_file']}.")
        lines = ["| measured | prompts | tokens at most | temperature |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {m['prompts']} | {m['max_tokens']} | {m['temp']:g} |" for name, m in sorted(measured.items())
        ]
        out.append("\n".join(lines))
    if few:
        out.append("**Fewer than three seeds, so a signal and not a result:** " + ", ".join(few) + ".")
    return out


GROWTH = {
    "grows": "grows with depth",
    "keeps": "keeps its size",
    "shrinks": "shrinks with depth",
    "unclear": "shows no direction that all seeds share",
}


def _drift(found: Mapping[str, Any], drawn: bool) -> list[str]:
    d = found["drift"]
    if not d:
        return [MISSING]
    out = ["![state and attention by chain depth](findings-drift.png)"] if drawn else []
    last = d["plain"]["depths"]
    for role in ("plain", "normalized"):
        side = d[role]
        out.append(
            f"The state of the {role} drafter {GROWTH[side['growth_verdict']]}: at depth {last} it is "
            f"{interval(side['growth'][-1])} times its size at the first; its root mean square goes from "
            f"{interval(side['magnitude'][0])} to {interval(side['magnitude'][-1])}."
        )
    out.append(
        f"Attention on the chain's own draft tokens at depth {last}: plain {interval(d['plain']['chain'][-1])}, "
        f"normalized {interval(d['normalized']['chain'][-1])}; of it on those before the position's own "
        f"{interval(d['plain']['chain_earlier'][-1])} and {interval(d['normalized']['chain_earlier'][-1])}; on the "
        f"rest of the prompt {interval(d['plain']['prompt'][-1])} and {interval(d['normalized']['prompt'][-1])}; on "
        f"the first token {interval(d['plain']['sink'][-1], 3)} and {interval(d['normalized']['sink'][-1], 3)}."
    )
    verdict = {
        "less": "In every seed the normalized drafter drifts less: plain less normalized, paired over prompts, is ",
        "more": "In every seed the normalized drafter drifts MORE, against the paper: plain less normalized, paired "
        "over prompts, is ",
        "unclear": "The seeds do not agree on which drifts less: plain less normalized, paired over prompts, is ",
    }[d["attention_verdict"]]
    if pairs := d["plain_less_normalized"]:
        out.append(verdict + ", ".join(interval(p) for p in pairs) + ".")
    sides = d["plain"]["added"], d["normalized"]["added"]
    falls = {role: d[role]["added"][-1]["high"] < d[role]["added"][0]["low"] for role in ("plain", "normalized")}
    less = " and ".join(f"the {role} drafter" for role, does in falls.items() if does)
    out.append(
        f"How much attention matters: what it adds is, at the first depth and at depth {last}, plain "
        f"{interval(sides[0][0])} and {interval(sides[0][-1])}, normalized {interval(sides[1][0])} and "
        f"{interval(sides[1][-1])} times the size of what it is added to (root mean squares): in every seed "
        f"{less or 'neither drafter'} listens less to its attention the deeper the chain is, wherever that looks. "
        f"Cosine of the state to the one a depth before, at depth {last}: plain {interval(d['plain']['cosine'][-1])}, "
        f"normalized {interval(d['normalized']['cosine'][-1])}."
    )
    out.append(
        f'("Grows" means that every seed\'s interval ends above {found["grows_above"]:g}, "keeps" that it stays within '
        f"{found['keeps_within']:.0%} of its first size.)"
    )
    return out


def _ratios(found: Mapping[str, Any], drawn: bool) -> list[str]:
    paper, by_record = found["paper"], found["ratios"]
    titles = TITLES
    lengths = sorted({int(k) for name in titles if name in by_record for k in by_record[name]})
    head = "| tau normalized / plain | " + " | ".join(f"draft length {k}" for k in lengths) + " | the paper |"
    lines = [head, "| --- " * (len(lengths) + 2) + "|"]
    for name, title in titles.items():
        cells = [interval(by_record.get(name, {}).get(str(k), {}).get("all")) for k in lengths]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {paper[name]:.2f} |")
    out = ["![ratios with intervals](findings-ratios.png)"] if drawn else []
    if not lengths:
        return [MISSING]
    out.append("\n".join(lines))
    if missing := [title for name, title in titles.items() if name not in by_record]:
        out.append("Not measured: " + ", ".join(missing) + ".")
    verdicts = [
        f"- {title}: {_verdict(by_record[name], paper[name])}" for name, title in titles.items() if name in by_record
    ]
    out.append("\n".join(verdicts))
    out += _hurt(found)
    lines = [
        "| one by one | " + " | ".join(f"draft length {k}" for k in lengths) + " |",
        "| --- " * (len(lengths) + 1) + "|",
    ]
    for name, title in {**titles, "sampled": "Sampled output"}.items():
        # the same at every length this was measured at
        groups: Mapping[str, Value] = next(iter(by_record.get(name, {}).values()), {})
        for group in [g for g in groups if g != "all" or name == "sampled"]:
            cells = [interval(by_record[name].get(str(k), {}).get(group)) for k in lengths]
            lines.append(f"| {title}: {NAMES.get((name, group), group)} | " + " | ".join(cells) + " |")
    out.append("\n".join(lines))
    return out


def _hurt(found: Mapping[str, Any]) -> list[str]:
    """What is there to cure: how much strange input costs each drafter."""
    kept = found["little_lost_above"]
    titles = {"perturb": "Foreign templates cost", "context": "The longest context costs"}
    words = {"perturb": "tau under them over tau under the own one", "context": "tau at it over tau at the shortest"}
    out = []
    for name, by_length in found["hurt"].items():
        parts = [
            f"draft length {k}: plain {interval(v['plain'])}, normalized {interval(v['normalized'])}"
            for k, v in by_length.items()
        ]
        low = [v["plain"]["low"] for v in by_length.values()]
        little = all(x is not None and x > kept for x in low)
        says = (
            f" The plain drafter keeps more than {kept:.0%}, so there is little to cure at this scale."
            if little
            else ""
        )
        out.append(f"{titles[name]}: {words[name]}, {'; '.join(parts)}.{says}")
    return out


NAMES = {("perturb", "none"): "the own one, same prompts"}


def _verdict(by_length: Mapping[str, Mapping[str, Value]], paper: float) -> str:
    """What the intervals say, draft length by draft length."""
    sets: dict[str, list[str]] = {}
    for k, groups in by_length.items():
        value = groups["all"]
        if value["low"] is None:
            says = "one prompt says nothing"
        elif value["low"] > 1:
            reaches = "reaches" if value["high"] >= paper else "stays below"
            says = f"the norms help, and the interval {reaches} the paper's {paper:.2f}"
        elif value["high"] < 1:
            says = "the norms cost acceptance, against the paper"
        else:
            says = "the interval includes no change: no gain is shown at this scale"
        sets.setdefault(says, []).append(k)
    return "; ".join(f"{says} (draft length {', '.join(lengths)})" for says, lengths in sets.items()) + "."


def _depth(depths: Mapping[str, Any], kept: Mapping[str, Any], drawn: bool) -> list[str]:
    if not depths:
        return [MISSING]
    out = ["![tau by draft length and training depth](findings-depth.png)"] if drawn else []
    lengths = list(next(iter(next(iter(depths.values())).values())))
    lines = [
        "| drafter | trained to depth | " + " | ".join(f"draft length {k}" for k in lengths) + " |",
        "| --- " * (len(lengths) + 2) + "|",
    ]
    for role in ("plain", "normalized"):
        for trained, sides in depths.items():
            if role in sides:
                lines.append(f"| {role} | {trained} | " + " | ".join(interval(sides[role][k]) for k in lengths) + " |")
    out.append("\n".join(lines))
    shortest, longest = min(depths, key=int), max(depths, key=int)
    if shortest != longest and "normalized" in depths[shortest] and "plain" in depths[longest]:
        k = lengths[-1]
        ours, theirs = depths[shortest]["normalized"][k], depths[longest]["plain"][k]
        word = "more than" if ours["mean"] > theirs["mean"] else "no more than"
        out.append(
            f"At draft length {k} the normalized drafter trained to depth {shortest} has tau {interval(ours)}, {word} "
            f"the plain one trained to depth {longest} with {interval(theirs)}."
        )
    if kept:
        parts = [
            f"{role} {', '.join(f'{interval(v)} (depth {d})' for d, v in by.items())}"
            for role, by in kept["of"].items()
        ]
        out.append(
            f"Trained less deep, beside training to depth {kept['deepest']}: tau at draft length {kept['length']} is "
            f"{'; '.join(parts)} times as high."
        )
    return out


def _grow(experiments: Mapping[str, Any]) -> list[str]:
    """Trained drafters whose state is resized before it is fed back: a cause, where curves only go together."""
    if not experiments:
        return [MISSING]
    out = [
        "Trained drafters, measured once more with the state they feed back resized at every depth and nothing else "
        "changed (`--grow X`: X times the size at the depth before, whatever it would have been; 1 holds the first "
        "size). They were not trained for it. Tau over that without:"
    ]
    lengths = list(next(iter(experiments.values()))["tau"])
    lines = [
        "| drafter | state fed back | " + " | ".join(f"draft length {k}" for k in lengths) + " |",
        "| --- " * (len(lengths) + 2) + "|",
    ]
    for entry in experiments.values():
        size = "holds its size" if entry["value"] == 1 else f"times {entry['value']:g} at every depth"
        lines.append(
            f"| {entry['of'].replace('_', ' ')} | {size} | "
            + " | ".join(interval(entry["tau"][k]) for k in lengths)
            + " |"
        )
    out.append("\n".join(lines))
    by = {(entry["of"], entry["value"]): entry["tau"] for entry in experiments.values()}
    says = []
    if held := by.get(("plain", 1)):
        words: dict[str, list[str]] = {}
        for k in lengths:
            low, high = held[k]["low"], held[k]["high"]
            word = (
                "says nothing with one prompt"
                if low is None
                else "gains"
                if low > 1
                else "costs acceptance"
                if high < 1
                else "shows no change"
            )
            words.setdefault(word, []).append(k)
        parts = [f"{word} at draft length {', '.join(at)}" for word, at in words.items()]
        says.append(
            "Holding the plain drafter's state at its first size "
            + " and ".join(parts)
            + (": so much is what its growth costs." if "gains" in words else ".")
        )
    for value in sorted({v for of, v in by if v > 1 and of == "plain" and ("normalized", v) in by}):
        plain, ours = (by[of, value][lengths[-1]] for of in ("plain", "normalized"))
        if None not in (plain["high"], ours["low"]):
            more = (
                "more than"
                if plain["high"] < ours["low"]
                else "less than"
                if plain["low"] > ours["high"]
                else "about as much as"
            )
            says.append(
                f"Growth by {value:g} at every depth costs the plain drafter {more} the normalized one (draft length "
                f"{lengths[-1]})."
            )
    return [*out, " ".join(says)] if says else out


def _ablation(found: Mapping[str, Any], drawn: bool) -> list[str]:
    variants = found["ablation"]
    if not variants:
        return [MISSING]
    out = ["![each switch alone](findings-ablation.png)"] if drawn else []
    lengths = list(next(iter(variants.values()))["tau"])
    head = ["feature norm", "feedback", "residual", "regularizer", "growth", "attention on own tokens"]
    head += [f"tau, length {k}" for k in lengths] + [f"over plain, length {k}" for k in lengths]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for entry in variants.values():
        s = entry["switches"]
        cells = [
            s["feature_norm"],
            s["feedback"],
            s["residual"],
            f"{s['attention_reg']:g}" if s["attention_reg"] else "off",
        ]
        cells += [interval(entry["growth"]), interval(entry["chain"])]
        cells += [interval(entry["tau"].get(k)) for k in lengths] + [
            interval(r) if (r := entry["ratio"].get(k)) else "" for k in lengths
        ]
        lines.append("| " + " | ".join(cells) + " |")
    grow = [name.replace("_", " ") for name, e in variants.items() if e["growth_verdict"] == "grows"]
    keep = [name.replace("_", " ") for name, e in variants.items() if e["growth_verdict"] == "keeps"]
    out.append("\n".join(lines))
    out.append(f"The state grows in: {', '.join(grow) or 'none'}. It keeps its size in: {', '.join(keep) or 'none'}.")
    return out + _by_training(found)


def _by_training(found: Mapping[str, Any], *, longest: bool = False) -> list[str]:
    """Both norms over none after the ablation's short training and the main one's; of the `longest` length only."""
    scale = {r["run"]: r for r in found["runs"] if r["run"] in ("main", "ablation")}
    short: Mapping[str, Value] = next(
        (e["ratio"] for e in found["ablation"].values() if e["switches"] == NORMALIZED), {}
    )
    long = {k: v["all"] for k, v in found["ratios"].get("standard", {}).items()}
    both = [k for k in short if k in long][-1 if longest else 0 :]
    if len(scale) < 2 or not both:
        return []
    parts = [f"{interval(short[k])} and {interval(long[k])} at draft length {k}" for k in both]
    known = all(v[end] is not None for k in both for v in (short[k], long[k]) for end in ("low", "high"))
    fades = known and all(short[k]["low"] > long[k]["high"] for k in both)
    return [
        f"Both norms over none after {scale['ablation']['million_tokens']:.1f} million tokens and after "
        f"{scale['main']['million_tokens']:.1f} million (the main comparison): tau {'; '.join(parts)}."
        + (
            " So the norms make drafters learn sooner above all: most of what they gain early, training gains later."
            if fades
            else ""
        )
    ]


def _mitigations(found: Mapping[str, Any]) -> list[str]:
    variants, out = found["ablation"], []
    regularized = {name: e for name, e in variants.items() if e["switches"]["attention_reg"]}
    plain = next((e for e in variants.values() if e["switches"] == PLAIN), None)
    for entry in regularized.values():
        gains = "; ".join(f"draft length {k}: {interval(r)}" for k, r in entry["ratio"].items())
        without = f" (without it {interval(plain['chain'])})" if plain else ""
        out.append(
            f"**Attention regularizer in the loss, weight {entry['switches']['attention_reg']:g}, on the plain "
            f"drafter.** Attention on own tokens at the last depth {interval(entry['chain'])}{without}; tau over the "
            f"plain drafter's: {gains or 'not measured'}."
        )
    if not regularized:
        out.append("Attention regularizer: not measured.")
    for entry in found["anchor"].values():
        gains = "; ".join(f"draft length {k}: {interval(v)}" for k, v in entry["tau"].items())
        out.append(
            f"**Anchored attention at inference, bonus {entry['value']:g}, on the {entry['of'].replace('_', ' ')} "
            f"drafter.** Tau over that without: {gains}."
        )
    if not found["anchor"]:
        out.append("Anchored attention: not measured.")
    return out
