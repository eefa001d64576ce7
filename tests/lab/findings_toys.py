"""Records of a toy grid with known answers: the plain drafter grows and needs a fixed share more verify steps."""

from __future__ import annotations

import json

import numpy as np

from lab.findings_records import JOB
from refspec.evaluate import acceptance_report, drift_report
from refspec.evaluate.drift import FIGURES, Tally

NORM = {"feature_norm": "per_state", "feedback": "post_norm", "residual": "raw"}
PLAIN = {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw"}
VARIANTS = {
    "normalized": NORM,
    "plain": PLAIN,
    "post_only": PLAIN | {"feedback": "post_norm"},
    "plain_reg": PLAIN | {"attention_reg": 0.25},
}
K, P = 4, 6
GROWTH = {"normalized": 0.0, "plain": 0.5, "post_only": 0.01, "plain_reg": 0.4}  # a depth
CHAIN = {"normalized": 0.1, "plain": 0.2, "post_only": 0.15, "plain_reg": 0.05}


def drift_record(names, seed):
    found = {}
    for name in names:
        tallies = []
        for p in range(P):
            tally = Tally(K)
            for j in range(1, K + 1):
                for figure in FIGURES:
                    tally.add(figure, j, 0.125)
                size = 3 * (1 + GROWTH[name] * (j - 1)) * (1 + 0.01 * p)
                for figure, value in (
                    ("magnitude", size),
                    ("growth", size / (3 * (1 + 0.01 * p))),
                    ("chain", CHAIN[name] * (j - 1) + 0.001 * p),
                ):
                    tally.sums[figure][j - 1] = value
            tally.tokens, tally.steps = 20, 10
            tallies.append(tally)
        found[name] = tallies
    settings = {"target": "t.gguf", "prompt_file": "p.jsonl", "prompts": P, "max_tokens": 20, "temp": 0.0, "depth": K}
    return drift_report.record(found, {n: VARIANTS[n] for n in names}, settings, seed)


def acceptance_record(names, ratios, seed, *, conditions=(("none", None),), lengths=(3, 8), about=None, noise=0.0):
    """Verify steps 100 for the plain drafter and 100 / ratio for another, at every prompt."""
    rng = np.random.default_rng(seed)
    rows = {}
    for condition in conditions:
        rows[condition] = []
        for p in range(P):
            steps = {n: round(100 / ratios[n] * (1 + noise * rng.standard_normal())) for n in names}
            counts = {n: {str(k): [s, [s] * k, [s // 2] * k] for k in lengths} for n, s in steps.items()}
            turn = {"prompt_tokens": 9, "tokens": 200 + p, "counts": counts}
            rows[condition].append({"family": ("math", "chat")[p % 2], "id": str(p), "turns": [turn]})
    settings = {
        "target": "t.gguf",
        "prompt_file": "p.jsonl",
        "prompts": P,
        "max_tokens": 20,
        "temp": 0.0,
        "draft_max": list(lengths),
        "perturb": ["none"],
        "context": [],
    }
    return acceptance_report.record(rows, about or {n: VARIANTS[n] for n in names}, settings, names[-1], 0)


def write_records(folder, *, seeds=(1, 2, 3), only=None, noise=0.02):
    """docs/records as a grid would have left it; `only` keeps some of the runs."""
    jobs = [
        ("main", 3, ["normalized", "plain"]),
        ("ablation", 3, list(VARIANTS)),
        ("depth", 1, ["normalized", "plain"]),
    ]
    ratios = {"normalized": 1.25, "plain": 1.0, "post_only": 1.1, "plain_reg": 0.8}
    for run, depth, names in jobs:
        if only and run not in only:
            continue
        for seed in seeds:
            job = {
                "format": JOB,
                "run": run,
                "depth": depth,
                "seed": seed,
                "steps": 70,
                "tokens": 286720,
                "variants": {n: VARIANTS[n] for n in names},
            }
            records = {
                "job": job,
                "drift": drift_record(names, seed),
                "standard": acceptance_record(names, ratios, seed, noise=noise),
            }
            if run == "main":
                template = [("none", None), ("raw", None), ("no-bos", None)]
                records["perturb"] = acceptance_record(names, ratios, seed, conditions=template, noise=noise)
                records["context"] = acceptance_record(
                    names, {"normalized": 0.5, "plain": 1}, seed, conditions=[("none", 128), ("none", 256)]
                )
                anchored = [*names, "plain+anchor2"]
                about = {n: VARIANTS[n] for n in names} | {"plain+anchor2": VARIANTS["plain"] | {"anchor": 2.0}}
                records["anchor"] = acceptance_record(anchored, ratios | {"plain+anchor2": 0.5}, seed, about=about)
                grown = [*names, "plain+grow1", "plain+grow1.5", "normalized+grow1.5"]
                about = {n: VARIANTS[n] for n in names} | {
                    n: VARIANTS[n.split("+")[0]] | {"grow": float(n.split("grow")[1])} for n in grown[2:]
                }
                factors = {"plain+grow1": 1.1, "plain+grow1.5": 0.5, "normalized+grow1.5": 1.25}
                records["grow"] = acceptance_record(grown, ratios | factors, seed, about=about)
            where = folder / f"{run}-ttt{depth}-seed{seed}"
            where.mkdir(parents=True)
            for name, record in records.items():
                (where / f"{name}.json").write_text(json.dumps(record))
    return folder
