"""Recorded runs of the training grid -> what they say about the paper's question, as one JSON object of derived
numbers.

Not a measurement and not a text: `docs/lab/findings_text.py` quotes this object and nothing else,
`docs/lab/findings_plots.py` draws it. A number over seeds is the mean of the seeds'; its interval resamples seeds and
prompts together (percentile bootstrap), because both are drawn. Legend: S seeds, P prompts, B resamples, K chain depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.findings_records import NORMALIZED, PLAIN, Recorded, switches_of
from refspec.errors import CheckpointError
from refspec.evaluate import acceptance_report
from refspec.evaluate.bootstrap import LEVEL, RESAMPLES, Floats, number

FORMAT = "refspec-findings-1"
PAPER = {"arxiv": "2605.09992", "standard": 1.10, "perturb": 2.0, "context": 1.18}
# a state grows when it ends above 1.1 times its first magnitude, and keeps its size within 10 %
GROWS, KEEPS = 1.1, 0.1
LITTLE = 0.9  # of tau kept: there is not much to cure
CURVES = (
    "magnitude",
    "growth",
    "added",
    "cosine",
    "chain",
    "chain_earlier",
    "prompt",
    "sink",
    "entropy",
    "accepted_given_previous",
)


def derive(recorded: Sequence[Recorded], seed: int = 0) -> dict[str, Any]:
    """Every number and every verdict the text and the figures use; what was not measured is None or empty."""
    main = [r for r in recorded if r.job["run"] == "main"]
    rng = np.random.default_rng(seed)
    return {
        "format": FORMAT,
        "paper": PAPER,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "grows_above": GROWS,
        "keeps_within": KEEPS,
        "little_lost_above": LITTLE,
        "runs": _runs(recorded),
        "drift": _drift(main),
        "ratios": _ratios(main, rng),
        "hurt": _hurt(main, rng),
        "depth": _depth(recorded, rng),
        "ablation": _ablation([r for r in recorded if r.job["run"] == "ablation"], rng),
        "anchor": _experiment(main, "anchor", rng),
        "grow": _experiment(main, "grow", rng),
        "depth_kept": _depth_kept(recorded, rng),
    }


def _runs(recorded: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Scale: one entry for each run and training depth."""
    groups: dict[tuple[str, int], list[Recorded]] = {}
    for r in recorded:
        groups.setdefault((r.job["run"], r.job["depth"]), []).append(r)
    return [
        {
            "run": run,
            "depth": depth,
            "seeds": sorted(r.job["seed"] for r in part),
            "steps": part[0].job["steps"],
            "million_tokens": round(part[0].job["tokens"] / 1e6, 1),
            "variants": list(part[0].job["variants"]),
            "measured": {n: _scale(record) for n, record in part[0].records.items()},
        }
        for (run, depth), part in sorted(groups.items())
    ]


def _scale(record: Mapping[str, Any]) -> dict[str, Any]:
    settings = record["settings"]
    return {
        key: settings[key]
        for key in ("target", "prompt_file", "prompts", "max_tokens", "temp", "context", "depth")
        if key in settings
    }


def _drift(main: Sequence[Recorded]) -> dict[str, Any] | None:
    """Curves by depth of both sides of the main comparison, the verdicts, and plain less normalized attention on own
    tokens.
    """
    out: dict[str, Any] = {}
    for role, switches in (("normalized", NORMALIZED), ("plain", PLAIN)):
        if not (found := curves(main, switches)):
            return None
        out[role] = found
    pairs = [p for r in main if "drift" in r.records if (p := _difference(r, "chain"))]
    out["plain_less_normalized"] = pairs
    away = (
        [p["low"] is not None and p["low"] > 0 for p in pairs],
        [p["high"] is not None and p["high"] < 0 for p in pairs],
    )
    out["attention_verdict"] = "less" if all(away[0]) and pairs else "more" if all(away[1]) and pairs else "unclear"
    return out


def curves(recorded: Iterable[Recorded], switches: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each figure of drift by depth: mean, lowest and highest over seeds. Growth at the last depth has a verdict."""
    found = [
        next(d for d in r.records["drift"]["drafters"] if d["name"] == name)
        for r in recorded
        if "drift" in r.records and (name := r.variant(switches))
    ]
    if not found:
        return None
    out: dict[str, Any] = {"seeds": len(found), "depths": len(found[0]["depths"])}
    for figure in CURVES:
        values = np.array(
            [[np.nan if row[figure]["mean"] is None else row[figure]["mean"] for row in d["depths"]] for d in found],
            float,
        )
        out[figure] = [
            {"mean": number(column.mean()), "low": number(column.min()), "high": number(column.max())}
            for column in values.T
        ]
    out["growth_by_seed"] = ends = [d["depths"][-1]["growth"] for d in found]
    known = [e for e in ends if e["low"] is not None]
    if known and all(e["low"] > GROWS for e in known):
        out["growth_verdict"] = "grows"
    elif known and all(abs(e["low"] - 1) <= KEEPS and abs(e["high"] - 1) <= KEEPS for e in known):
        out["growth_verdict"] = "keeps"
    elif known and all(e["high"] < 1 - KEEPS for e in known):
        out["growth_verdict"] = "shrinks"
    else:
        out["growth_verdict"] = "unclear"
    return out


def _difference(r: Recorded, figure: str) -> dict[str, float | None] | None:
    """Plain less normalized at the last depth, paired over the prompts of one seed."""
    record, plain, normalized = r.records["drift"], r.variant(PLAIN), r.variant(NORMALIZED)
    if record["first"] == normalized and plain in record["minus_first"]:
        found: dict[str, float | None] = record["minus_first"][plain][figure][-1]
        return found
    if record["first"] == plain and normalized in record["minus_first"]:
        other = record["minus_first"][normalized][figure][-1]
        mean, low, high = (None if other[key] is None else -other[key] for key in ("mean", "high", "low"))
        return {"mean": mean, "low": low, "high": high}
    return None


def _ratios(main: Sequence[Recorded], rng: np.random.Generator) -> dict[str, Any]:
    """Tau normalized / plain of every acceptance record by draft length, and by family, perturbation or context."""
    out: dict[str, Any] = {}
    for name in sorted(
        {name for r in main for name, record in r.records.items() if record["format"] == acceptance_report.FORMAT}
        - {"anchor", "grow"}
    ):
        having = [r for r in main if name in r.records and r.variant(NORMALIZED) and r.variant(PLAIN)]
        if not having:
            continue
        first = having[0].records[name]
        groups: dict[str, Callable[[dict[str, Any], int], bool]] = {"all": lambda c, i: True}
        conditions = first["conditions"]
        if len({c["perturb"] for c in conditions}) > 1:
            groups["all"] = _foreign  # the foreign scaffolds together, the own one apart
            groups |= {c["perturb"]: _is("perturb", c["perturb"]) for c in conditions}
        if len({c["context"] for c in conditions}) > 1:
            groups |= {str(c["context"]): _is("context", c["context"]) for c in conditions}
        if len(groups) == 1:
            for family in dict.fromkeys(conditions[0]["by_prompt"]["family"]):
                groups[family] = _family(family)
        out[name] = {
            str(k): {
                group: ratio(
                    [(steps(r, name, PLAIN, k, wanted), steps(r, name, NORMALIZED, k, wanted)) for r in having], rng
                )
                for group, wanted in groups.items()
            }
            for k in first["settings"]["draft_max"]
        }
    return out


def _hurt(main: Sequence[Recorded], rng: np.random.Generator) -> dict[str, Any]:
    """What strange input costs: tau under foreign templates over the own, at the longest context over the shortest."""
    out: dict[str, Any] = {}
    for name in ("perturb", "context"):
        having = [r for r in main if name in r.records and r.variant(NORMALIZED) and r.variant(PLAIN)]
        if not having:
            continue
        lengths = sorted(c["context"] for c in having[0].records[name]["conditions"] if c["context"] is not None)
        base: Callable[[dict[str, Any], int], bool]
        other: Callable[[dict[str, Any], int], bool]
        if name == "perturb":
            base, other = _is("perturb", "none"), _foreign
        elif len(set(lengths)) > 1:
            base, other = _is("context", lengths[0]), _is("context", lengths[-1])
        else:
            continue
        out[name] = {
            str(k): {
                role: ratio([(steps(r, name, side, k, base), steps(r, name, side, k, other)) for r in having], rng)
                for role, side in (("plain", PLAIN), ("normalized", NORMALIZED))
            }
            for k in having[0].records[name]["settings"]["draft_max"]
        }
    return out


def _is(key: str, value: Any) -> Callable[[dict[str, Any], int], bool]:
    return lambda condition, i: bool(condition[key] == value)


def _foreign(condition: dict[str, Any], i: int) -> bool:
    return bool(condition["perturb"] != "none")


def _family(family: str) -> Callable[[dict[str, Any], int], bool]:
    return lambda condition, i: bool(condition["by_prompt"]["family"][i] == family)


def steps(
    r: Recorded,
    name: str,
    drafter: Mapping[str, Any] | str,
    k: int,
    wanted: Callable[[dict[str, Any], int], bool] = lambda c, i: True,
) -> Floats:
    """Tokens and verify steps of each prompt over the wanted conditions: [P, 2]. A drafter by its switches or name."""
    found = drafter if isinstance(drafter, str) else r.variant(drafter)
    totals: dict[tuple[str, str, int], list[float]] = {}
    for condition in r.records[name]["conditions"]:
        by = condition["by_prompt"]
        for i, (family, ident) in enumerate(zip(by["family"], by["id"], strict=True)):
            if wanted(condition, i):
                total = totals.setdefault((family, ident, i), [0.0, 0.0])
                total[0] += by["tokens"][i]
                total[1] += by["verify_steps"][found][str(k)][i]
    return np.array(list(totals.values()))


def ratio(pairs: Sequence[tuple[Floats, Floats]], rng: np.random.Generator) -> dict[str, Any]:
    """Mean over seeds of tau(other) / tau(base) with its interval; pairs of (base, other) [P, 2] are from `steps`."""
    return _over_seeds(
        [np.stack([base, other]) for base, other in pairs],
        lambda sums: (sums[1, 0] / sums[1, 1]) / (sums[0, 0] / sums[0, 1]),
        rng,
    )


def tau(seeds: Sequence[Floats], rng: np.random.Generator) -> dict[str, Any]:
    """Mean over seeds of tau, each [P, 2]; seeds and prompts resampled."""
    return _over_seeds([one[None] for one in seeds], lambda sums: sums[0, 0] / sums[0, 1], rng)


def _over_seeds(seeds: Sequence[Floats], value: Callable[[Any], Any], rng: np.random.Generator) -> dict[str, Any]:
    """`value` of the sums over prompts, averaged over seeds: arrays [X, P, 2] of the same prompts in every seed."""
    if len({one.shape for one in seeds}) > 1:
        raise CheckpointError(
            "the seeds of one run were measured on different prompts; measure all of them with the same options"
        )
    each = [float(value(one.sum(1))) for one in seeds]
    prompts = seeds[0].shape[1]
    draws = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES).astype(np.float64)  # [B, P]
    with np.errstate(invalid="ignore", divide="ignore"):
        again = np.array([value(np.einsum("bp,xpc->xcb", draws, one)) for one in seeds])  # [S, B]
    chosen = rng.integers(len(seeds), size=(len(seeds), RESAMPLES))  # [S, B]
    means = np.take_along_axis(again, chosen, 0).mean(0)  # [B]
    means = means[np.isfinite(means)]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail]) if prompts > 1 and len(means) else (np.nan, np.nan)
    return {
        "mean": number(float(np.mean(each))),
        "low": number(low),
        "high": number(high),
        "seeds": [number(x) for x in each],
        "prompts": prompts,
    }


def _depth(recorded: Sequence[Recorded], rng: np.random.Generator) -> dict[str, Any]:
    """Tau by training depth and draft length of both sides; the ablation counts as the depth its runs have."""
    out: dict[str, Any] = {}
    for depth, part in _by_depth(recorded).items():
        lengths = part[0].records["standard"]["settings"]["draft_max"]
        sides = {}
        for role, switches in (("normalized", NORMALIZED), ("plain", PLAIN)):
            having = [r for r in part if r.variant(switches)]
            if having:
                sides[role] = {str(k): tau([steps(r, "standard", switches, k) for r in having], rng) for k in lengths}
        out[str(depth)] = sides
    return out


def _by_depth(recorded: Sequence[Recorded]) -> dict[int, list[Recorded]]:
    """The short trainings by the depth they were made to, ascending."""
    groups: dict[int, list[Recorded]] = {}
    for r in recorded:
        if r.job["run"] in ("depth", "ablation") and "standard" in r.records:
            groups.setdefault(r.job["depth"], []).append(r)
    return dict(sorted(groups.items()))


def _depth_kept(recorded: Sequence[Recorded], rng: np.random.Generator) -> dict[str, Any]:
    """Tau of each side trained less deep over that of the deepest, by seed, at the longest draft length.

    {length, deepest, of}.
    """
    groups = _by_depth(recorded)
    if len(groups) < 2:
        return {}
    deepest = list(groups)[-1]
    k = groups[deepest][0].records["standard"]["settings"]["draft_max"][-1]
    of: dict[str, dict[str, Any]] = {}
    for role, switches in (("normalized", NORMALIZED), ("plain", PLAIN)):
        base = {r.job["seed"]: r for r in groups[deepest] if r.variant(switches)}
        for depth, part in list(groups.items())[:-1]:
            pairs = [
                (steps(base[r.job["seed"]], "standard", switches, k), steps(r, "standard", switches, k))
                for r in part
                if r.variant(switches) and r.job["seed"] in base
            ]
            if pairs:
                of.setdefault(role, {})[str(depth)] = ratio(pairs, rng)
    return {"length": k, "deepest": deepest, "of": of}


def _ablation(recorded: Sequence[Recorded], rng: np.random.Generator) -> dict[str, Any]:
    """Every variant beside the plain one: growth and attention at the last depth, tau, and tau's ratio."""
    out: dict[str, Any] = {}
    for name in recorded[0].job["variants"] if recorded else ():
        switches = switches_of(recorded[0].job, name)
        found = curves(recorded, switches)
        entry: dict[str, Any] = {
            "switches": switches,
            "growth": None,
            "chain": None,
            "growth_verdict": None,
            "tau": {},
            "ratio": {},
        }
        if found:
            entry |= {
                "growth": found["growth"][-1],
                "chain": found["chain"][-1],
                "growth_verdict": found["growth_verdict"],
            }
        having = [r for r in recorded if "standard" in r.records]
        for k in having[0].records["standard"]["settings"]["draft_max"] if having else ():
            own = [steps(r, "standard", name, k) for r in having]
            entry["tau"][str(k)] = tau(own, rng)
            if having[0].variant(PLAIN) and switches != PLAIN:
                plain = [steps(r, "standard", PLAIN, k) for r in having]
                entry["ratio"][str(k)] = ratio(list(zip(plain, own, strict=True)), rng)
        out[name] = entry
    return out


def _experiment(main: Sequence[Recorded], name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Tau with an experiment of `drafters.eagle3` (its name is the record's) over tau without, by drafter, value and
    draft length.
    """
    having = [r for r in main if name in r.records]
    out: dict[str, Any] = {}
    for drafter in having[0].records[name]["drafters"] if having else ():
        if value := drafter.get(name):
            base = drafter["name"].rsplit(f"+{name}", 1)[0]
            by_length = {
                str(k): ratio([(steps(r, name, base, k), steps(r, name, drafter["name"], k)) for r in having], rng)
                for k in having[0].records[name]["settings"]["draft_max"]
            }
            out[drafter["name"]] = {"of": base, "value": value, "tau": by_length}
    return out
