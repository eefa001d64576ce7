"""A plan of drafter trainings: read from JSON or TOML, checked before anything runs, expanded into jobs in the order of
their rank.

    {"draft_vocab": 3072, "capture_layers": null,
     "variants": {"plain": {"feature_norm": "none", "feedback": "pre_norm", "residual": "raw"}, ...},
     "runs": [{"name": "main", "rank": 1, "variants": ["plain", ...], "depths": [3], "seeds": [1, 2, 3], "steps": 1900},
     ...]}

`draft_vocab`, `capture_layers` and `rows` (cut, or whole conversations) may be left out, as may any switch of a
variant. Keys `about` and `measure` are for others. A job is one depth and one seed of a run; its variants share the
target's forward pass.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from refspec.errors import UsageError
from refspec.reference.config import FeatureNorm, Feedback, Residual

CHOICES: dict[str, type[Enum]] = {"feature_norm": FeatureNorm, "feedback": Feedback, "residual": Residual}
RUN_KEYS = {"name": str, "rank": int, "variants": list, "depths": list, "seeds": list, "steps": int}


class Job(NamedTuple):
    """One training: `variants` of a drafter, for `steps` steps of a TTT of `depth` steps, with one seed."""

    run: str
    rank: int
    variants: dict[str, dict[str, Any]]
    depth: int
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.run}-ttt{self.depth}-seed{self.seed}"


class Plan(NamedTuple):
    """What the file says; `jobs` in the order they run: by rank, then seed, then depth."""

    jobs: list[Job]
    draft_vocab: int
    capture_layers: tuple[int, ...] | None
    measure: list[dict[str, Any]]  # what to measure of each job, see `python docs/lab findings measure`
    rows: str = "cut"  # see `drafters.Training`


def read_plan(path: Path) -> Plan:
    """The plan in a .json or .toml file (TOML needs Python 3.11); UsageError names the key that is wrong."""
    try:
        text = path.read_text("utf-8")
        plan = _toml(text, path) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; name a plan in JSON or TOML") from None
    if not isinstance(plan, dict):
        raise UsageError(f"{path}: is not an object with `variants` and `runs`")
    known = {"about", "variants", "runs", "draft_vocab", "capture_layers", "measure", "rows"}
    _need(set(plan) <= known, path, f"unknown key {sorted(set(plan) - known)[:1]}")
    variants, runs, layers = plan.get("variants"), plan.get("runs"), plan.get("capture_layers")
    _need(isinstance(variants, dict) and isinstance(runs, list), path, "`variants` must be an object and `runs` a list")
    _need(
        layers is None or (isinstance(layers, list) and all(isinstance(x, int) for x in layers)),
        path,
        "capture_layers must be a list of numbers",
    )
    for name, switches in variants.items():  # type: ignore[union-attr]
        _variant(path, name, switches)
    jobs: list[Job] = []
    for run in runs:  # type: ignore[union-attr]
        _run(path, run, variants)  # type: ignore[arg-type]
        chosen = {name: variants[name] for name in run["variants"]}  # type: ignore[index]
        jobs += [
            Job(run["name"], run["rank"], chosen, depth, seed, run["steps"])
            for seed in run["seeds"]
            for depth in run["depths"]
        ]
    names = [job.name for job in jobs]
    _need(bool(jobs), path, "`runs` is empty")
    _need(len(set(names)) == len(names), path, "two runs have the same name, depth and seed")
    vocab = plan.get("draft_vocab", 3072)
    _need(isinstance(vocab, int) and vocab > 0, path, "draft_vocab must be a positive number")
    jobs.sort(key=lambda job: job.rank)  # stable: seeds, then depths, as written
    measure = plan.get("measure", [])
    _need(isinstance(measure, list), path, "measure must be a list")
    rows = plan.get("rows", "cut")
    _need(rows in ("cut", "whole"), path, f"rows = {rows!r} is not one of cut, whole")
    return Plan(jobs, vocab, tuple(layers) if layers else None, measure, rows)


def _variant(path: Path, name: str, switches: Any) -> None:
    _need(isinstance(switches, dict), path, f"variant {name!r} must be an object")
    for key, value in switches.items():
        if key == "attention_reg":
            _need(
                isinstance(value, (int, float)) and value >= 0,
                path,
                f"variant {name!r}: attention_reg must be 0 or more",
            )
            continue
        _need(key in CHOICES, path, f"variant {name!r}: unknown key {key!r}")
        allowed = [str(member.value) for member in CHOICES[key]]
        _need(value in allowed, path, f"variant {name!r}: {key} = {value!r} is not one of {', '.join(allowed)}")
    _need(
        name.replace("-", "").replace("_", "").replace(".", "").isalnum(),
        path,
        f"variant {name!r}: a name of letters, digits, - _ .",
    )
    _need("." not in name, path, f"variant {name!r}: leave out the dot")  # torch names modules with dots


def _run(path: Path, run: Any, variants: dict[str, Any]) -> None:
    _need(isinstance(run, dict), path, "every run must be an object")
    where = f"run {run.get('name')!r}"
    for key, kind in RUN_KEYS.items():
        _need(isinstance(run.get(key), kind), path, f"{where}: {key} must be a {kind.__name__}")
    _need(set(run) <= {*RUN_KEYS, "about"}, path, f"{where}: unknown key {sorted(set(run) - {*RUN_KEYS, 'about'})[:1]}")
    _need(run["name"].replace("-", "").isalnum(), path, f"{where}: a name of letters, digits and -")
    for key in ("depths", "seeds"):
        _need(
            run[key] and all(isinstance(x, int) and x >= 0 for x in run[key]), path, f"{where}: {key} must hold numbers"
        )
    _need(min(run["depths"]) >= 1 and run["steps"] >= 1, path, f"{where}: depths and steps must be at least 1")
    strangers = [name for name in run["variants"] if name not in variants]
    _need(bool(run["variants"]) and not strangers, path, f"{where}: no variant {strangers[0] if strangers else ''!r}")
    if min(run["depths"]) < 2:
        reg = [name for name in run["variants"] if variants[name].get("attention_reg")]
        _need(
            not reg,
            path,
            f"{where}: variant {reg[0] if reg else ''!r} has an attention_reg, which needs a depth of 2 or more",
        )


def _need(holds: bool, path: Path, what: str) -> None:
    if not holds:
        raise UsageError(f"{path}: {what}")


def _toml(text: str, path: Path) -> Any:
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsageError(f"{path}: TOML needs Python 3.11; give the plan as JSON") from None
    return tomllib.loads(text)
